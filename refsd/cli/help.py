"""`refsd --help`: all commands on one screen, and the options that a first visit needs."""

import argparse
import textwrap

from refsd.cli import actions
from refsd.cli.arguments import Parser
from refsd.cli.commands import COMMANDS, GROUPS, find
from refsd.cli.report import result
from refsd.pipelines.request import check_choice

BEGINNING = """\
usage: refsd PROMPT [options], or refsd COMMAND [options]  (python -m refsd is the same)

    refsd "a glossy red sphere left of a small blue cube"

draws this with the small model in refsd. A prompt that is a word below goes after -p.
"""
COLUMN, WIDTH = 22, 88


def parser() -> Parser:
    """The options of help."""
    parser = Parser("refsd help [COMMAND]", "Show all commands, or the options of one.")
    parser.add_argument("command", metavar="COMMAND", nargs="?",
                        help="the command whose options are wanted")
    return parser.answering("any error as JSON on stdout")


def run(options: argparse.Namespace) -> int:
    """Show it, on stdout."""
    if options.command is None:
        result(overview())
    else:
        check_choice("help: COMMAND", options.command, COMMANDS)
        result(find(options.command).parser().format_help().rstrip("\n"))
    return 0


def overview() -> str:
    """The page of all commands: at most 40 lines of 88 characters."""
    lines = [BEGINNING]
    for title, group in GROUPS.items():
        lines.append(f"{title}:")
        for name, (rest, about) in group.items():
            lines.append(_row(f"{name} {rest}", about))
            if len(actions.FAMILIES.get(name, ())) > 1:
                lines += _rows("", ", ".join(actions.FAMILIES[name]))
    lines += ["options of drawing (refsd draw --help has them all):",
              _row("-m MODEL", "a folder, a .safetensors or .gguf file, a Hugging Face id"),
              _row("-o FILE, -s SEED", "where to, and which of all pictures; --preview N: so far"),
              _row("-W N, -H N, --steps N", "size, and denoising steps; --sampler: refsd samplers")]
    return "\n".join(lines)


def _rows(name: str, about: str) -> list[str]:
    first, *rest = textwrap.wrap(about, WIDTH - COLUMN - 3)
    return [_row(name, first), *(_row("", line) for line in rest)]


def _row(name: str, about: str) -> str:
    return f"  {name:<{COLUMN}} {about}".rstrip()
