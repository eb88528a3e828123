"""The committed golden packs are what this refsd makes: they are made again, and compared.

`make golden` records them anew after a change that is meant to change them.
"""

import math
from pathlib import Path

import numpy as np
import pytest

from refsd import parallel
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.cases import families, make_ops
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Recorder
from refsd.golden.recording.request import load_truth
from refsd.golden.recording.run import run
from refsd.golden.tolerances.spread import recipe_of, selection_of
from refsd.golden.tolerances.tolerance import of, rounded
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline

GOLDEN = Path(__file__).parent.parent / "golden"
PACKS = (*(f"ops/{family}" for family in families()), "bundled")
# DDIM begins with the noise as it is.
GIVEN = ("denoise/initial", "denoise/000/scaled", "denoise/000/concat")
FINER = 2.0**-29  # how much finer float64's roundings are than float32's


@pytest.fixture(scope="module", params=PACKS)
def both(request, tmp_path_factory):
    """A committed pack and the same made now; and, for a run, how far float32 is from it."""
    folder = tmp_path_factory.mktemp("drift") / "pack"
    committed = Pack.open(GOLDEN / request.param)
    kind, _, family = request.param.partition("/")
    if kind == "ops":
        make_ops(folder, family=family, tolerance=of)
        return committed, Pack.open(folder), None
    recipe, selection = recipe_of(committed), selection_of(committed)
    make(folder, recipe, pipe=load_truth(), selection=selection, tolerance=of,
         title=committed.manifest.title)
    single = StableDiffusionPipeline.from_pretrained(backend="numpy", dtype="float32", exact=True)
    distances = Distances(committed)
    with parallel.limited(1):
        run(single, recipe, Recorder(distances, selection))
    return committed, Pack.open(folder), distances.largest


class Distances:
    """In place of a Writer: the largest distance of each tensor from the pack's."""

    def __init__(self, pack):
        self.pack, self.largest = pack, {}

    def add(self, name, array, **more):
        error = np.abs(np.asarray(array, "f8") - self.pack.read(name))
        self.largest[name] = float(error.max(initial=0.0))

    def holds(self, name):
        return name in self.largest

    def checkpoint(self, *args, **options):
        """Of no interest here."""


def test_the_packs_are_small_and_unaltered():
    assert {path.name for path in (GOLDEN / "ops").iterdir()} == set(families())
    files = [path for name in PACKS for path in (GOLDEN / name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 6e6
    for name in PACKS:
        with Pack.open(GOLDEN / name) as pack:
            assert pack.verify() == []


def test_the_same_tensors_are_recorded(both):
    committed, made, _ = both
    assert [_about(e) for e in made.entries.values()] == [
        _about(e) for e in committed.entries.values()]
    for key in ("kind", "recipe", "model", "checkpoints", "title"):
        assert getattr(made.manifest, key) == getattr(committed.manifest, key), key


def _about(entry):
    return (entry.name, entry.op, entry.stage, entry.step, entry.shape, entry.dtype, entry.options,
            entry.inputs, entry.index, entry.note)


def test_the_numbers_are_the_same(both):
    """But for what another order of float64's sums does, on a processor with another BLAS.

    delta is what the truth may move by. Of an op alone: float32's worst bound, as much finer as
    float64 is, once for either machine. Of a run: float32 strays as far as it was seen to, float64
    as much less; the largest of thousands of such errors varies little from draw to draw, and 16
    covers it. Rounded to float32, numbers that differ by delta differ by delta and one unit in the
    last place at the most; a share of 2 delta / unit of them does at all.
    """
    committed, made, strays = both
    for entry in committed.entries.values():
        golden, found = committed.read(entry.name), made.read(entry.name)
        if golden.dtype.kind != "f" or entry.op is None:
            if entry.op == "to_bytes":
                _same_bytes(committed, entry, golden, found, strays)
            else:
                assert np.array_equal(found, golden), entry.name
            continue
        if strays is None:
            delta = 2 * FINER * entry.tolerance["float32"]["worst"]
        else:
            delta = 16 * FINER * max(strays[entry.name], 2.0**-24 * float(np.abs(golden).max()))
        unit = np.spacing(np.abs(golden)).astype("f8")
        error = np.abs(found.astype("f8") - golden.astype("f8"))
        assert (error <= delta + unit).all(), entry.name
        expected = float(np.minimum(1, 2 * delta / unit).sum())
        # Poisson: the mean, and six deviations more.
        assert np.count_nonzero(error) <= expected + 6 * math.sqrt(expected) + 6, entry.name


def _same_bytes(committed, entry, golden, found, strays):
    """A byte may be the next one where the picture's number lies between the two."""
    image = committed.read(entry.inputs["x"].removeprefix("tensor:")).astype("f8") * 255
    middle = np.abs(image - np.floor(image) - 0.5) < 255 * (
        2.0**-24 + 16 * FINER * strays["picture/image"])
    assert (np.abs(golden.astype(int) - found)[~middle] == 0).all()
    assert np.abs(golden.astype(int) - found).max() <= 1


def test_the_tolerances_are_the_same(both):
    """Of the ops: derived from the truth alone. (A spread is measured, from seeded runs.)"""
    committed, made, _ = both
    for entry in committed.entries.values():
        now = made.entries[entry.name].tolerance
        for name, bounds in now.items():
            for key in ("worst", "likely", "rms"):
                old = entry.tolerance[name][key]
                # The bounds are smooth in the truth, which moves by less than 2^-40 of itself;
                # rounded up to 6 digits they are the same, or, rarely, the next such number.
                assert old == bounds[key] or math.isclose(old, bounds[key], rel_tol=1e-5), (
                    f"{entry.name}: {name}, {key} was {old}, is {bounds[key]}: make golden")


def test_tolerances_are_rounded_up_to_digits_that_every_processor_agrees_on():
    for value, wanted in ((1.2345671e-7, 1.23457e-7), (0.5, 0.5), (0.0, 0.0), (1 / 3, 0.333334),
                          (0.5 * (1 + 2**-52), 0.5), (2.0**-12, 2.44141e-4), (5e-324, 5e-324)):
        assert rounded(value) == wanted
    assert rounded(math.inf) is None and rounded(math.nan) is None
    for name in PACKS:
        with Pack.open(GOLDEN / name) as pack:
            for entry in pack.entries.values():
                for bounds in entry.tolerance.values():
                    assert all(rounded(bounds[key]) == bounds[key] for key in (
                        "worst", "likely", "rms") if bounds.get(key) is not None), entry.name


def test_the_run_has_a_spread_for_what_it_computes():
    with Pack.open(GOLDEN / "bundled") as pack:
        for entry in pack.entries.values():
            if entry.op is not None and entry.dtype == "float32":
                found = entry.tolerance["float32"]["spread"]["rms"]
                assert found > 0 or entry.name in GIVEN, entry.name
