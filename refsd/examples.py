"""Sample calls of every op: those that its declaration states, or those of its kind.

    @op("x (... K), weight (out K), bias (out) -> (... out)", flops="2 * size * K",
        examples=[call((2, 3, 8), (5, 8), (5,)), call((7, 4), (3, 4))])

The plain call first, then what kernels and ports get wrong: groups, odd sizes, one-sided padding,
broadcasting, masks. Small: they are run by tests, written into contracts and read by people.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from refsd.contracts import Spec
from refsd.kinds import Map, Pair
from refsd.registry import Op

X = (2, 3, 4)


class Call(NamedTuple):
    """The arguments of one call by name, a Spec for every array."""

    inputs: dict[str, Any]
    options: dict[str, Any]


def calls(op: Op) -> list[Call]:
    """The sample calls of an op, the plain one first; none if nothing is declared."""
    return [_call(op, *example) for example in op.examples or _OF_KIND.get(type(op.kind), ())]


_OF_KIND = {Map: [((X,), {})],
            Pair: [((X, X), {}), ((X, (3, 1)), {}), (((4,), X), {}), ((X, 0.5), {})]}


def _call(op, arguments, options):
    named = {**op.signature.bind_partial(*arguments).arguments, **options}
    for tensor in op.contract.tensors:
        if tensor.name in named:
            named[tensor.name] = _specs(tensor, named[tensor.name])
    inputs = {name: named[name] for name in list(op.signature.parameters)[:len(arguments)]}
    return Call(inputs, {name: named[name] for name in options})


def _specs(tensor, value):
    if isinstance(value, list):
        return [_specs(tensor, shape) for shape in value]
    dtype = "float32" if tensor.kind == "float" else "int64"
    return value if isinstance(value, (Spec, int, float)) else Spec(value, dtype)


def tensors(call: Call) -> Iterator[tuple[str, Spec]]:
    """Every Spec of a call with its parameter's name; those of a list are "arrays.0" and on."""
    for name, value in {**call.inputs, **call.options}.items():
        if isinstance(value, Spec):
            yield name, value
        elif isinstance(value, list):
            yield from ((f"{name}.{k}", item) for k, item in enumerate(value))


def with_tensors(call: Call, change: Callable[[str, Spec], Any]) -> Call:
    """The same call with change(name, spec) in the place of every Spec."""

    def changed(name, value):
        if isinstance(value, Spec):
            return change(name, value)
        if isinstance(value, list):
            return [change(f"{name}.{k}", item) for k, item in enumerate(value)]
        return value

    return Call(*({name: changed(name, value) for name, value in part.items()} for part in call))


def with_values(op: Op, call: Call, seed: int) -> Call:
    """The call with arrays: normal float32 values and valid indices, the same for a seed.

    Where the op has limits they keep them: its kind's domain, divisors away from 0, indices below
    what they point into; a mask hides a third of the keys.
    """
    generator = np.random.Generator(np.random.Philox(seed))

    def array(name, spec):
        tensor = op.contract.tensor(name.partition(".")[0])
        if spec.dtype != "float32":
            return generator.integers(0, below(op, call.inputs, tensor.below), spec.shape)
        values = generator.standard_normal(spec.shape).astype("float32")
        if tensor.kind == "real":
            return np.float32(below(op, call.inputs, tensor.below) - 1) * generator.random(
                spec.shape, dtype="float32")
        if tensor.form == "broadcast":
            return np.where(generator.random(spec.shape) < 1 / 3, np.float32(-np.inf), values)
        if isinstance(op.kind, Map) and op.kind.low == 0:
            return np.abs(values)
        if isinstance(op.kind, Pair) and op.kind.divides and name == "b":
            return np.abs(values) + np.float32(1)
        return values

    return with_tensors(call, array)


def below(op: Op, inputs: dict[str, Any], limit: str) -> int:
    """What the indices of a call lie below: as declared, "1000" or the size of an axis, or 64."""
    for tensor in op.contract.tensors:
        if limit in tensor.letters:
            return inputs[tensor.name].shape[tensor.letters.index(limit)]
    return int(limit or 64)
