"""`refsd export`: what porters need of a model, as plain files; one file an action."""

import argparse
from typing import NoReturn

from refsd.cli import actions
from refsd.cli.arguments import Parser

ABOUT = """\
Parts of a model as plain files, for other languages and devices.

    refsd export tokenizer -o FOLDER   vocabulary and merges, as flat arrays too
    refsd export weights -o FOLDER     raw, npy or safetensors, in any layout
    refsd export contracts -o FOLDER   of ops and stages: JSON, pytest, C header"""
ACTIONS = ("tokenizer", "weights", "contracts")


def parser() -> Parser:
    """The help of the family."""
    return actions.parser("export", ABOUT, ACTIONS)


def run(options: argparse.Namespace) -> NoReturn:
    """Reached without an action only."""
    actions.refuse("export", options, ACTIONS)
