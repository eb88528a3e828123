"""How far a whole network spreads rounding: k runs with other roundings, and what they allow.

Each run computes every op in float64 and adds roundings as a port in the format would make them,
drawn from a seed (tolerances.emulate). What a tensor then differs by from the pack's, over the
runs, says what a right port may differ by.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import fdtrc, fdtri

from refsd import parallel
from refsd.errors import ModelError, UsageError
from refsd.golden.packs.manifest import Entry
from refsd.golden.packs.pack import Pack
from refsd.golden.packs.writer import seal
from refsd.golden.recording.kinds import request_of
from refsd.golden.recording.record import Recorder, Selection
from refsd.golden.tolerances.emulate import Emulator
from refsd.golden.tolerances.tolerance import with_spread
from refsd.registry import trace

RUNS, CONFIDENCE = 4, 0.9999
FORMATS = ("float32", "bfloat16")
SKETCH = 64  # sums of signed errors, of which two runs' likeness is told
ROUNDED = ("initial_latents", "guide", "scheduler_step", "unscale_latents", "to_picture",
           "softmax")


def add_spread(folder: str | Path, *, formats: Iterable[str] = FORMATS, runs: int = RUNS,
               confidence: float = CONFIDENCE, seed: int = 0, pipe: Any = None, model: Any = None,
               on_run: Callable[[str, int], None] | None = None) -> None:
    """Measure the spread for a pack in a folder, and write it into its manifest.

    pipe: the model as its recipe loads it (None: loaded from `model`, the bundled one by default).
    """
    with Pack.open(folder) as pack:
        manifest, measured = pack.manifest, {}
        for format in formats:
            measured[format] = spread(pack, format, runs=runs, confidence=confidence, seed=seed,
                                      pipe=pipe, model=model, on_run=on_run)
    tensors = []
    for entry in manifest.tensors:
        tolerance = entry.tolerance
        for format, found in measured.items():
            if found is None or entry.name in found:
                tolerance = with_spread(tolerance, format, found and found[entry.name])
        tensors.append(dataclasses.replace(entry, tolerance=tolerance))
    seal(Path(folder), dataclasses.replace(manifest, tensors=tensors))


def spread(pack: Pack, format: str, *, runs: int = RUNS, confidence: float = CONFIDENCE,
           seed: int = 0, pipe: Any = None, model: Any = None,
           on_run: Callable[[str, int], None] | None = None) -> dict[str, dict] | None:
    """For each float tensor of a pack of a run: {"rms", "max", "runs", "confidence"}.

    rms: what the root mean square of a right port's error stays below, at the confidence for one
    tensor; max: the largest error seen, scaled likewise. None if a run overflows in the format.
    Raises UsageError for a pack that is not of a run.
    """
    if pack.manifest.kind != "run":
        raise UsageError(f"the pack is of kind {pack.manifest.kind!r}; a spread needs a run")
    if runs < 2:
        raise UsageError(f"runs is {runs}; give 2 or more, so that they can be compared")
    recipe = recipe_of(pack)
    selection = selection_of(pack)
    pipe = recipe.load(model) if pipe is None else pipe
    errors = Errors(pack)
    for number in range(runs):
        errors.begin()
        try:
            emulated_run(pipe, recipe, selection, errors,
                         Emulator(format, seed=seed + zlib.crc32(f"{format} {number}".encode())))
        except ModelError:
            return None  # NaN or infinity: the format cannot hold this run
        if on_run is not None:
            on_run(format, number)
    return {name: errors.limit(name, confidence) for name in errors.seen}


def emulated_run(pipe: Any, recipe: Any, selection: Selection, writer: Any,
                 emulator: Emulator) -> None:
    """A run of make, in the emulator's arithmetic; writer.add hears of each tensor."""
    recorder = EmulatedRecorder(writer, selection, emulator)
    emulator.listener = recorder
    with parallel.limited(1), trace(emulator):
        recipe.record(pipe, recorder)


class EmulatedRecorder(Recorder):
    """A recorder that also rounds what the pipeline computes between the networks."""

    def __init__(self, writer: Any, selection: Selection, emulator: Emulator):
        super().__init__(writer, selection)
        self._emulator = emulator

    def tensor(self, stage: str, step: int | None, path: str, array: Any, *,
               op: str | None = None, **more: Any) -> None:
        """As Recorder.tensor; these arrays are fresh, and what follows reads them."""
        if self._emulator.between and op in ROUNDED and array.dtype.kind == "f":
            array[...] = self._emulator.stored(array)
        super().tensor(stage, step, path, array, op=op, **more)


class Errors:
    """In place of a Writer: what each tensor of a pack differs by, run by run."""

    def __init__(self, pack: Pack):
        self._pack = pack
        self.seen: dict[str, list[tuple[float, float, np.ndarray]]] = {}
        self._held: set[str] = set()

    def begin(self) -> None:
        """Another run."""
        self._held = set()

    def add(self, name: str, array: np.ndarray, **more: Any) -> None:
        """One tensor of this run."""
        self._held.add(name)
        entry: Entry | None = self._pack.entries.get(name)
        if entry is None or np.asarray(array).dtype.kind != "f":
            return
        error = np.asarray(array, "float64") - self._pack.read(name)
        size = math.sqrt(np.mean(error * error)) if error.size else 0.0
        signs = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
        buckets = signs.integers(0, 2 * SKETCH, error.size, dtype="uint8")
        signed = np.where(buckets < SKETCH, error.ravel(), -error.ravel())
        sketch = np.bincount(buckets % SKETCH, signed, minlength=SKETCH)
        sketch = sketch / math.sqrt(max(1, error.size))  # its square is size^2, on average
        largest = float(np.max(np.abs(error), initial=0.0))
        self.seen.setdefault(name, []).append((size, largest, sketch))

    def holds(self, name: str) -> bool:
        """Whether this run had it."""
        return name in self._held

    def checkpoint(self, *args: Any, **options: Any) -> None:
        """Of no interest here."""

    def limit(self, name: str, confidence: float) -> dict[str, float]:
        """The limit of one more run's root mean square, and of its largest error, from those seen.
        """
        sizes, largest, sketches = zip(*self.seen[name])
        runs = len(sizes)
        factor = math.sqrt(more_than_mean(narrowness(sizes, sketches), runs, confidence))
        return {"rms": math.sqrt(np.mean(np.square(sizes))) * factor,
                "max": max(largest) * factor, "runs": runs, "confidence": confidence}


def narrowness(sizes: Iterable[float], sketches: Iterable[np.ndarray]) -> float:
    """1 / the number of directions that errors vary in, as some runs tell of it.

    Of errors e with normal parts in nu directions, |e|^2 = s^2 on average, two runs' inner product
    has the mean square s^4 / nu, and |e|^2 the variance 2 s^4 / nu. All pairs and all sizes but one
    are squares of independent normal numbers, and weigh alike. The largest run says most, so that
    products are not made cosines first.
    """
    rows, squares = np.array(list(sketches)), np.square(np.array(list(sizes)))
    runs, mean = len(rows), float(np.mean(squares))
    if not mean > 0:
        return 0.0
    products = (rows @ rows.T)[np.triu_indices(runs, 1)]
    total = np.sum(products**2) + np.sum((squares - mean) ** 2) / 2
    return float(total) / known(runs) / mean**2


def known(runs: int) -> int:
    """How many independent squares `narrowness` is the mean of: pairs, and sizes but for a mean."""
    return runs * (runs - 1) // 2 + runs - 1


def more_than_mean(narrow: float, runs: int, confidence: float) -> float:
    """How many times the mean square of some runs one more run's may be.

    With nu directions it is F-distributed, with nu and runs nu degrees of freedom. But few runs do
    not say nu: n nu narrow is chi^2-distributed, of n = known(runs). So it is averaged over all nu
    from 1 to SKETCH (more are not told apart), each as likely before as its double, how probable it
    is that one more is beyond; the answer is where that is 1 - confidence.
    """
    directions, limits, beyond = _beyond(runs, confidence)
    n = known(runs)
    weights = n / 2 * (np.log(directions) - directions * narrow)
    weights = np.exp(weights - weights.max())
    often = weights @ beyond / weights.sum()
    return float(limits[np.argmax(often <= 1 - confidence)])


@functools.lru_cache
def _beyond(runs: int, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of directions, limits, and how probable one more run beyond each limit is for each.

    The last limit is large enough for any number of directions; steps are of 1.5 %.
    """
    directions = np.geomspace(1, SKETCH, 25)
    most = float(fdtri(directions, runs * directions, confidence).max()) * 1.01
    limits = np.geomspace(most / 1e6, most, 1000)
    return directions, limits, fdtrc(directions[:, None], runs * directions[:, None], limits)


def recipe_of(pack: Pack) -> Any:
    """The recipe that a pack was made with."""
    return request_of(pack.manifest.recipe)


def selection_of(pack: Pack) -> Selection:
    """What of a run is in a pack."""
    told = pack.manifest.recipe.get("selection", {})
    return Selection(**{key: tuple(value) if isinstance(value, list) else value
                        for key, value in told.items()})
