"""Cases out of a port's own graph: its calls, each different one once, as a pack.

Inputs are random by the op's contract, of the numbers that the graph's format has. What they take
in memory is known before any is made.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd import parallel
from refsd.contracts import HALVES, Spec
from refsd.errors import UsageError
from refsd.examples import below
from refsd.golden.packs.manifest import Manifest, read_manifest
from refsd.golden.packs.writer import MANIFEST, Writer
from refsd.golden.recording.cases import GENERATOR, Case, add_case, numbers
from refsd.golden.recording.request import TRUTH
from refsd.golden.tolerances.formats import round_to
from refsd.kinds import Map, Pair
from refsd.registry import Op, ops

# What a case takes: bytes, and bytes for each number of its inputs and result. Measured are up to
# 160 with bounds, of a convolution, whose bounds for Winograd's algorithm want the most; up to 48
# without.
AT_LEAST, WITH_BOUNDS, WITHOUT = 64 << 20, 192, 64
NOTED = 20  # names of nodes that a case's note has


class Call(NamedTuple):
    """A call of an op in a port's graph: a Spec for an array, or one whose values count.

    dtype: what the port keeps its floats in.
    """

    op: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    node: str
    dtype: str = "float32"


class Left(NamedTuple):
    """A node of which no case is made, what kind it is, and why."""

    node: str
    kind: str
    why: str


class GraphCase(NamedTuple):
    """A case: the call, what it is named, and all nodes that make it."""

    call: Call
    name: str
    nodes: list[str]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every array, those of lists as "arrays.0" and on."""
        found: dict[str, tuple[int, ...]] = {}
        for name, value in self.call.inputs.items():
            each = {f"{name}.{i}": one for i, one in enumerate(value)} if isinstance(
                value, list) else {name: value}
            found |= {key: tuple(one.shape) for key, one in each.items() if hasattr(one, "shape")}
        return found

    def sizes(self) -> tuple[int, int]:
        """How many numbers its inputs and its result have."""
        result = ops()[self.call.op].contract(**self.call.inputs, **self.call.options)
        return sum(map(math.prod, self.shapes().values())), math.prod(result.shape)

    def memory(self, bounds: bool) -> int:
        """Bytes that making it takes, at the most."""
        return AT_LEAST + (WITH_BOUNDS if bounds else WITHOUT) * sum(self.sizes())


def different(calls: Iterable[Call]) -> tuple[list[GraphCase], list[Left]]:
    """The cases of these calls, and the calls that an op's contract refuses."""
    found: dict[str, GraphCase] = {}
    left, names = [], set()
    for call in calls:
        if why := refused(call):
            left.append(Left(call.node, call.op, why))
            continue
        key = repr([call.op, call.dtype, {k: _key(v) for k, v in call.inputs.items()},
                    sorted(call.options.items())])
        if key not in found:
            name = _named(call.node, {one for op, one in names if op == call.op})
            names.add((call.op, name))
            found[key] = GraphCase(call, name, [])
        found[key].nodes.append(call.node)
    return list(found.values()), left


def refused(call: Call) -> str:
    """Why the op's contract does not take a call; empty if it does."""
    declared = ops().get(call.op)
    if declared is None:
        return f"{call.op[:80]} is no op of this refsd; refsd ops has them all"
    try:
        declared.contract(**call.inputs, **call.options)
    except (UsageError, TypeError) as error:
        return str(error)
    return ""


def _key(value):
    if isinstance(value, np.ndarray):
        return value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    return [*map(_key, value)] if isinstance(value, list) else value


def _named(node: str, taken: set[str]) -> str:
    """A node's name as a pack has one, of its own."""
    name = re.sub(r"[^A-Za-z0-9_=+-]+", ".", node).strip(".")[-150:].strip(".") or "node"
    return next(one for one in (name, *(f"{name}.{i}" for i in range(2, len(taken) + 3)))
                if one not in taken)


def made(case: GraphCase, seed: int) -> Case:
    """The call with arrays: keyed by op, case and parameter, and by the seed unless it is 0."""
    declared, call = ops()[case.call.op], case.call
    where = f"{call.op}/{case.name}" + (f"#{seed}" if seed else "")

    def filled(name, value):
        if isinstance(value, list):
            return [filled(f"{name}.{i}", item) for i, item in enumerate(value)]
        if isinstance(value, np.ndarray):
            return value.astype("float32") if value.dtype.kind == "f" else value
        if not isinstance(value, Spec):
            return value
        array = numbers(f"{where}:{name}", value.shape, *_kind(declared, call, name, value))
        half = call.dtype in HALVES and array.dtype.kind == "f"  # the port has no other numbers
        return round_to(array, call.dtype) if half else array

    return Case(call.op, case.name, {key: filled(key, value)
                                      for key, value in call.inputs.items()}, call.options)


def _kind(op: Op, call: Call, name: str, spec: Spec) -> tuple:
    """Which numbers a parameter gets, and how large."""
    tensor = op.contract.tensor(name.partition(".")[0])
    if tensor.kind != "float":
        return (f"below_{below(op, call.inputs, tensor.below)}",)
    if tensor.form == "broadcast":  # a mask
        return "plain", 4.0
    if isinstance(op.kind, Map):
        return "positive" if op.kind.low == 0 else "plain", op.kind.scale
    if isinstance(op.kind, Pair):
        return ("positive" if op.kind.divides and name == "b" else "plain",)
    terms = (spec.shape[-2] if op.name == "matmul" and name == "b" else
             math.prod(spec.shape[1:]) if name == "weight" and len(spec.shape) > 1
             and op.name != "embedding" else 1)
    # so that results are about as large as inputs
    return "plain", 2.0 ** -round(math.log2(max(1, terms)) / 2)


def make_graph_cases(folder: str | Path, cases: Iterable[GraphCase], left: Iterable[Left], *,
                     source: dict[str, Any], seed: int = 0, resume: bool = False,
                     tolerance: Callable | None = None) -> Manifest:
    """Record these cases as a pack of the kind "ops"; source is what the recipe says of their file.
    """
    about = {"generator": GENERATOR.replace("CASE:", "CASE#SEED:") if seed else GENERATOR,
             "seed": seed, "cases": source,
             "left_out": [one._asdict() for one in left], **TRUTH}
    with parallel.limited(1), Writer(folder, recipe=about, model={}, kind="ops", resume=resume,
                                     title=f"The ops of {source['file']}, case by case") as writer:
        for one in cases:
            more = len(one.nodes) - NOTED
            note = ", ".join(one.nodes[:NOTED]) + (f" and {more} more" if more > 0 else "")
            add_case(writer, made(one, seed), tolerance, note=f"of {note}"[:2000])
    return read_manifest((Path(folder) / MANIFEST).read_bytes())
