"""Verdicts on the port: with each mistake and without, in nine settings."""

import shutil
import time
from pathlib import Path

import numpy as np

import refsd
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.packs.pack import Pack
from refsd.golden.tolerances.spread import RUNS

from . import dumping
from .mistakes import HALVES, MISTAKES, NEAR
from .port import Model, Port

FORMATS = ("float32", *HALVES)
MODEL = Path(refsd.__file__).parent / "data/model"
STEPS, GUIDANCE = 4, 3.0
# A port's sampler keeps its latents in float32, whatever its networks compute in.
LATENTS = "denoise/*=float32"
PROMPTS = ("a red cone", "two small blue cubes", "a glossy green ring on a dark background",
           "a yellow ball behind a purple cylinder")


def run(pack, model, kind, format, *, seed=0, eager=False, bugs=None):
    """The port's dump on the pack's ids and noise; of the UNet alone on its golden inputs."""
    port = Port(model, format, seed=seed, eager=eager, bugs=bugs)
    if kind == "unet":
        x = pack.read("denoise/000/concat").transpose(0, 2, 3, 1)
        t = int(pack.read("schedule/timesteps")[0])
        port.unet(0, x, t, pack.read("denoise/concat"))
    else:
        ids = [pack.read(f"tokens/{i:03d}/ids") for i in range(2)]
        port.draw(ids, pack.read("denoise/noise"), steps=STEPS, guidance=GUIDANCE)
    return port.dump


def formats(kind, format):
    """What is said of the port's formats."""
    return [format] if kind == "unet" or format == "float32" else [format, LATENTS]


def verdicts(pack, folder, dump, kind, format, *, first_only=True):
    """(bisect's answer, compare's) for a dump that lies in a folder for so long."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    dumping.write_raw(folder, dumping.part(kind, dump), format)
    said = formats(kind, format)
    with Candidate.open(folder, name_map=dumping.MAPS[kind]) as candidate, (
            np.errstate(all="ignore")):
        found = bisect(pack, candidate, format=said, first_only=first_only)
        compared = compare(pack, candidate, format=said)
    shutil.rmtree(folder)
    return found, compared


def same(pack, name):
    """The names of the same tensor: a block has that of its last op."""
    entry = pack.entries[name]
    return {one.name for one in pack.entries.values() if one.sha256 == entry.sha256}


def expected(pack, mistake, kind):
    """The golden names of which one is to be named first; none: no alarm."""
    if kind != "blocks":
        return {name for one in (mistake.op, *mistake.others) for name in same(pack, one)}
    if mistake.block is None:
        return set()
    op = pack.entries[mistake.op]
    around = [name for name, entry in pack.entries.items() if entry.op == "block" and (
        mistake.op + ".").startswith(name + ".")]
    return same(pack, around[0] if around else op.name)


def judge(pack, model, key, kind, format, folder, *, seed=0):
    """One cell of the trial, as plain data."""
    mistake, started = MISTAKES[key], time.perf_counter()
    dump = run(pack, model, kind, format, seed=seed, bugs=mistake.bugs)
    found, compared = verdicts(pack, folder, dump, kind, format)
    wanted = expected(pack, mistake, kind)
    first, reason = found.first, found.first and found.first.finding
    right = first.name in wanted if first else not wanted
    reasons = mistake.reasons + (NEAR.get(key, ()) if format in HALVES else ())
    return {
        "mistake": key, "kind": kind, "format": format, "seed": seed, "right": right,
        "hidden": first is None and format in mistake.hidden, "first": first and first.name,
        "status": first and str(first.status), "times": first and float(first.times),
        "reason": reason and reason.reason, "why": reason and reason.sentence,
        "reason_right": bool(reason and reason.reason in reasons),
        "compare": compared.first and compared.first.name,
        "compare_right": compared.first.name in wanted if compared.first else not wanted,
        "wanted": sorted(wanted)[:2], "sentence": found.sentence,
        "seconds": time.perf_counter() - started}


def alarm(pack, model, kind, format, folder, *, seed=0, eager=False):
    """The right port in a setting, as plain data: what is called wrong of it."""
    dump = run(pack, model, kind, format, seed=seed, eager=eager)
    found, compared = verdicts(pack, folder, dump, kind, format, first_only=False)
    counts = {}
    for row in found.rows:
        counts[str(row.status)] = counts.get(str(row.status), 0) + 1
    return {"kind": kind, "format": format, "seed": seed, "eager": eager, "counts": counts,
            "largest": max(float(row.times) for row in found.rows if row.status == "explained"),
            "compared": compared.compared,
            "bisect": [[row.name, float(row.times), *row.notes] for row in found.bad],
            "open": [row.name for row in found.rows if row.status == "open"],
            "compare": [[row.name, row.kind, float(row.times)] for row in compared.failing]}


def open_model():
    return Model(MODEL)


def make_pack(folder, seed=0, *, spread=RUNS, steps=STEPS):
    """A pack of level 3 of the bundled model, with bounds and, for each format, a spread."""
    from refsd.__main__ import main

    main(["golden", "make", "-o", str(folder), PROMPTS[seed % len(PROMPTS)], "--level", "3",
          "--steps", str(steps), "--sampler", "ddim", "--seed", str(seed), "-q",
          "--spread", str(spread), "--spread-formats", ",".join(FORMATS)])
    return Pack.open(folder)
