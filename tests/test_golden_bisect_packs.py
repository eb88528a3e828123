"""Every kind of pack, as its own port: bisect finds nothing wrong, and every bound is finite."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from golden_port_ops import ROUND
from golden_runs import RECIPE, Dump

from refsd.golden.comparing import local_error
from refsd.golden.comparing.bisect import bisect
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.cases import families
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection
from refsd.golden.tolerances.formats import FORMATS

ROOT = Path(__file__).parents[1]
HALVES = ("float16", "bfloat16")
NAMED = [name for name, format in FORMATS.items() if not format.block or name == "int8"]
SELECTIONS = {
    "level0": Selection(level=0), "level1": Selection(level=1), "level2": Selection(level=2),
    "level4": Selection(level=4, attention=("*attn1*",)),  # with all of level 3
    "all steps": Selection(level=2, steps=None),
    "a unet": Selection(level=3, include=("unet/000/*",)),
    "no unet": Selection(level=3, exclude=("unet/*",)),
    "one op": Selection(level=3, op="conv2d"), "a shard": Selection(level=3, shard=(2, 3)),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("packs")
    tiny.write_model(place / "model")
    return place


@pytest.fixture
def bounds(monkeypatch):
    """Every bound that a verdict was made with."""
    found = []

    def excess(got, truth, allowed, *more):
        found.append(allowed)
        with np.errstate(all="ignore"):
            return original(got, truth, allowed, *more)

    original = local_error.excess
    monkeypatch.setattr(local_error, "excess", excess)
    return found


@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_pack_of_a_run_is_its_own_port(folder, bounds, kind):
    with made(folder, kind) as pack:
        check(pack, bounds, ("float32", "bfloat16"), model=folder / "model")


def made(folder, kind):
    if not (folder / kind).exists():
        make(folder / kind, RECIPE, model=folder / "model", selection=SELECTIONS[kind])
    return Pack.open(folder / kind)


@pytest.mark.parametrize("name, formats", [
    *((f"ops/{family}", NAMED) for family in families()), ("bundled", ("float32", "bfloat16"))])
def test_a_committed_pack_is_its_own_port(bounds, name, formats):
    with Pack.open(ROOT / "golden" / name) as pack:
        check(pack, bounds, formats)


def check(pack, bounds, formats, model=None):
    """The pack itself; rounded to a half format without what its ops were given."""
    exact = {name: pack.read(name) for name in pack.entries}
    for format in formats:
        with np.errstate(over="ignore"):
            rounded = {name: ROUND[format](array) if array.dtype == np.float32 else array
                       for name, array in exact.items() if ":" not in name and format in HALVES}
        for dump in filter(None, (exact, rounded)):
            found = bisect(pack, Dump(dump), format=format, model=model)
            assert found.first is None, f"{format}: {found.sentence}"
    assert all(np.isfinite(bound).all() for bound in bounds)


@pytest.mark.parametrize("format", ["float32", "float16"])
def test_a_spread_of_0_is_no_reason_to_call_no_error_wrong(folder, format):
    """What a network is given is the same in every run that measures the spread."""
    with made(folder, "a unet") as pack:
        for entry in pack.entries.values():
            entry.tolerance[format] = {"spread": {"rms": 0.0, "max": 0.0}}
        exact = {name: ROUND[format](pack.read(name)) if pack.entries[name].dtype == "float32" else
                 pack.read(name) for name in pack.entries}
        assert "unet/000/conv_in:x" in exact
        found = bisect(pack, Dump(exact), format=format, model=folder / "model")
        assert found.first is None, found.sentence
        given = next(row for row in found.rows if row.name == "unet/000/conv_in:x")
        assert given.status == "explained" and given.times == 0
        exact["unet/000/conv_in:x"] *= np.float32(1.01)
        found = bisect(pack, Dump(exact), format=format, model=folder / "model")
        assert found.first.name == "unet/000/conv_in:x" and found.first.status == "suspect"
