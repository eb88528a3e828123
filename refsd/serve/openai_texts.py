"""OpenAI's completions without a web framework: its fields as a text job's, a job as its answers.
"""

import secrets
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from refsd.arguments import refuse_unknown, shown
from refsd.cli.requests import checked
from refsd.errors import UsageError
from refsd.rules import Rule, boolean, each, integer, number, only, text
from refsd.serve.asked import Limits
from refsd.serve.jobs import TextJob
from refsd.serve.openai_images import require_done
from refsd.serve.refusals import Refused
from refsd.serve.writer import AskedText

HERE = "/v1/completions"
TOKENS = 16  # where nobody says how many, as OpenAI has it
STOPS = each(text(1000), 0, 16)
# Fields that only say what is so anyway, with the reason why nothing else can be.
ONLY: dict[str, tuple[Rule, str]] = {
    "frequency_penalty": (only(0), "refsd has repetition_penalty"),
    "presence_penalty": (only(0), "refsd has repetition_penalty"),
    "logit_bias": (only({}, []), "no token is made likelier"),
    "logprobs": (only(False), "probabilities are not told"),
    "suffix": (only(""), "GPT-2 writes what comes after a text"),
}
UNUSED = ("user", "safety_identifier")


def rules(limits: Limits) -> dict[str, Rule]:
    """Of the fields that are numbers, or true or false."""
    return {"max_tokens": integer(1, 100_000), "n": integer(1, limits.batch),
            "temperature": number(0, 100), "top_p": number(0, 1), "top_k": integer(-1, 2**31 - 1),
            "repetition_penalty": number(0.01, 100), "seed": integer(-1, 2**63),
            "best_of": integer(1, limits.batch), "stream": boolean, "echo": boolean}


FIELDS = ("model", "prompt", "stop", "stream_options", *rules(Limits()), *ONLY, *UNUSED)


class Texts(NamedTuple):
    """A request in refsd's words: what is to be written, and how its answer is to be.

    usage: whether the end of a stream counts tokens. warnings: what of it has no effect.
    """

    asked: AskedText
    stream: bool
    echo: bool
    usage: bool
    warnings: list[str]


def read_texts(body: Mapping[str, Any], models: Collection[str], limits: Limits) -> Texts:
    """The request of a body of /v1/completions; null is what is not said.

    Raises UsageError, which names the field, and Refused (404) for a model that there is not.
    """
    said = {name: value for name, value in body.items() if value is not None}
    refuse_unknown(HERE, said, FIELDS, "field")
    for name, (rule, why) in ONLY.items():
        if wanted := name in said and rule(said[name]):
            raise UsageError(f"{name} is {shown(said[name])}; {why}: give {wanted}, or leave it "
                             "out")
    prompt, stop, usage = _prompt(said, limits), _stop(said), _usage(said)
    found = checked({name: said[name] for name in (*rules(limits), "model", *UNUSED)
                     if name in said}, rules(limits))
    count = found.get("n", 1)
    if found.get("best_of", 1) not in (1, count):
        raise UsageError(f"best_of is {found['best_of']}; all texts are answered: give what n is, "
                         "or leave it out")
    warnings = [f"{name} has no effect: nobody is told who asked" for name in UNUSED
                if found.get(name)]
    sampling, seed = _sampling(found, warnings)
    asked = AskedText(_model(found.get("model"), models), prompt, count,
                      found.get("max_tokens", TOKENS), seed, {**sampling, "stop": stop}, said)
    return Texts(asked, found.get("stream", False), found.get("echo", False), usage, warnings)


def _model(name, models):
    if not models:
        raise Refused(404, "model_not_found", "this server has no model that writes texts")
    if name in models or not name:
        return name or next(iter(models))
    raise Refused(404, "model_not_found", f"model is {shown(name)}, which is none of this server's "
                  f"that write texts; give one of {', '.join(models)}")


def _prompt(said, limits):
    """One text: a list may have it."""
    prompt = said.get("prompt", "")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise UsageError(f"prompt is {shown(prompt)}; give one text")
    if len(prompt) > limits.prompt:
        raise UsageError(f"prompt has {len(prompt):,} characters; give at most {limits.prompt:,}")
    return checked({"prompt": prompt}, {})["prompt"]


def _stop(said):
    stop = said.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if wanted := STOPS(stop):
        raise UsageError(f"stop is {shown(stop)}; give a text, or {wanted}")
    return [one for one in stop if one]


def _usage(said):
    options = said.get("stream_options", {})
    if not isinstance(options, dict) or boolean(options.get("include_usage", False)) \
            or set(options) - {"include_usage", "include_obfuscation"}:
        raise UsageError(f"stream_options is {shown(options)}; give {{\"include_usage\": true}}")
    return options.get("include_usage", False)


def _sampling(found, warnings):
    """What GPT2.stream takes, and the seed, a new one where there is none; warnings are added to.
    """
    temperature = found.get("temperature", 1)
    sampling = {"temperature": temperature,
                "repetition_penalty": found.get("repetition_penalty", 1)}
    idle = {"top_p": 1, "top_k": 0, "seed": -1}  # as vLLM and llama.cpp say that there is none
    said = {name: found[name] for name, none in idle.items()
            if found.get(name, none) not in (none, -1)}
    if temperature == 0:
        warnings += [f"{name} has no effect: temperature is 0, where nothing is drawn"
                     for name in said]
        return sampling, None
    seed = said.pop("seed", secrets.randbits(32))
    return {**sampling, **said}, seed


def say_texts(job: TextJob, texts: Texts) -> dict[str, Any]:
    """What is answered of a finished job. Raises what its failure is, see `require_done`."""
    require_done(job)
    choices = [_choice(index, (texts.asked.prompt if texts.echo else "")
                       + "".join(piece.text for piece in job.pieces if piece.index == index),
                       next(piece.stopped for piece in reversed(job.pieces)
                            if piece.index == index))
               for index in range(job.count)]
    warnings = [*texts.warnings, *job.warnings]
    return {**_about(job, texts), "choices": choices, "usage": _count(job),
            **({"warnings": warnings} if warnings else {})}


def chunk(job: TextJob, texts: Texts, index: int, piece: str, stopped: str = "") -> dict[str, Any]:
    """A piece of a text, as a stream says it."""
    return {**_about(job, texts), "choices": [_choice(index, piece, stopped)],
            **({"usage": None} if texts.usage else {})}


def counted(job: TextJob, texts: Texts) -> dict[str, Any]:
    """The end of a stream that counts tokens."""
    return {**_about(job, texts), "choices": [], "usage": _count(job)}


def _about(job, texts):
    return {"id": f"cmpl-{job.id}", "object": "text_completion", "created": int(job.created),
            "model": texts.asked.model, **({} if texts.asked.seed is None
                                           else {"seed": texts.asked.seed})}


def _choice(index, piece, stopped):
    reason = {"": None, "length": "length"}.get(stopped, "stop")
    return {"index": index, "text": piece, "logprobs": None, "finish_reason": reason}


def _count(job):
    """How many tokens were read and written."""
    read, written = job.prompt_tokens, len(job.pieces)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
