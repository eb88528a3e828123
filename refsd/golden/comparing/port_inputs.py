"""What a port gave an op: its own dumps, or what follows from them where it left one out.

A port that fuses ops leaves out what is between them (the silu between a norm and a convolution).
Such a tensor is computed in float64 from the port's own earlier ones. It is then known up to what
rounding may have done to it in the port, and that uncertainty is carried through the next op.

Where a port keeps more digits than an op's format has (float32 latents before a bfloat16 network,
or the golden noise), the op may have rounded them first; that is an uncertainty as well.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refsd.golden.comparing.limits import allowed, error_of
from refsd.golden.comparing.port_formats import Formats, tensors
from refsd.golden.comparing.siblings import siblings
from refsd.golden.comparing.variants_chain import Link
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import TENSOR, WEIGHT, replay, weights
from refsd.golden.tolerances.bounds.pipeline import PIPELINE_BOUNDS
from refsd.golden.tolerances.formats import round_to, uncertainty

REACH = 200  # ops that are computed at most to make up for what was not dumped: a block's


@dataclass
class OpInputs:
    """An op's inputs by parameter, and where they come from.

    perturbations: how far a computed input is from the port's, as limits.error_of gives it.
    computed: the entries that were computed, in order. borrowed: parameters whose golden tensor
    stands in. assumed: those that no entry made, so that the port may have been given the golden
    ones.
    upstream: for a computed input, the op that made it and its inputs; makers: that op's name, and
    links: all that were computed, by name. exact: the inputs before
    they were rounded for the op, where that changes them. size: what its result was allowed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    perturbations: dict[str, Any] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    upstream: dict[str, tuple[Entry, dict[str, Any]]] = field(default_factory=dict)
    makers: dict[str, str] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    exact: "OpInputs | None" = None
    size: Any = None


class Inputs:
    """`of(entry)`: what a port gave the entry's op; `allowed`: what its result may differ by.

    given: names of tensors that it was fed; the golden ones where it did not dump them.
    """

    def __init__(self, pack: Any, candidate: Any, formats: Formats, model: Any, confidence: float,
                 given: Collection[str] = ()):
        self.pack, self.candidate, self.formats = pack, candidate, formats
        self.confidence, self.given = confidence, given
        self.weight = weights(pack, model)
        self._same: dict[tuple, list[str]] = {}
        for entry in pack.entries.values():
            self._same.setdefault(_content(entry), []).append(entry.name)

    def aliases(self, entry: Entry) -> list[str]:
        """The names of the same tensor: a block has that of its last op."""
        return self._same[_content(entry)]

    def is_external(self, entry: Entry) -> bool:
        """Whether a port has it from outside: it was fed it, or no op made it (initial latents)."""
        return self.is_given(entry) or any(self.pack.entries[name].op is None
                                           for name in self.aliases(entry))

    def is_given(self, entry: Entry) -> bool:
        """Whether the port was fed it; a block is the result of its last op.

        Other aliases are not: a step's latents may be fed to the network, and the sampler has its
        own.
        """
        return entry.name in self.given or entry.op == "block" and any(
            name in self.given for name in entry.sources)

    def maker(self, entry: Entry) -> Entry | None:
        """The entry of the op that made a tensor: its own, or an alias's (a block's last op)."""
        for name in (entry.name, *self.aliases(entry)):
            maker = self.pack.entries[name]
            if maker.op not in (None, "block", *PIPELINE_BOUNDS) and maker.inputs:
                return maker
        return None

    def of(self, entry: Entry, *, compute: bool = True) -> OpInputs:
        """The inputs of an entry that has an op.

        compute=False takes the golden tensor for what the port did not dump, as a port that was fed
        it does.
        """
        return _Search(self, compute).of(entry)

    def dump(self, entry: Entry, own: str) -> np.ndarray | None:
        """The port's tensor for a reference: what the reader dumped, its maker, or an alias.

        Of a tensor that it was fed (a step's latents) its own result is an alias, and is not that.
        """
        fed = self.is_given(entry)
        aliases = [name for name in self.aliases(entry) if not fed or name in self.given]
        for name in dict.fromkeys((own, entry.name, *aliases)):
            tensor = self.candidate.read(name, entry.shape)
            if tensor is not None and tensor.shape == entry.shape:
                return _whole(tensor) if "int" in entry.dtype else tensor
        return None

    def rounded(self, entry: Entry, inputs: OpInputs) -> OpInputs | None:
        """The inputs, rounded to the op's format before it; None if they are numbers of it."""
        format = tensors(self.formats.of(entry))
        kept = [name for name in inputs.values if name in inputs.perturbations
                or str(entry.inputs[name]).startswith(WEIGHT)]
        values = {name: value if name in kept else _rounded(value, format)
                  for name, value in inputs.values.items()}
        changed = any(value is not inputs.values[name] for name, value in values.items())
        return replace(inputs, values=values, exact=inputs) if changed else None

    def allowed(self, entry: Entry, inputs: OpInputs, truth: np.ndarray, **how: Any) -> np.ndarray:
        """How far the port's result may be from the truth on these inputs, as limits.allowed."""
        return allowed(entry, inputs.values, truth, format=self.formats.of(entry).name,
                       confidence=self.confidence, perturbations=inputs.perturbations, **how)

    def siblings(self, entry: Entry, inputs: OpInputs | None) -> Iterator[tuple[str, np.ndarray]]:
        """What layers with other weights make of the same input, by name."""
        return siblings(self.pack, entry, inputs and inputs.values, self.weight)

    def error_of(self, entry: Entry, inputs: OpInputs, truth: np.ndarray) -> np.ndarray:
        """The perturbation of the result of an op that the port did not dump."""
        return error_of(entry, inputs.values, truth, format=self.formats.of(entry).name,
                        confidence=self.confidence, perturbations=inputs.perturbations)


class _Search:
    """The inputs of one entry; what is computed on the way is computed once."""

    def __init__(self, inputs: Inputs, compute: bool = True):
        self.inputs, self.compute = inputs, compute
        self.made: dict[str, tuple[np.ndarray, np.ndarray, OpInputs] | None] = {}

    def of(self, entry: Entry) -> OpInputs:
        inputs = self._all(entry)
        computed = [name for name, made in self.made.items() if made is not None]
        entries = self.inputs.pack.entries
        inputs.links = {name: Link(entries[name], made[2].values, made[2].makers, made[0])
                        for name, made in self.made.items() if made is not None}
        inputs.computed = tuple(sorted(computed, key=lambda name: entries[name].index))
        return inputs

    def _all(self, entry):
        inputs = OpInputs()
        for name, reference in entry.inputs.items():
            value, error = self._find(entry, inputs, name, reference)
            inputs.values[name] = value
            if _computed(error):
                inputs.perturbations[name] = _with_casts(value, error, self._format(entry))
        return inputs

    def _format(self, entry):
        return tensors(self.inputs.formats.of(entry))

    def _find(self, entry, inputs, name, reference):
        """An input and how far the port's may be from it: None where it was not computed."""
        if isinstance(reference, list):
            members = [self._find(entry, inputs, f"{name}.{i}", member)
                       for i, member in enumerate(reference)]
            return [value for value, _ in members], [error for _, error in members]
        if not isinstance(reference, str):
            return reference, None
        if reference.startswith(WEIGHT):
            return self.inputs.weight(reference), None
        source = self.inputs.pack.entries[reference.removeprefix(TENSOR)]
        own = f"{entry.name}:{name}"
        dumped = self.inputs.dump(source, own)
        if dumped is not None:
            return dumped, None
        if not self.inputs.is_external(source):
            made = None if entry.op in PIPELINE_BOUNDS or not self.compute else self._make(source)
            if made is not None:
                inputs.upstream[name] = source, made[2].values
                inputs.makers[name] = self.inputs.maker(source).name
                coarser = self._format(entry) in self.inputs.formats.casts(source)
                cast = _cast(made[0], self._format(entry)) if coarser else 0.0
                return made[0], np.hypot(made[1], cast)
            if source.name == own:
                inputs.assumed += (name,)
            else:
                inputs.borrowed += (name,)
        return self.inputs.pack.read(source.name), None

    def _make(self, source: Entry):
        """The tensor by its op from the port's earlier ones, or None where that cannot be done."""
        source = self.inputs.maker(source)
        if source is None:
            return None
        if source.name not in self.made and len(self.made) < REACH:
            self.made[source.name] = None  # until it is known that it can be done
            inputs = self._all(source)
            if not inputs.borrowed and not inputs.assumed:
                truth = np.asarray(replay(source, inputs.values))
                self.made[source.name] = truth, self.inputs.error_of(source, inputs, truth), inputs
        return self.made.get(source.name)


def _whole(tensor: np.ndarray) -> np.ndarray:
    """Whole numbers that were dumped as floats, as integers."""
    whole = tensor.dtype.kind == "f" and np.all(np.rint(tensor) == tensor)
    return tensor.astype("int64") if whole else tensor


def _content(entry: Entry) -> tuple:
    return entry.sha256, entry.shape, entry.dtype


def _computed(error):
    return any(map(_computed, error)) if isinstance(error, list) else error is not None


def _with_casts(value, error, format):
    """The perturbations of an input, the members of a list that were not computed included."""
    if isinstance(value, list):
        return [_with_casts(*both, format) for both in zip(value, error)]
    return _cast(value, format) if error is None else error


def _cast(value, format):
    """What rounding to an op's format may have moved an input by that has more digits."""
    return uncertainty(value, format) if value.dtype.kind == "f" else np.zeros(value.shape)


def _rounded(value, format):
    """An array, or those of a list, as numbers of the format: the same object if it is already."""
    if isinstance(value, list):
        rounded = [_rounded(member, format) for member in value]
        return rounded if any(new is not old for new, old in zip(rounded, value)) else value
    if getattr(value, "dtype", np.dtype("i8")).kind != "f" or not np.any(_cast(value, format)):
        return value
    return round_to(value, format)
