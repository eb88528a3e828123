"""The options of `refsd --prompts FILE`, which batch.py answers to."""

import argparse

from refsd.cli import farming
from refsd.cli.arguments import Parser, fraction
from refsd.errors import UsageError


def add_options(parser: Parser) -> None:
    """The options of many requests."""
    add = parser.add_argument_group("many pictures").add_argument
    add("--prompts", metavar="FILE",
        help="a prompt a line, or JSON lines with prompt, negative_prompt, seed, width, ...: a "
        "picture each in the folder of -o, named by a hash of its recipe; those that are there "
        "are not drawn again; a line of JSON each on stdout")
    add("--results", metavar="FILE", help="write these lines to a file instead (.jsonl)")
    add("--shard", metavar="I/N", type=fraction,
        help="draw the I-th of N parts, which take about the same time; {shard} in --results is "
        "filled in")
    farming.add_option(add, "pictures")


def wanted(options: argparse.Namespace) -> bool:
    """Whether a file of prompts is to be drawn; UsageError for what is of no use without one."""
    for name in ("results", "shard", "dask"):
        if options.prompts is None and getattr(options, name) is not None:
            raise UsageError(f"--{name} is for the pictures of --prompts; give --prompts FILE too")
    return options.prompts is not None
