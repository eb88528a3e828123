"""Suites: many runs of one model from one JSON file, a pack a prompt and an index of them.

    {"schema": 1, "title": "...", "model": null, "level": 1,
     "defaults": {"steps": 20, "sampler": "ddim", "cfg_scale": 7.5, ...},
     "runs": [{"name": "fox", "prompt": "a red fox", "seed": 7, ...}, ...]}

What a run does not say, the defaults do, and what they do not, the command line or the model.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsd.atomic import write_file
from refsd.errors import ModelError, UsageError
from refsd.golden.packs.writer import MANIFEST
from refsd.weights.files import read_object

SCHEMA = 1
INDEX = "suite.json"
NUMBER, WHOLE, TEXT = (int, float), (int,), (str,)
# What a run may say, and the types of it.
KEYS = {"prompt": TEXT, "negative_prompt": TEXT, "seed": WHOLE, "steps": WHOLE, "sampler": TEXT,
        "cfg_scale": NUMBER, "guidance_rescale": NUMBER, "eta": NUMBER, "clip_skip": WHOLE,
        "width": WHOLE, "height": WHOLE, "rng": TEXT}
TOP = {"schema": WHOLE, "title": TEXT, "model": (str, type(None)), "level": WHOLE,
       "defaults": (dict,), "runs": (list,)}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Suite:
    """A suite as its file has it; each run's `name` names its pack's folder."""

    title: str
    model: str | None
    level: int
    runs: list[dict[str, Any]]


def read_suite(path: str | Path) -> Suite:
    """The suite in a JSON file. Raises UsageError for keys, types and names that are not known."""
    try:
        found = read_object(Path(path))
    except ModelError as error:
        raise UsageError(str(error)) from None
    _check(found, TOP, str(path))
    missing = [key for key in ("schema", "runs") if key not in found]
    if missing:
        raise UsageError(f"{path}: there is no {missing[0]!r}")
    if found["schema"] != SCHEMA:
        raise UsageError(f"{path}: schema is {found['schema']}, this refsd reads {SCHEMA}")
    defaults, runs, names = found.get("defaults", {}), [], set()
    _check(defaults, KEYS, f"{path}: defaults")
    for i, run in enumerate(found["runs"], 1):
        where = f"{path}: run {i}"
        if not isinstance(run, dict):
            raise UsageError(f"{where} is a {type(run).__name__}; give an object")
        _check(run, {**KEYS, "name": TEXT}, where)
        name = run.get("name", f"run-{i:03d}")
        if not NAME.fullmatch(name) or name in names:
            raise UsageError(f"{where}: name is {name[:80]!r}; give one of its own, of small "
                             "letters, digits, - and _")
        names.add(name)
        run = {**defaults, **run, "name": name}
        if "prompt" not in run:
            raise UsageError(f"{where} has no prompt")
        runs.append(run)
    if not runs:
        raise UsageError(f"{path}: there are no runs")
    return Suite(found.get("title", ""), found.get("model"), found.get("level", 1), runs)


def _check(found, keys, where):
    for key, value in found.items():
        if key not in keys:
            raise UsageError(f"{where}: unknown key {key[:80]!r}; give some of {', '.join(keys)}")
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            raise UsageError(f"{where}: {key} is {str(value)[:80]!r}; give "
                             + " or ".join(kind.__name__ for kind in keys[key]))


def write_index(folder: Path, suite: Suite) -> list[dict[str, Any]]:
    """suite.json: every pack that is there, with its manifest's SHA-256, and those still to come.

    Several processes may each make a shard of the packs: whichever comes last lists them all.
    """
    rows = []
    for run in suite.runs:
        manifest = folder / run["name"] / MANIFEST
        there = manifest.is_file()
        rows.append({**run, "folder": run["name"],
                     "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest() if there else
                     None})
    index = {"schema": SCHEMA, "title": suite.title, "packs": rows}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    write_file(folder / INDEX, [text.encode("ascii")])
    return rows
