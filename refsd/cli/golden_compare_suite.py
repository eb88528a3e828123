"""`refsd golden compare PACKS MINE`: every pack of a suite with what a port wrote for it."""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from refsd.cli import farming
from refsd.cli.golden_judging import REPORTS
from refsd.cli.output import Target, save, try_out
from refsd.cli.progress import Progress
from refsd.cli.report import Warnings, note, one_line, result, result_json
from refsd.errors import ModelError, UsageError

INDEX, MANIFEST = "suite.json", "manifest.json"
ENDS = ("", ".npz", ".npy", ".safetensors")  # of what a port wrote for a pack


def is_suite(pack: str) -> bool:
    """Whether it is a folder of packs and not itself one."""
    return os.path.isfile(os.path.join(pack, INDEX)) and not os.path.exists(
        os.path.join(pack, MANIFEST))


def run(options: argparse.Namespace) -> int:
    """Compare each, write the reports, say what was found. 0: all packs are there and well."""
    from refsd.golden.recording.suites import read_index

    _check(options)
    with Warnings(show=not options.json):
        rows = read_index(Path(options.pack))
        absent = {row["name"]: why for row in rows if (why := _absent(row, options))}
        said = _judged(_mine(_units(rows, absent, options), options), options)
    packs = [{"name": row["name"], **_about(row["name"], absent, said)} for row in rows
             if row["name"] in absent or row["name"] in said]
    if options.json:
        result_json({"schema": 1, "kind": "golden-compare-suite", "suite": options.pack,
                     "ok": all(pack["ok"] for pack in packs), "packs": packs})
    else:
        for pack in packs:
            result(one_line(f"{'ok   ' if pack['ok'] else 'WRONG'} {pack['name']}: "
                            f"{pack['sentence']}"))
        well = sum(pack["ok"] for pack in packs)
        note(f"refsd: {well} of {len(packs)} packs are within the tolerance")
    return 0 if all(pack["ok"] for pack in packs) else 1


def _check(options):
    if options.every:
        raise UsageError("--every is for one pack: name one, or leave it out")
    if not os.path.isdir(options.candidate):
        raise UsageError(f"{options.candidate}: is no folder; for a suite give one, with a folder "
                         "or a file for each pack, under its name")
    for name in options.report:
        if "{name}" not in name:
            raise UsageError(f"--report {name}: each pack has a report of its own; write {{name}} "
                             "where its name is to stand, as in {name}.html")
        try_out(name.replace("{name}", "pack"), REPORTS)
    farming.check(options)


def _absent(row, options):
    """Why a pack cannot be compared, if so."""
    if row["manifest"] is None:
        return f"The pack has not been made yet: {os.path.join(options.pack, row['folder'])}."
    if _candidate(row, options) is None:
        return f"There is nothing of the port: {os.path.join(options.candidate, row['name'])}."
    return None


def _candidate(row, options):
    places = [os.path.join(options.candidate, row["name"] + end) for end in ENDS]
    return next((place for place in places if os.path.exists(place)), None)


def _units(rows, absent, options):
    from refsd.farm.units import Unit, key_of

    units = []
    for row in rows:
        if row["name"] not in absent:
            pack = Path(options.pack, row["folder"]).resolve()
            recipe = {"pack": str(pack), "manifest": row["manifest"],
                      "candidate": str(Path(_candidate(row, options)).resolve())}
            size = sum(file.stat().st_size for file in pack.rglob("*"))
            units.append(Unit(key_of(recipe), row["name"], recipe, size, ()))
    return units


def _mine(units, options):
    """Those of this shard."""
    from refsd.farm.shards import deal

    if options.shard is None:
        return units
    part, parts = options.shard
    return [units[i] for i in deal([unit.cost for unit in units], parts)[part - 1]]


def _judged(units, options):
    """What is said of each unit, by name, here or by workers; its reports are written at once."""
    from refsd.cli.units_comparisons import OPTIONS, identity, open_worker
    from refsd.farm.units import Job

    ends = sorted({Path(name).suffix.lower() for name in options.report})
    setup = {name: getattr(options, name) for name in OPTIONS} | {"ends": ends}
    for name in ("map", "model"):
        if setup[name] is not None and os.path.exists(setup[name]):
            setup[name] = os.path.abspath(setup[name])
    said: dict[str, Any] = {}

    def on_done(unit, about):
        for name in options.report:
            path = name.replace("{name}", unit.name)
            save(about["reports"][Path(name).suffix.lower()], Target(path), "The report")
        said[unit.name] = about["comparison"]

    show = not options.json
    with tempfile.TemporaryDirectory() as folder:
        if options.dask is not None:
            farming.run(Job("comparisons", setup, identity(), tuple(units)), options.dask, folder,
                        on_done, what="packs", show=show)
            return said
        worker = open_worker(json.loads(json.dumps(setup)))
        with Progress(len(units), "packs", show=show, each="pack") as progress:
            for unit in units:
                on_done(unit, _done(worker, unit, Path(folder)))
                progress.step()
    return said


def _done(worker, unit, folder):
    try:
        return worker.do(unit, folder)
    except (ModelError, UsageError) as error:
        raise type(error)(f"{unit.name}: {error}") from None


def _about(name, absent, said):
    if name in absent:
        return {"ok": False, "sentence": absent[name], "comparison": None}
    return {"ok": said[name]["ok"], "sentence": said[name]["sentence"], "comparison": said[name]}
