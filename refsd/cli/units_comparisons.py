"""The units of `refsd golden compare` over a suite: a pack and what a port wrote for it, each."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refsd.cli.golden_judging import rendered
from refsd.errors import ModelError
from refsd.farm.units import Unit
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.limits import Accepted
from refsd.golden.comparing.report import as_json, sheet
from refsd.golden.comparing.verdicts import AtLeast, Comparison
from refsd.golden.packs.pack import Pack
from refsd.golden.packs.writer import MANIFEST
from refsd.version import __version__

OPTIONS = ("format", "map", "layout", "dtype", "only", "given", "at_least", "accept_tolerance",
           "model", "all")


def identity() -> dict[str, str]:
    """What judges: the same everywhere, or one pack is held to other bounds than the next."""
    return {"refsd": __version__, "numpy": np.__version__}


def compared(pack: Pack, candidate: str, options: argparse.Namespace, *, maps: bool,
             on_tensor: Callable | None = None) -> Comparison:
    """What a port wrote, held to a pack as the options say."""
    accepted = None if options.accept_tolerance is None else Accepted(*options.accept_tolerance)
    with Candidate.open(candidate, name_map=options.map, dtype=options.dtype,
                        layout=options.layout) as found:
        return compare(pack, found, format=options.format, only=options.only, given=options.given,
                       accepted=accepted, model=options.model, whole=options.all,
                       at_least=AtLeast(*options.at_least), maps=maps, on_tensor=on_tensor)


def open_worker(setup: dict[str, Any]) -> "Judge":
    """Nothing is loaded before there is a pack."""
    return Judge(argparse.Namespace(**setup))


def finished(unit: Unit, folder: Path) -> None:
    """Nothing is kept of a comparison but what is said of it: it is made anew each time."""


class Judge:
    """A worker, which reads packs and candidates where the caller does."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.identity = options, identity()

    def do(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Compare. Raises ModelError where the pack is not the one of the suite's index."""
        pack, ends = Path(unit.recipe["pack"]), self.options.ends
        with Pack.open(pack) as opened:
            digest = hashlib.sha256((pack / MANIFEST).read_bytes()).hexdigest()
            if digest != unit.recipe["manifest"]:
                raise ModelError(f"{pack}: the manifest has the SHA-256 {digest}, and "
                                 f"{unit.recipe['manifest']} in suite.json. Make the suite anew, "
                                 "or take the pack that belongs to it")
            found = compared(opened, unit.recipe["candidate"], self.options, maps=".html" in ends)
        about, plain = sheet(found), as_json(found)
        return {"comparison": plain, "reports": {end: rendered(end, about, plain) for end in ends}}
