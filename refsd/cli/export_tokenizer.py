"""`refsd export tokenizer`: the vocabulary, the merges and all tables as plain files."""

import argparse

from refsd.cli.arguments import Parser, choice
from refsd.cli.report import answer

ABOUT = """\
Write a tokenizer as vocab.json and merges.txt, and as flat arrays that hold all
that encoding needs: bytes, merges by rank, Unicode's letters, digits and lower
case. README.md beside them gives the algorithm in six steps."""
KINDS = ("raw", "npy", "npz", "safetensors")


def parser() -> Parser:
    """The options of export tokenizer."""
    parser = Parser("refsd export tokenizer -o FOLDER [options]", ABOUT)
    add = parser.add_argument
    add("-o", "--output", metavar="FOLDER", required=True, help="a new or an empty folder")
    add("-m", "--model", metavar="MODEL", help="path or hub id of the model whose tokenizer it is; "
        "without it CLIP's own")
    add("--to", type=choice(*KINDS), metavar="KIND", default="raw",
        help=f"what the arrays are written as: {', '.join(KINDS)} (raw)")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Write it."""
    from refsd.golden.porting.tokenizer_export import export_tokenizer
    from refsd.text.vocabulary import clip_vocabulary, read_vocabulary
    from refsd.weights import resolve

    source = None if options.model is None else resolve(options.model) / "tokenizer"
    own = source is not None and source.is_dir()  # single files have none: theirs is CLIP's
    vocabulary = read_vocabulary(source) if own else clip_vocabulary()
    folder = export_tokenizer(vocabulary, options.output, kind=options.to)
    tokens, merges = len(vocabulary.tokens), len(vocabulary.merges)
    return answer(
        options.json, {"folder": str(folder), "tokens": tokens, "merges": merges,
                       "length": vocabulary.length},
        f"{folder}: {tokens:,} tokens, {merges:,} merges; README.md says how to use them")
