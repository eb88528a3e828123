"""`refsd port`: bringing Stable Diffusion up elsewhere; one file an action."""

import argparse
from typing import NoReturn

from refsd.cli import actions
from refsd.cli.arguments import Parser

ABOUT = """\
Bring Stable Diffusion up on another accelerator, browser or compiler.

    refsd port new NAME        a folder with the order of work, tests and packs
    refsd port status FOLDER   what is proven so far"""
ACTIONS = ("new", "status")


def parser() -> Parser:
    """The help of the family."""
    return actions.parser("port", ABOUT, ACTIONS)


def run(options: argparse.Namespace) -> NoReturn:
    """Reached without an action only."""
    actions.refuse("port", options, ACTIONS)
