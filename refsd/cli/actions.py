"""Commands that are families of actions, one file each: their help, and a missing word."""

import argparse
from typing import NoReturn

from refsd.cli.arguments import Parser
from refsd.errors import UsageError


def parser(name: str, about: str, actions: tuple[str, ...]) -> Parser:
    """The help of a family; each action has options of its own."""
    found = Parser(prog=f"refsd {name}", description=about,
                   usage=f"refsd {name} ACTION [options]")
    found.add_argument("action", metavar="ACTION", nargs="?", help=", ".join(actions))
    found.add_argument("--json", action="store_true", help="any error as JSON on stdout")
    found.add_argument("-v", "--verbose", action="store_true", help="tracebacks of errors")
    return found


def refuse(name: str, options: argparse.Namespace, actions: tuple[str, ...]) -> NoReturn:
    """Reached without an action only: UsageError names those there are."""
    got = "no action is given" if options.action is None else f"no action {options.action[:40]!r}"
    raise UsageError(f"{name}: {got}; give one of {', '.join(actions)}. See refsd {name} --help")
