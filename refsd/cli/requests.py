"""--prompts FILE: many requests in one file, read and refused line by line before any is drawn."""

import argparse
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from refsd.arguments import nearest, shown
from refsd.cli import sampler_names
from refsd.cli.recipe import RNGS
from refsd.dialects.names import find, spelled
from refsd.errors import ModelError, UsageError
from refsd.pipelines.request import NUMBERS, check_choice
from refsd.rules import Rule, as_kind, number

MAX_FILE = 64 << 20
MAX_LINES = 100_000
ENDINGS = (".jsonl", ".ndjson", ".json")
FIELDS = ("prompt", "negative_prompt", "seed", "width", "height", "steps", "cfg_scale",
          "guidance_rescale", "eta", "clip_skip", "sampler", "rng", "compat", "variation_seed",
          "variation_strength")
# What diffusers, A1111's API and sd-cli call the same.
ELSEWHERE = {"negative": "negative_prompt", "num_inference_steps": "steps", "n_steps": "steps",
             "guidance_scale": "cfg_scale", "cfg": "cfg_scale", "sampler_name": "sampler",
             "sampling_method": "sampler", "sample_method": "sampler", "scheduler": "sampler",
             "subseed": "variation_seed", "subseed_strength": "variation_strength"}
RULES = {**NUMBERS, "variation_seed": NUMBERS["seed"], "variation_strength": number(0, 1)}


class Request(NamedTuple):
    """A line of the file: its number, and the options of drawing with what it says put in."""

    line: int
    options: argparse.Namespace


def read_requests(path: str, options: argparse.Namespace, prompt: str | None) -> list[Request]:
    """The requests of a file: a prompt a line, or an object of FIELDS a line (JSON lines).

    What a line does not say is as the command line says; `prompt` is its own prompt. Raises
    BadLines.
    """
    from refsd.weights.files import read_bytes  # refsd.weights imports NumPy

    data = read_bytes(path, limit=MAX_FILE, error=UsageError).removeprefix(b"\xef\xbb\xbf")
    lines = [(place, line) for place, line in enumerate(data.splitlines(), 1) if line.strip()]
    if not 1 <= len(lines) <= MAX_LINES:
        raise UsageError(f"{path}: {len(lines):,} lines with a request; give 1 to {MAX_LINES:,}")
    as_json = path.lower().endswith(ENDINGS) or lines[0][1].lstrip().startswith(b'{"')
    requests, problems = [], []
    for place, line in lines:
        try:
            said = _object(line, path) if as_json else {"prompt": _text(line)}
            requests.append(Request(place, _with(options, said, prompt)))
        except UsageError as problem:
            problems.append(f"{path}, line {place}: {problem}")
    if problems:
        raise BadLines(problems)
    return requests


class BadLines(UsageError):
    """`problems` has a line for each line that cannot be a request."""

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text (byte {error.start}); save the file as UTF-8") from None


def _is_text(value: str) -> bool:
    """Whether it has no halves of surrogate pairs, which no tokenizer can read."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(line: bytes, path: str) -> dict[str, Any]:
    """The fields of a line of JSON under refsd's names; null is what is not said."""
    from refsd.weights.files import parse_json

    try:
        found = parse_json(_text(line), "the line")
    except ModelError as error:
        raise UsageError(f"{error}. Give an object such as {{\"prompt\": \"...\"}}") from None
    if not isinstance(found, dict):
        raise UsageError(f"a JSON {type(found).__name__}; give an object such as "
                         "{\"prompt\": \"...\"}")
    return named(found, FIELDS)


def named(found: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """What is said of the fields, under refsd's names; null is what is not said.

    UsageError for a field that there is not, with the nearest that there is, or one given twice.
    """
    said: dict[str, Any] = {}
    for key, value in found.items():
        name = key if key in fields else ELSEWHERE.get(key, key)
        if name not in fields:
            hint = nearest(key, fields)
            raise UsageError(f"there is no field {shown(key)}; {hint and hint + ' '}give "
                             + ", ".join(fields))
        if name in said:
            raise UsageError(f"{name} is given twice, also as {key}; give it once")
        if value is not None:
            said[name] = value
    return said


def checked(said: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The values, numbers as their rules want them, all others texts; UsageError names the field.
    """
    found = {}
    for name, value in said.items():
        if name in rules:
            value = as_kind(value, 0)
            if wanted := rules[name](value):
                raise UsageError(f"{name} is {shown(value)}; give {wanted}")
        elif not isinstance(value, str) or not _is_text(value):
            raise UsageError(f"{name} is {shown(value)}; give a text")
        found[name] = value
    return found


def _with(options, said, prompt):
    """The options with a line's own values, each checked."""
    said = checked(said, RULES)
    prompt = said.pop("prompt", prompt)
    if prompt is None:
        raise UsageError("there is no prompt; give one")
    if "sampler" in said:
        said["sampler"] = sampler_names.find_sampler(said["sampler"])
    if "compat" in said:
        said["compat"] = spelled(find(said["compat"]))
    if "rng" in said:
        check_choice("rng", said["rng"], RNGS)
    return argparse.Namespace(**{**vars(options), **said, "prompt": prompt, "words": None})
