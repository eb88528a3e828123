"""`refsd dialects PROMPT`: what diffusers, A1111 and ComfyUI each read in it."""

import argparse
from collections.abc import Iterator
from typing import Any

from refsd.cli import tokenize
from refsd.cli.arguments import Parser, integer
from refsd.cli.report import one_line, result, result_json
from refsd.dialects import DIALECTS
from refsd.dialects.names import find, spelled
from refsd.pipelines.request import check_numbers

ABOUT = """\
Show how each dialect reads a prompt: which prompts it is made of and how they
weigh, which text the model reads in which steps, and the chunks of each text,
token by token with its weight. docs/dialects.md says where the rules are from."""


def parser() -> Parser:
    """The options of dialects."""
    parser = Parser("refsd dialects PROMPT [options]", ABOUT)
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="the prompt, in quotes")
    tokenize.add_options(parser)
    add("--compat", metavar="NAME", help=f"only this one of {', '.join(DIALECTS)}")
    add("--steps", type=integer, metavar="N", default=20, help="denoising steps (20)")
    add("--negative", action="store_true", help="as a negative prompt, which has no AND in A1111")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Read the prompt in each dialect."""
    chosen = DIALECTS.values() if options.compat is None else [
        find(options.compat)]
    check_numbers({"steps": options.steps}, lambda key: f"--{key}")
    tokenizer = tokenize.chosen(options)
    readings = [_reading(dialect, tokenizer, options) for dialect in chosen]
    if options.json:
        result_json({"prompt": options.prompt, "steps": options.steps,
                     "source": tokenizer.vocabulary.source, "dialects": readings})
        return 0
    for number, reading in enumerate(readings):
        if number:
            result("")
        for line in _in_words(reading, tokenizer):
            result(line)
    return 0


def _reading(dialect: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    from refsd.dialects.reading import read

    parts = []
    for weight, spells in read(dialect, tokenizer, options.prompt, options.steps,
                               negative=options.negative):
        first, versions = 1, []
        for spell in spells:
            last = min(spell.end + 1, options.steps)
            if last < first:
                continue
            tokens = [[{"id": id, "weight": weight, "text": text} for id, weight, text in
                       zip(chunk.ids[1:], chunk.weights[1:], chunk.texts)]
                      for chunk in spell.chunks]
            versions.append({"steps": [first, last], "text": spell.text, "chunks": tokens})
            first = last + 1
        parts.append({"weight": weight, "versions": versions})
    dropped = tokenizer.truncated(options.prompt) if dialect.syntax == "plain" else ""
    return {"name": spelled(dialect), "parts": parts, "dropped": dropped}


def _in_words(reading: dict[str, Any], tokenizer: Any) -> Iterator[str]:
    room = tokenizer.model_max_length - 2
    yield reading["name"]
    for number, part in enumerate(reading["parts"], 1):
        if len(reading["parts"]) > 1 or part["weight"] != 1:
            yield f"  prompt {number} of {len(reading['parts'])}, weight {part['weight']:g}"
        shown: set[str] = set()
        for version in part["versions"]:
            first, last = version["steps"]
            if len(part["versions"]) > 1:
                steps = f"step {first}" if first == last else f"steps {first} to {last}"
                yield one_line(f"  {steps}: {version['text']!r}", 200)
            if version["text"] in shown:
                continue
            shown.add(version["text"])
            for i, chunk in enumerate(version["chunks"], 1):
                yield f"    chunk {i} of {len(version['chunks'])}, {len(chunk)} of {room} tokens"
                for token in chunk:
                    yield one_line(f"    {token['id']:>6}  {token['weight']:<8.4g} "
                                   f"{token['text']!r}")
    if reading["dropped"]:
        yield f"  dropped: {one_line(reading['dropped'], 200)!r}"
