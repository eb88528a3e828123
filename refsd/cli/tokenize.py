"""`refsd tokenize TEXT`: the tokens that a prompt becomes."""

import argparse
from typing import Any

from refsd.cli.arguments import Parser
from refsd.cli.report import one_line, result, result_json
from refsd.errors import UsageError

ABOUT = """\
Show the tokens that a text becomes, one a line: id, name in the vocabulary, and
the part of the text it stands for. A prompt has room for 75 in Stable Diffusion."""


def parser() -> Parser:
    """The options of tokenize."""
    parser = Parser("refsd tokenize TEXT [options]", ABOUT)
    add = parser.add_argument
    add("text", metavar="TEXT", help="a prompt, in quotes")
    add_options(parser)
    return parser.answering()


def add_options(parser: Parser) -> None:
    """The options that say whose tokenizer is wanted."""
    add = parser.add_argument
    add("-m", "--model", metavar="MODEL",
        help="whose tokenizer: a diffusers or GPT-2 folder, a .safetensors file, or a model id "
        "(default: the model in refsd)")
    add("--clip", action="store_true", help="CLIP's, that of every Stable Diffusion 1.x")


def run(options: argparse.Namespace) -> int:
    """Show ids and pieces, and what does not fit."""
    tokenizer = _gpt2s(options) or chosen(options)
    pieces, lost, room = tokenizer.pieces(options.text), "", ""
    if hasattr(tokenizer, "truncated"):  # CLIP's, which makes all prompts as long
        ids, source = tokenizer(options.text)[0].tolist(), tokenizer.vocabulary.source
        lost = tokenizer.truncated(options.text)
        room = f" of {tokenizer.model_max_length - 2}"
    else:
        ids, source = tokenizer(options.text), tokenizer.source
    if options.json:
        result_json({"text": options.text, "source": source, "ids": ids,
                     "tokens": [piece._asdict() for piece in pieces], "truncated": lost})
        return 0
    for piece in pieces:
        result(one_line(f"{piece.id:>6}  {piece.token:<20} {piece.text!r}"))
    result(f"{len(pieces)} tokens{room}" + (
        f"; this does not fit and is dropped: {one_line(lost, 200)!r}" if lost else ""))
    return 0


def _gpt2s(options: argparse.Namespace) -> Any:
    """The tokenizer of a GPT-2's folder; None where --model is something else."""
    from refsd.weights import resolve

    place = None if options.clip or options.model is None else resolve(options.model)
    if place is None or not place.is_dir():
        return None
    from refsd.text.gpt2 import GPT2Tokenizer
    from refsd.weights.gpt2 import is_gpt2

    return GPT2Tokenizer.from_folder(place) if is_gpt2(place) else None


def chosen(options: argparse.Namespace) -> Any:
    """The tokenizer of the options; UsageError where they contradict each other."""
    from refsd.text import CLIPTokenizer

    if options.clip and options.model is not None:
        raise UsageError("--clip and --model exclude each other; give one")
    if options.clip:
        return CLIPTokenizer.clip()
    from refsd.pipelines.loading import bundled_model
    from refsd.weights import resolve

    place = bundled_model() if options.model is None else resolve(options.model)
    if place.is_dir() and (place / "tokenizer").is_dir():
        return CLIPTokenizer.from_folder(place / "tokenizer")
    return CLIPTokenizer.clip()
