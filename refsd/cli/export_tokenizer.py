"""`refsd export tokenizer`: the vocabulary, the merges and all tables as plain files."""

import argparse
from typing import Any

from refsd.cli.arguments import Parser, choice
from refsd.cli.report import answer

ABOUT = """\
Write a tokenizer as vocab.json and merges.txt, and as flat arrays that hold all
that encoding needs: bytes, merges by rank, Unicode's letters, digits and lower
case. README.md beside them gives the algorithm in six steps."""
PARTS = ("tokenizer", "tokenizer_2")
KINDS = ("raw", "npy", "npz", "safetensors")


def parser() -> Parser:
    """The options of export tokenizer."""
    parser = Parser("refsd export tokenizer -o FOLDER [options]", ABOUT)
    add = parser.add_argument
    add("-o", "--output", metavar="FOLDER", required=True, help="a new or an empty folder")
    add("-m", "--model", metavar="MODEL", help="path or hub id of the model whose tokenizer it is; "
        "without it CLIP's own")
    add("--part", type=choice(*PARTS), metavar="PART", default=PARTS[0],
        help="that of a second text encoder: tokenizer_2; T5's has a tokenizer.json already")
    add("--to", type=choice(*KINDS), metavar="KIND", default="raw",
        help=f"what the arrays are written as: {', '.join(KINDS)} (raw)")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Write it."""
    from refsd.golden.porting.tokenizer_export import export_tokenizer

    vocabulary = _vocabulary(options.model, options.part)
    folder = export_tokenizer(vocabulary, options.output, kind=options.to)
    tokens, merges = len(vocabulary.tokens), len(vocabulary.merges)
    return answer(
        options.json, {"folder": str(folder), "tokens": tokens, "merges": merges,
                       "length": vocabulary.length},
        f"{folder}: {tokens:,} tokens, {merges:,} merges; README.md says how to use them")


def _vocabulary(model: str | None, part: str) -> Any:
    """That of the model's folder; of a single file, which has none, CLIP's as its family pads."""
    from refsd.errors import UsageError
    from refsd.text.vocabulary import EOS, clip_vocabulary, read_vocabulary
    from refsd.weights import resolve
    from refsd.weights.plan import family_at

    if model is None:
        return clip_vocabulary()
    place = resolve(model)
    if (place / part).is_dir():
        return read_vocabulary(place / part)
    family = family_at(place)
    if part not in family.tokenizers:
        raise UsageError(f"{place}: {family.name}, which has no {part}; give one of "
                         f"{', '.join(family.tokenizers)}")
    return clip_vocabulary(family.pads.get(part, EOS) if place.is_file() else EOS)
