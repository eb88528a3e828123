"""The precision lab: a model in another number format, before anyone touches hardware.

A run with the format's roundings (tolerances.emulate), compared with the same run in float64: how
far each layer stays from the format's largest number, what the picture loses, and which part of
the model costs most of it, each part alone in the format.
"""

import math
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from refsd.errors import UsageError
from refsd.golden.recording.names import block_of, parent, stage_of
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request
from refsd.golden.tolerances.bounds import moves_data
from refsd.golden.tolerances.emulate import Emulator
from refsd.golden.tolerances.formats import format_named
from refsd.golden.tolerances.spread import emulated_run
from refsd.leaf import layer_of
from refsd.registry import ops

# What of a run is compared with float64: relative errors of the last of each stage.
LATENTS, PICTURE = "denoise/final", "picture/image"
# Of the text: what is read of each encoder, and what is made of several.
TEXT = re.compile(r"text(_\d+)?/000/(last_hidden_state|hidden_states\.\d+|text_embeds|"
                  r"pooler_output|prompt_embeds)")
UNITS = ("blocks", "layers")


class Layer(NamedTuple):
    """Results of one op over all steps: its name without the step, and the largest magnitude.

    margin: the format's largest number over that; below 1 it overflowed, `overflows` times.
    """

    name: str
    op: str
    largest: float
    margin: float
    overflows: int


class Impact(NamedTuple):
    """What a part of the model does alone in the format: relative errors, as of Endpoints."""

    name: str
    latents: float
    picture: float


class Simulation(NamedTuple):
    """layers: the smallest margin first. first_overflow: a tensor's name, with its step.

    errors: relative root mean squares of Endpoints. ranking: the part that spoils the picture most
    first; None if it was not asked for.
    """

    format: str
    accumulate: str
    errors: dict[str, float]
    first_overflow: str | None
    layers: list[Layer]
    ranking: list[Impact] | None


def simulate(pipe: Any, recipe: Request, format: str, *, accumulate: str = "float32",
             scope: Iterable[str] = (), rank: str | None = "blocks",
             on_run: Callable[[int, int], None] | None = None) -> Simulation:
    """Run a model (as load_truth gives it) in a format, and say what that does.

    scope: ops ("conv2d") or patterns of names ("unet/up_blocks.*") that are in the format; all by
    default. Sums are made in `accumulate`; where that is no finer than the format their errors are
    drawn at random, of the size that a running sum has. What overflows becomes the largest number,
    so that the run goes on. rank: "blocks", "layers" or None; costs a run for each.
    on_run(done, of) follows them. Raises UsageError for a scope that fits nothing.
    """
    accumulate = format_named(accumulate).name
    format = format_named(format).name
    if rank is not None and rank not in UNITS:
        raise UsageError(f"rank is {rank!r}; give {' or '.join(UNITS)}, or nothing")
    scope = tuple(scope)
    plan = Sites()
    truth = Endpoints()
    emulated_run(pipe, recipe, Selection(level=1), truth, plan.emulator("float64", ()))
    sites = {site for site in plan.seen if _fits(site, scope)}
    if not sites:
        raise UsageError(f"nothing in the model fits {', '.join(scope)}; give ops such as "
                         "conv2d, or patterns of names such as unet/up_blocks.*")
    margins = Margins(format, scope)
    emulator = plan.emulator(format, scope, accumulate, margins)
    emulated_run(pipe, recipe, Selection(level=3, steps=None), margins, emulator)
    found = Simulation(format, accumulate, margins.errors(truth), margins.first,
                       margins.layers(), None)
    if rank is None:
        return found
    units = sorted({unit_of(site, rank) for site in sites if not moves_data(site.op)
                    or site.op == "embedding"})
    ranking = []
    for done, unit in enumerate(units):
        ends = Endpoints()
        alone = plan.emulator(format, scope, accumulate, unit=(rank, unit))
        emulated_run(pipe, recipe, Selection(level=1), ends, alone)
        errors = ends.errors(truth)
        ranking.append(Impact(unit, errors[LATENTS], errors[PICTURE]))
        if on_run is not None:
            on_run(done + 1, len(units))
    return found._replace(ranking=sorted(ranking, key=lambda d: -d.picture))


class OpSite(NamedTuple):
    """Where an op stands: stage, path as in a pack ("conv_in"), its name."""

    stage: str
    path: str
    op: str


def unit_of(site: OpSite, rank: str) -> str:
    """The block or the layer that an op is ranked with."""
    path = site.path
    return f"{site.stage}/{(block_of(path) or path) if rank == 'blocks' else path}"


def _fits(site: OpSite, scope: tuple[str, ...]) -> bool:
    name = f"{site.stage}/{site.path}"
    return not scope or any(site.op == one or fnmatchcase(name, one) for one in scope)


class Sites:
    """Says of each op of a run where it stands, as it comes."""

    def __init__(self) -> None:
        self._last = ("text", "")
        self.seen: set[OpSite] = set()

    def site(self, op: str, inputs: dict) -> OpSite:
        """An op without weights stands beside the layer before it."""
        layer = layer_of(inputs)
        if layer is not None:
            component, _, path = layer.partition(".")
            self._last = stage_of(component), path
            found = OpSite(*self._last, op)
        else:
            stage, path = self._last
            found = OpSite(stage, f"{parent(path)}.{op}".lstrip("."), op)
        self.seen.add(found)
        return found

    def emulator(self, format: str, scope: tuple[str, ...], accumulate: str = "float32",
                 margins: Any = None, unit: tuple[str, str] | None = None) -> "Saturating":
        """An emulator of what is in scope, and of one unit if that is given."""
        def applies(op, inputs):
            site = self.site(op, inputs)
            return _fits(site, scope) and (unit is None or unit_of(site, unit[0]) == unit[1])

        found = Saturating(format, accumulate=accumulate, applies=applies)
        found.between, found.margins = not scope and unit is None, margins
        return found


class Saturating(Emulator):
    """Overflow is told to `margins`, and cut off at the format's largest number."""

    margins: Any = None

    def stored(self, y: np.ndarray) -> np.ndarray:
        """Rounded as the port stores its tensors, but finite."""
        rounded, largest = super().stored(y), self.how.tensors.largest
        beyond = ~np.isfinite(rounded) & np.isfinite(y)
        if beyond.any():
            rounded = np.where(beyond, np.copysign(largest, y), rounded)
            if self.margins is not None:
                self.margins.overflow(rounded, float(np.max(np.abs(y))), int(beyond.sum()))
        return rounded


class Endpoints:
    """In place of a Writer: keeps the ends of the stages."""

    def __init__(self):
        self.ends: dict[str, np.ndarray] = {}

    def add(self, name: str, array: np.ndarray, **more: Any) -> None:
        """One tensor."""
        if name in (LATENTS, PICTURE) or TEXT.fullmatch(name):
            self.ends[name] = np.array(array)

    def holds(self, name: str) -> bool:
        """Nothing is held that another run could leave out."""
        return False

    def checkpoint(self, *args: Any, **options: Any) -> None:
        """Of no interest here."""

    def errors(self, truth: "Endpoints") -> dict[str, float]:
        """Relative root mean squares of the differences to another run's."""
        found = {}
        for name, true in truth.ends.items():
            size = math.sqrt(np.mean(true * true))
            error = math.sqrt(np.mean((self.ends[name] - true) ** 2))
            found[name] = error / size if size else error
        return found


class Margins(Endpoints):
    """Keeps the largest magnitude of the results of every op in scope, too."""

    def __init__(self, format: str, scope: tuple[str, ...] = ()):
        super().__init__()
        self.format, self.scope, self.first = format_named(format), scope, None
        self._layers: dict[tuple[str, str], tuple[float, int]] = {}
        self._overflowed: list[tuple[np.ndarray, float, int]] = []  # until their names are known

    def overflow(self, array: np.ndarray, largest: float, count: int) -> None:
        """The emulator cut off `count` numbers of a result, the largest of this magnitude."""
        self._overflowed.append((array, largest, count))

    def add(self, name: str, array: np.ndarray, *, op: str | None = None, **more: Any) -> None:
        """One tensor and the op it came of."""
        super().add(name, array)
        if op not in ops() or not array.size or array.dtype.kind != "f":
            return
        largest, count = self._cut_off(array)
        if count and self.first is None:
            self.first = name
        stage, _, path = name.partition("/")
        step, _, rest = path.partition("/")
        site = OpSite(stage, rest if step.isdigit() else path, op)
        if not _fits(site, self.scope):
            return
        key = f"{stage}/{site.path}", op
        before = self._layers.get(key, (0.0, 0))
        self._layers[key] = max(before[0], largest), before[1] + count

    def _cut_off(self, array):
        for i, (result, largest, count) in enumerate(self._overflowed):
            if result is array:
                del self._overflowed[i]
                return largest, count
        return float(np.max(np.abs(array))), 0

    def layers(self) -> list[Layer]:
        """All ops, those nearest to the format's end first."""
        found = [Layer(name, op, largest, self.format.largest / largest if largest else math.inf,
                       count) for (name, op), (largest, count) in self._layers.items()]
        return sorted(found, key=lambda layer: layer.margin)
