"""Recording a run: what is written of it, under which name, and what each op was given."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from refsd.dense import to_dense
from refsd.errors import ModelError
from refsd.golden.recording import invariants
from refsd.golden.recording.names import DENOISERS, Namer, block_of, full
from refsd.golden.recording.pipeline_ops import PIPELINE_OPS
from refsd.leaf import Weight, layer_of
from refsd.pipelines.stages import require_finite
from refsd.places import is_on_device, on_host
from refsd.planning import VIEWS

PERCENT = (0, 25, 50, 75, 100)  # of a run's steps: where its latents are marked
EACH_STEP = (*DENOISERS, "gpt2")  # the stages that are a call of a network in each step
TEXTS = ("text", None)  # what a pipeline makes of what its text encoders give
BLOCK = "block"  # in place of an op: made by several, or by some that are not in the pack


@dataclass(frozen=True)
class Selection:
    """What is written of a run.

    level: 0 the ends of the stages, 1 every step's latents and noise, 2 every block's output,
    3 every op, 4 also what `attention` matches: scores and probabilities. steps: those whose calls
    of the denoiser are opened from level 2 on, None for all. include, exclude, attention: patterns
    of names (fnmatch). op: only that op's results. shard (i, n): of all that, every n-th from the
    i-th on.
    """

    level: int = 1
    steps: tuple[int, ...] | None = (0,)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    op: str | None = None
    attention: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)

    def opens(self, stage: str, step: int | None) -> bool:
        """Whether the inside of this call of a network is looked at."""
        return self.level >= 2 and (stage not in EACH_STEP or self.steps is None
                                    or step in self.steps)

    def wants(self, name: str, level: int, op: str | None) -> bool:
        """Whether a tensor of this level is written, whichever the shard."""
        return (level <= self.level and self.op in (None, op)
                and (not self.include or matches(name, self.include))
                and not matches(name, self.exclude))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns fits the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Event(NamedTuple):
    """A call of an op."""

    op: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    output: np.ndarray


class Known(NamedTuple):
    """A tensor that the pack holds: where it is now, and what it is called."""

    array: weakref.ref
    name: str


class OnHost:
    """Arrays of a device as NumPy's, in dicts and lists too: one copy while somebody has the array.

    Leaves stay leaves.
    """

    def __init__(self) -> None:
        self._copies: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self, value))
        if isinstance(value, Weight) or not is_on_device(value):
            return value
        if value not in self._copies:
            self._copies[value] = value.numpy()
        return self._copies[value]


class Recorder:
    """A listener (refsd.watch) that hands what is selected to a Writer, or whatever has its `add`.

    Leaves tell their names (refsd.leaf). Nothing is kept but the last op of the open block, and
    what waits for its name: each tensor is written at once.
    tolerance(op, inputs, options, truth) gives what goes into an entry's `tolerance`.
    """

    def __init__(self, writer: Any, selection: Selection | None = None, *,
                 tolerance: Callable | None = None):
        self.writer, self.selection = writer, selection or Selection()
        self.tolerance = tolerance
        self.worst = invariants.Worst()
        self._host = OnHost()
        self._known: dict[int, Known] = {}
        self._ends: list[tuple[np.ndarray, str]] = []  # of stages, and names
        self._stage, self._step, self._namer = "", None, Namer()
        self._block: tuple[str, np.ndarray] | None = None
        self._count = 0

    @contextmanager
    def stage(self, stage: str, step: int | None = None) -> Iterator[None]:
        """What runs inside is named STAGE/STEP/...; stages nest."""
        self._flush()
        outer = self._stage, self._step, self._namer
        self._stage, self._step, self._namer = stage, step, Namer()
        try:
            yield
            self._flush()
        finally:
            self._stage, self._step, self._namer = outer

    def enter(self, stage: str, step: int | None = None) -> None:
        """What runs from now on is named STAGE/STEP/..."""
        self._flush()
        self._stage, self._step, self._namer = stage, step, Namer()

    def _flush(self):
        for path, event in self._namer.end():
            self._op(path, event)
        self._close_block(None)

    def __call__(self, op: str, inputs: dict, options: dict, output: Any) -> None:
        layer = layer_of(inputs)
        event = Event(op, self._host(inputs), self._host(options), self._host(output))
        where = layer and layer.partition(".")[2]
        if where and op in VIEWS:  # of a weight that is no layer, such as a table of places
            where = f"{where}.{op}"
        for path, named in self._namer.add(op, where, event):
            self._op(path, named)

    def _op(self, path: str, event: Event) -> None:
        self._close_block(block_of(path))
        name = full(self._stage, self._step, path)
        _require_storable(event.output, name)
        opened = self.selection.opens(self._stage, self._step)
        level = 3 if block_of(path) else 2
        inputs = event.inputs | {key: value for key, value in event.options.items()
                                 if isinstance(value, np.ndarray)}
        options = {key: value for key, value in event.options.items() if key not in inputs}
        if "dtype" in options:
            options["dtype"] = "float32"  # as a port is asked; only the truth has more
        if opened:
            held = self._write(name, event.output, level=level, op=event.op, inputs=inputs,
                               options=options)
            self.worst.look(event, name if held else None, deep=self.selection.level >= 3)
            if held and (self._stage, self._step) == TEXTS:
                self._ends.append((event.output, name))
            if event.op == "attention" and matches(name, self.selection.attention):
                self._inside(name, event)
        if block_of(path):
            self._block = block_of(path), event.output

    def _inside(self, name, event):
        """An attention's scores and probabilities."""
        q, k = event.inputs["q"], event.inputs["k"]
        heads, causal = event.options["heads"], event.options["causal"]
        mask = {key: event.options[key] for key in ("mask",) if event.options[key] is not None}
        for what, further, options in (("scores", {}, {"heads": heads}),
                                       ("probabilities", mask, {"heads": heads, "causal": causal})):
            op, inputs = f"attention_{what}", {"q": q, "k": k, **further}
            result = PIPELINE_OPS[op](**inputs, **options)
            self._write(f"{name}.{what}", result, level=4, op=op, inputs=inputs, options=options)

    def _close_block(self, following: str | None) -> None:
        if self._block is None or self._block[0] == following:
            return
        (path, output), self._block = self._block, None
        if self.selection.opens(self._stage, self._step):
            same = {"output": output} if self.held(output) else {}  # the op that gave it
            self._write(full(self._stage, self._step, path), output, level=2, op=BLOCK,
                        inputs=same)

    def tensor(self, stage: str, step: int | None, path: str, array: Any, *, level: int,
               op: str | None = None, inputs: Mapping[str, Any] | None = None,
               options: Mapping[str, Any] | None = None, note: str = "") -> None:
        """A tensor between the networks; without an op it is an external input.

        From level 2 on the pack gets inputs that it lacks, as NAME:PARAMETER; below it says
        "block" of what it lacks inputs of.
        """
        self._flush()
        array, inputs, name = self._host(array), self._host(inputs), full(stage, step, path)
        if np.asarray(array).dtype.kind == "f":
            _require_storable(array, name)
        if op == BLOCK or (op and self.selection.level < 2):
            inputs = inputs or {}
            if not self._all_held(inputs):
                op, inputs, options = BLOCK, {}, {}
        written = self._write(name, array, level=level, op=op, stage=stage, step=step, note=note,
                              inputs=inputs, options=options)
        if written and level == 0:
            self._ends.append((array, name))

    def held(self, array: Any) -> str | None:
        """The name under which the pack holds this very array."""
        array = self._host(array)
        known = self._known.get(id(array))
        return known.name if known and known.array() is array else None

    def _all_held(self, inputs):
        arrays = [item for value in inputs.values()
                  for item in (value if isinstance(value, list) else [value])]
        return all(self.held(item) for item in arrays if isinstance(item, np.ndarray))

    def _write(self, name, array, *, level, op, inputs=None, options=None, note="", **place):
        """Write a tensor and the inputs that are nowhere yet, if they are selected."""
        selection = self.selection
        wanted = selection.wants(name, level, op)
        self._count += wanted
        index, of = selection.shard
        if not wanted or (self._count - 1) % of != index - 1:
            return False
        place = place or {"stage": self._stage, "step": self._step}
        inputs = inputs or {}
        references = {key: self._reference(f"{name}:{key}", value, place)
                      for key, value in inputs.items()}
        tolerance = {}
        if self.tolerance is not None and op not in (None, BLOCK) and not self.writer.holds(name):
            dense = {key: on_host(to_dense(value)) for key, value in inputs.items()}
            tolerance = self.tolerance(op, dense, options or {}, array)
        self.writer.add(name, array, op=op, options=options or {}, inputs=references,
                        tolerance=tolerance, note=note, **place)
        self._learn(array, name)
        return True

    def _reference(self, name, value, place):
        """What stands in an entry for an op's input; an array that is nowhere yet is written."""
        if isinstance(value, (list, tuple)):
            return [self._reference(f"{name}.{i}", item, place) for i, item in enumerate(value)]
        if isinstance(value, Weight) and value.name:
            return f"weight:{value.name}"
        value = on_host(to_dense(value))
        if not isinstance(value, np.ndarray):
            return value
        if self.held(value) is None and (end := self._end(value)):
            self._learn(value, end)
        if self.held(value) is None:
            computed = value.dtype.kind == "f"  # by an op that is not recorded
            self.writer.add(name, value, op=BLOCK if computed else None, note="an input", **place)
            self._learn(value, name)
        return f"tensor:{self.held(value)}"

    def _end(self, value):
        """The end of a stage with an array's own numbers: pipelines copy, and cast, what is one."""
        return next((name for array, name in reversed(self._ends)
                     if np.array_equal(array, value)), None)

    def _learn(self, array, name):
        """Remember an array for as long as someone else holds it."""
        if not isinstance(array, np.ndarray):
            return
        key = id(array)
        self._known[key] = Known(weakref.ref(array, lambda _: self._known.pop(key, None)), name)

    def checkpoints(self, steps: int) -> None:
        """Mark the latents that stand at 0, 25, 50, 75 and 100 % of a run that is done."""
        for percent in PERCENT:
            done = round(steps * percent / 100)
            position = (done - 1, "latents") if done else (None, "initial")
            name = full("denoise", *position)
            if self.writer.holds(name):
                self.writer.checkpoint(percent, name, step=done)


def _require_storable(array, name):
    """Stop with the tensor's name where float32, which packs are written in, has no number."""
    require_finite(array, name)
    largest = float(np.max(np.abs(array), initial=0.0))
    if largest > float(np.finfo(np.float32).max):
        raise ModelError(f"{name}: {largest:.3g} is beyond float32's numbers, in which packs are "
                         "written: a port in float32 would overflow here. Give other inputs or "
                         "weights")
