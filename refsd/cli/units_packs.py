"""The units of `refsd golden make --suite FILE --dask ADDRESS`: a pack each.

A unit's key is made of what a manifest says: recipe, files of weights, versions. So a pack that is
there is known by its own words.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refsd.cli import drawing, farming, golden_run
from refsd.cli.costs import Costs
from refsd.errors import UsageError
from refsd.farm.units import Job, Unit, key_of
from refsd.golden.packs.writer import machine, plain, versions
from refsd.golden.recording.request import Request

OPTIONS = ("variant", "download", "record_steps", "include", "exclude", "op", "attention",
           "no_tolerances", "spread", "spread_formats")


def run(options: argparse.Namespace, level: int, sampler: str | None) -> list[dict[str, Any]]:
    """Have the packs of a suite made; what is said of each."""
    made = {}

    def on_done(unit, said):
        made[unit.name] = {"folder": os.path.join(options.output, unit.name), **said}

    farming.run(_job(options, level, sampler), options.dask, options.output, on_done, what="packs",
                show=not (options.quiet or options.json))
    return [made[run["name"]] for run in options.loaded.runs]


def _job(options, level, sampler):
    """The model is loaded for its defaults and costs, and goes before the workers load theirs."""
    pipe = golden_run.load(options, sampler)
    costs, selection = Costs(pipe), vars(golden_run.selection_of(options, level))
    files, units = options.about_model["files"], []
    for one in options.loaded.runs:
        request = golden_run.request_of(pipe, options, one)
        key = _key({**request.plain(), "selection": selection}, files, versions())
        units.append(Unit(key, one["name"], {"request": asdict(request),
                                             "spread": options.spread > 0},
                          costs.calling(request, request.check(pipe)), (one["name"],)))
        place = Path(options.output) / one["name"]
        if not options.resume and place.is_dir() and any(place.iterdir()):
            raise UsageError(f"{place}: is not empty. Give another folder, or --resume to go on "
                             "with what was interrupted")
    setup = {name: getattr(options, name) for name in OPTIONS}
    setup |= {"model": _anywhere(options.model), "level": level, "sampler": sampler}
    return Job("packs", setup, _identity(files), tuple(units))


def _anywhere(model):
    """A model that is a path, from the root: workers start in folders of their own."""
    return str(Path(model).resolve()) if model is not None and Path(model).exists() else model


def _identity(files):
    """A pack says what it was made with, and its last bits are those of a processor."""
    return {**drawing.versions("numpy"), **machine(), "model": key_of(files)}


def _key(recipe: Mapping[str, Any], files: Mapping[str, str], versions: Mapping[str, str]) -> str:
    return key_of({"recipe": plain(recipe), "files": files, "versions": versions})


def open_worker(setup: dict[str, Any]) -> "Recorder":
    """Load the model."""
    return Recorder(argparse.Namespace(**setup, quiet=True, json=True, resume=False, shard=(1, 1)))


def finished(unit: Unit, folder: Path) -> dict[str, Any] | None:
    """What is said of the pack, if it is there. UsageError for half of one, or another."""
    place = folder / unit.name
    manifest = golden_run.finished(str(place))
    if manifest is None and not (place.is_dir() and any(place.iterdir())):
        return None
    if manifest is None or (unit.recipe["spread"] and not golden_run.has_spread(manifest)):
        raise UsageError(f"{place}: there is a part of a pack, which workers do not go on with. "
                         "Finish it with --resume and without --dask, or remove it")
    if _key(manifest.recipe, manifest.model["files"], manifest.versions) != unit.key:
        raise UsageError(f"{place}: there is a pack of another recipe, model or version. Give "
                         "another folder, or remove it")
    return _said(golden_run.made(str(place), manifest))


def _said(made):
    return {key: value for key, value in made.items() if key != "folder"}


class Recorder:
    """A worker: a model in float64 that is recorded time and again."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.pipe = golden_run.load(options, options.sampler)
        self.identity = _identity(options.about_model["files"])

    def do(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Record it."""
        return _said(golden_run.record(self.pipe, self.options, str(folder / unit.name),
                                       Request(**unit.recipe["request"]), self.options.level,
                                       unit.name))
