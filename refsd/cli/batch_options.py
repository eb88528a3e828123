"""The options of `refsd --prompts FILE`, which batch.py answers to."""

import argparse

from refsd.cli.arguments import Parser
from refsd.errors import UsageError


def add_options(parser: Parser) -> None:
    """The options of many requests."""
    add = parser.add_argument_group("many pictures").add_argument
    add("--prompts", metavar="FILE",
        help="a prompt a line, or JSON lines with prompt, negative_prompt, seed, width, ...: a "
        "picture each in the folder of -o, named by a hash of its recipe; those that are there "
        "are not drawn again; a line of JSON each on stdout")
    add("--results", metavar="FILE", help="write these lines to a file instead (.jsonl)")


def wanted(options: argparse.Namespace) -> bool:
    """Whether a file of prompts is to be drawn; UsageError for --results without one."""
    if options.prompts is None and options.results is not None:
        raise UsageError("--results is for the pictures of --prompts; give --prompts FILE too")
    return options.prompts is not None
