"""Units of work: pieces of a job that may be done anywhere, in any order, and more than once.

A unit is a recipe, the key of what decides its results, and what they are called in the job's
folder. What it is a unit of is known to the module that KINDS names, which has

    open_worker(setup) -> Worker             ready to do units, with its model loaded
    finished(unit, folder) -> dict | None    what is said of a unit whose results are there, whole

A unit that is done twice gives the same bytes twice, so that either may be kept.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from refsd.atomic import writing
from refsd.errors import ResourceError, UsageError

KINDS = {"pictures": "refsd.cli.units_pictures", "packs": "refsd.cli.units_packs",
         "comparisons": "refsd.cli.units_comparisons"}


@dataclass(frozen=True)
class Unit:
    """A piece of work: `name` is for people, `cost` says how long beside other units of the job.

    `recipe` is what JSON can hold; `results` are names of files or folders in the job's folder.
    """

    key: str
    name: str
    recipe: dict[str, Any]
    cost: int
    results: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """Units of one kind, with different keys, and what they have in common.

    `setup` is what a worker is opened with, as JSON has it; `identity` what a worker has to be,
    such as the model's hash: one that is anything else gives other bytes.
    """

    kind: str
    setup: dict[str, Any]
    identity: dict[str, str]
    units: tuple[Unit, ...]


class Worker(Protocol):
    """What does units, one after the other."""

    identity: dict[str, str]

    def do(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Write the results into a folder that is its own; what is said of them, as JSON has it.
        """


def key_of(decisive: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of the SHA-256 of what decides a result, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def kind_of(name: str) -> Any:
    """The module that does units of a kind. Raises UsageError."""
    if name not in KINDS:
        raise UsageError(f"there are no units of the kind {name[:40]!r}; give one of "
                         + ", ".join(KINDS))
    return importlib.import_module(KINDS[name])


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What of a worker's identity is not as it has to be, each in words."""
    return [f"{key} is {found.get(key, 'not said')}, not {wanted.get(key, 'known here')}"
            for key in sorted({*wanted, *found}) if wanted.get(key) != found.get(key)]


def settle(unit: Unit, made: Path, folder: Path) -> None:
    """Move a unit's results from where it was done into the job's folder, on one file system.

    Each appears whole. A file takes an older one's place; a folder that is there already is kept.
    Raises ResourceError, also for a result that was not made.
    """
    for name in unit.results:
        source, place = made / name, folder / name
        if not os.path.lexists(source):
            raise ResourceError(f"{unit.name}: {source} was not made. Run the unit again")
        with writing(place):
            if not (place.is_dir() and any(place.iterdir())):
                os.replace(source, place)
