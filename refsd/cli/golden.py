"""`refsd golden`: reference tensors for those who port Stable Diffusion; one file an action."""

import argparse
from typing import NoReturn

from refsd.cli import actions
from refsd.cli.arguments import Parser

ABOUT = """\
Golden packs: reference tensors with the tolerance that each deserves.

    refsd golden make -o FOLDER       run a model and record it
    refsd golden info PACK            what is in it; --verify checks every byte
    refsd golden compare PACK MINE    what differs, and what it looks like
    refsd golden bisect PACK MINE     the first op whose error is its own
    refsd golden simulate             a model in bf16, fp16 and others, emulated
    refsd golden export PACK          npz, npy, raw, ONNX; NHWC, NC4HW4, tiles"""
ACTIONS = ("make", "info", "compare", "bisect", "simulate", "export")


def parser() -> Parser:
    """The help of the family."""
    return actions.parser("golden", ABOUT, ACTIONS)


def run(options: argparse.Namespace) -> NoReturn:
    """Reached without an action only."""
    actions.refuse("golden", options, ACTIONS)
