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
from refsd.pipelines.request import NUMBERS
from refsd.rules import anything, check, check_schema, each, integer, matching, optional, that
from refsd.weights.files import read_object

SCHEMA = 1
INDEX = "suite.json"
TEXT = that(lambda value: isinstance(value, str), "a text")
NAME = matching(re.compile(r"[a-z0-9][a-z0-9_-]{0,63}"), "small letters, digits, - and _")
RUN_RULES = {"prompt": TEXT, "negative_prompt": TEXT, "sampler": TEXT, "rng": TEXT,
             **{key: rule for key, rule in NUMBERS.items() if key != "threads"}}
ROW_RULES = {**RUN_RULES, "name": NAME, "folder": NAME,
             "manifest": optional(matching(re.compile(r"[0-9a-f]{64}"), "a SHA-256"))}
SUITE_RULES = {"schema": anything, "title": TEXT, "model": optional(TEXT), "level": integer(0, 4),
               "defaults": anything, "runs": each(anything, 1)}


@dataclass(frozen=True)
class Suite:
    """A suite as its file has it; each run's `name` names its pack's folder."""

    title: str
    model: str | None
    level: int
    runs: list[dict[str, Any]]


def read_suite(path: str | Path) -> Suite:
    """The suite in a JSON file. Raises UsageError for keys, types and names that are unknown."""
    try:
        suite = read_object(Path(path))
    except ModelError as error:
        raise UsageError(str(error)) from None
    where = str(path)
    check_schema(suite.get("schema"), SCHEMA, where, "the suite", error=UsageError)
    check(suite, SUITE_RULES, where, optional=SUITE_RULES.keys() - {"runs"}, error=UsageError)
    defaults, runs, names = suite.get("defaults", {}), [], set()
    check(defaults, RUN_RULES, f"{where}: defaults", optional=RUN_RULES, error=UsageError)
    for i, run in enumerate(suite["runs"], 1):
        where = f"{path}: run {i}"
        check(run, {**RUN_RULES, "name": NAME}, where, optional=[*RUN_RULES, "name"],
              error=UsageError)
        name = run.get("name", f"run-{i:03d}")
        if name in names:
            raise UsageError(f"{where}: name is {name!r}; give one of its own")
        names.add(name)
        run = {**defaults, **run, "name": name}
        if "prompt" not in run:
            raise UsageError(f"{where} has no prompt; write one")
        runs.append(run)
    return Suite(suite.get("title", ""), suite.get("model"), suite.get("level", 1), runs)


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
    data = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("ascii")
    write_file(folder / INDEX, [data])
    return rows


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The packs of a suite as write_index lists them. Raises ModelError."""
    where = str(folder / INDEX)
    index = read_object(folder / INDEX)
    check_schema(index.get("schema"), SCHEMA, where, "the suite's index")
    check(index, {"schema": anything, "title": TEXT, "packs": each(anything, 1)}, where)
    for i, row in enumerate(index["packs"], 1):
        check(row, ROW_RULES, f"{where}: pack {i}", optional=RUN_RULES)
    return index["packs"]
