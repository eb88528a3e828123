"""What a port gave an op: its own dumps, or what follows from them where it left one out.

A port that fuses ops leaves out what is between them (the silu between a norm and a convolution).
Such a tensor is computed in float64 from the port's own earlier ones. It is then known up to what
rounding may have done to it in the port, and that uncertainty is carried through the next op.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import TENSOR, WEIGHT, raise_to_float64, replay, weights
from refsd.golden.tolerances.bounds import bound
from refsd.golden.tolerances.bounds_moved import moved
from refsd.golden.tolerances.formats import Format
from refsd.golden.tolerances.precision import quantile
from refsd.golden.tolerances.stage_bounds import STAGE_BOUNDS, stage_bound
from refsd.registry import ops

REACH = 200  # ops that are computed at most to make up for what was not dumped: a block's


@dataclass
class Given:
    """An op's inputs by parameter, and where they come from.

    moves: how far a computed input may be from the port's, element by element. computed: the
    entries that were computed, in order. borrowed: parameters whose golden tensor stands in.
    assumed: those that no entry made, so that the port may have been given the golden ones.
    upstream: for a computed input, the op that made it and its inputs.
    """

    values: dict[str, Any] = field(default_factory=dict)
    moves: dict[str, Any] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    upstream: dict[str, tuple[Entry, dict[str, Any]]] = field(default_factory=dict)


class Inputs:
    """`of(entry)`: what a port gave the entry's op; `allowed`: what its result may differ by."""

    def __init__(self, pack: Any, candidate: Any, format: Format, model: Any, confidence: float):
        self.pack, self.candidate, self.format = pack, candidate, format
        self.confidence = confidence
        self.weight = weights(pack, model)
        self._same: dict[tuple, list[str]] = {}
        for entry in pack.entries.values():
            self._same.setdefault(_content(entry), []).append(entry.name)

    def twins(self, entry: Entry) -> list[str]:
        """The names of the same tensor: a block has that of its last op."""
        return self._same[_content(entry)]

    def maker(self, entry: Entry) -> Entry | None:
        """The entry of the op that made a tensor: its own, or a twin's (a block's last op)."""
        for name in (entry.name, *self.twins(entry)):
            found = self.pack.entries[name]
            if found.op not in (None, "block", *STAGE_BOUNDS) and found.inputs:
                return found
        return None

    def of(self, entry: Entry) -> Given:
        """The inputs of an entry that has an op."""
        return _Search(self).of(entry)

    def dump(self, entry: Entry, own: str) -> np.ndarray | None:
        """The port's tensor for a reference: what the reader dumped, its maker, or a twin of it."""
        for place in dict.fromkeys((own, entry.name, *self.twins(entry))):
            found = self.candidate.read(place, entry.shape)
            if found is not None and found.shape == entry.shape:
                return _whole(found) if "int" in entry.dtype else found
        return None

    def allowed(self, entry: Entry, given: Given, truth: np.ndarray, *,
                algorithm: str | None = None, any_order: bool = False) -> np.ndarray:
        """How far the port's result may be from the truth on these inputs.

        The likely bound takes sums to run in a random order. A fixed one can be worse: channel by
        channel, partial sums drift away and come back. any_order adds what holds whatever the
        order (Higham and Mary 2019): n roundings u of at most the sum of |terms|, of random signs,
        are lambda sqrt(n / 3) u of it, where the worst case is n u.
        """
        if entry.op in STAGE_BOUNDS:
            return stage_bound(entry.op, given.values, entry.options, truth, self.format.name)
        names = [p.name for p in ops()[entry.op].signature.parameters.values()
                 if p.kind is not p.KEYWORD_ONLY and given.values.get(p.name) is not None]
        # An option that is an array (a mask) is an input of the entry.
        options = entry.options | {name: value for name, value in given.values.items()
                                   if name not in names and value is not None}
        both = bound(entry.op, given.values, options, truth, format=self.format.name, given=True,
                     confidence=self.confidence, algorithm=algorithm)
        found = both.likely
        if any_order:
            count = terms(entry, given.values, algorithm)
            factor = quantile(truth.size, self.confidence) / math.sqrt(3 * count)
            found = found + both.worst * min(1.0, factor)
        if not given.moves:
            return found
        args = [raise_to_float64(given.values[name]) for name in names]
        moves = [given.moves.get(name, _none(arg)) for name, arg in zip(names, args)]
        factor = quantile(truth.size, self.confidence)
        with np.errstate(all="ignore"):
            carried = moved(entry.op, args, options, np.nan_to_num(truth), moves, factor)
        if carried is None:
            return found
        # variance takes errors to be spread evenly below the moves; here they may be that large.
        return found + np.minimum(carried[0], factor * np.sqrt(3 * carried[1]))


class _Search:
    """The inputs of one entry; what is computed on the way is computed once."""

    def __init__(self, inputs: Inputs):
        self.inputs = inputs
        self.made: dict[str, tuple[np.ndarray, np.ndarray, Given] | None] = {}

    def of(self, entry: Entry) -> Given:
        given = self._all(entry)
        found = (name for name, made in self.made.items() if made is not None)
        given.computed = tuple(sorted(found, key=lambda name: self.inputs.pack.entries[name].index))
        return given

    def _all(self, entry):
        given = Given()
        for name, reference in entry.inputs.items():
            value, move = self._find(entry, given, name, reference)
            given.values[name] = value
            if _any(move):
                given.moves[name] = move
        return given

    def _find(self, entry, given, name, reference):
        if isinstance(reference, list):
            found = [self._find(entry, given, f"{name}.{i}", one)
                     for i, one in enumerate(reference)]
            return [value for value, _ in found], [move for _, move in found]
        if not isinstance(reference, str):
            return reference, 0.0
        if reference.startswith(WEIGHT):
            return self.inputs.weight(reference), 0.0
        source = self.inputs.pack.entries[reference.removeprefix(TENSOR)]
        own = f"{entry.name}:{name}"
        found = self.inputs.dump(source, own)
        if found is not None:
            return found, np.zeros(found.shape)
        if source.op is not None:  # what no op made, the port was given
            made = None if entry.op in STAGE_BOUNDS else self._make(source)
            if made is not None:
                given.upstream[name] = source, made[2].values
                return made[:2]
            place = "assumed" if source.name == own else "borrowed"
            setattr(given, place, (*getattr(given, place), name))
        golden = self.inputs.pack.read(source.name)
        return golden, np.zeros(golden.shape)

    def _make(self, source: Entry):
        """The tensor by its op from the port's earlier ones, or None where that cannot be done."""
        source = self.inputs.maker(source)
        if source is None:
            return None
        if source.name not in self.made and len(self.made) < REACH:
            self.made[source.name] = None  # until it is known that it can be done
            given = self._all(source)
            if not given.borrowed and not given.assumed:
                truth = np.asarray(replay(source, given.values))
                self.made[source.name] = truth, self.inputs.allowed(source, given, truth), given
        return self.made.get(source.name)


def terms(entry: Entry, values: dict[str, Any], algorithm: str | None = None) -> int:
    """How many terms the sums of an op have, the shortest where there are several kinds."""
    x = values.get("x")
    if algorithm is not None:
        return values["weight"].shape[1]
    if entry.op == "matmul":
        return values["a"].shape[-1]
    if entry.op in ("linear", "conv2d"):
        return math.prod(values["weight"].shape[1:])
    if entry.op == "attention":
        return min(values["q"].shape[-1] // entry.options["heads"], values["k"].shape[1])
    if entry.op == "group_norm":
        return math.prod(x.shape[1:]) // entry.options["groups"]
    return x.shape[entry.options.get("axis", -1)]  # layer_norm, rms_norm, softmax


def _whole(found: np.ndarray) -> np.ndarray:
    """Whole numbers that were dumped as floats, as integers."""
    whole = found.dtype.kind == "f" and np.all(np.rint(found) == found)
    return found.astype("int64") if whole else found


def _content(entry: Entry) -> tuple:
    return entry.sha256, entry.shape, entry.dtype


def _none(arg):
    return [_none(one) for one in arg] if isinstance(arg, list) else np.zeros(np.shape(arg))


def _any(move):
    return any(map(_any, move)) if isinstance(move, list) else bool(np.any(move))
