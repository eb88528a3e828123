"""Commands that are families of actions, one file each: their help, and a missing word."""

import argparse
from typing import NoReturn

from refsd.cli.arguments import Parser
from refsd.errors import UsageError

FAMILIES = {
    "golden": ("make", "info", "compare", "bisect", "same", "simulate", "export"),
    "export": ("tokenizer", "weights", "contracts"),
    "port": ("new", "status"),
    "lora": ("inspect",),
}
ABOUT = {
    "golden": """\
Golden packs: reference tensors with the tolerance that each deserves.

    refsd golden make -o FOLDER       run a model and record it
    refsd golden info PACK            what is in it; --verify checks every byte
    refsd golden compare PACK MINE    what differs, and what it looks like
    refsd golden bisect PACK MINE     the first op whose error is its own
    refsd golden same RUN RUN         whether two runs of a port gave the same bits
    refsd golden simulate             a model in bf16, fp16 and others, emulated
    refsd golden export PACK          npz, npy, raw, ONNX; NHWC, NC4HW4, tiles""",
    "export": """\
Parts of a model as plain files, for other languages and devices.

    refsd export tokenizer -o FOLDER   vocabulary and merges, as flat arrays too
    refsd export weights -o FOLDER     raw, npy or safetensors, in any layout
    refsd export contracts -o FOLDER   of ops and stages: JSON, pytest, C header""",
    "port": """\
Bring Stable Diffusion up on another accelerator, browser or compiler.

    refsd port new NAME        a folder with the order of work, tests and packs
    refsd port status FOLDER   what is proven so far""",
    "lora": """\
LoRA and its relatives: small files that change a model (--lora of refsd draw).

    refsd lora inspect FILE    what it is, for which models, and what would be ignored""",
}


class Family:
    """What answers where no action of the family was named."""

    def __init__(self, name: str):
        self.name, self.actions = name, ", ".join(FAMILIES[name])

    def parser(self) -> Parser:
        """The help of the family; each action has options of its own."""
        found = Parser(f"refsd {self.name} ACTION [options]", ABOUT[self.name])
        found.add_argument("action", metavar="ACTION", nargs="?", help=self.actions)
        return found.answering("any error as JSON on stdout")

    def run(self, options: argparse.Namespace) -> NoReturn:
        """UsageError names the actions that there are."""
        word = options.action
        got = "no action is given" if word is None else f"no action {word[:40]!r}"
        raise UsageError(f"{self.name}: {got}; give one of {self.actions}. See refsd {self.name} "
                         "--help")
