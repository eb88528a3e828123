"""Small worked calls of every op: what contracts are shown on, probed with and tested with.

A call is written with shapes in place of arrays. Each op has its plain call first, then those that
ports get wrong: groups, odd sizes, one-sided padding, broadcasting, masks.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from refsd.contracts import Spec
from refsd.registry import ops


class Call(NamedTuple):
    """The arguments of one call by name, a Spec for every array."""

    inputs: dict[str, Any]
    options: dict[str, Any]


def f(*shape: int) -> Spec:
    """Floats of this shape."""
    return Spec(shape, "float32")


def i(*shape: int) -> Spec:
    """Indices of this shape."""
    return Spec(shape, "int64")


X = f(2, 3, 4)
VECTOR = {"dim": 8, "flip_sin_to_cos": True, "freq_shift": 0, "dtype": "float32"}
_WRITTEN: dict[str, list[tuple[tuple, dict[str, Any]]]] = {
    "linear": [((f(2, 3, 8), f(5, 8), f(5)), {}), ((f(7, 4), f(3, 4)), {})],
    "matmul": [((f(2, 3, 4), f(2, 4, 5)), {}), ((f(3, 1, 2, 3), f(5, 3, 4)), {})],
    "conv2d": [
        ((f(1, 4, 6, 5), f(8, 4, 3, 3), f(8)), {"padding": 1}),
        ((f(2, 4, 7, 6), f(6, 4, 3, 3), f(6)), {"stride": 2, "padding": ((0, 1), (0, 1))}),
        ((f(1, 5, 4, 3), f(3, 5, 1, 1), f(3)), {}),
        ((f(1, 6, 5, 8), f(4, 3, 3, 3)), {"groups": 2, "dilation": 2, "padding": (2, 1)}),
    ],
    "attention": [
        ((f(2, 5, 8), f(2, 7, 8), f(2, 7, 8)), {"heads": 2}),
        ((f(1, 6, 12), f(1, 6, 12), f(1, 6, 12)), {"heads": 3, "causal": True}),
        ((f(1, 4, 6), f(1, 5, 6), f(1, 5, 4)), {"heads": 2, "mask": f(4, 5)}),
    ],
    "group_norm": [
        ((f(2, 6, 4, 3), f(6), f(6)), {"groups": 3, "eps": 1e-5}),
        ((f(1, 4, 5), f(4), f(4)), {"groups": 1, "eps": 1e-6}),
    ],
    "layer_norm": [((f(2, 3, 8), f(8), f(8)), {"eps": 1e-5})],
    "rms_norm": [((f(2, 3, 8), f(8)), {"eps": 1e-6})],
    "silu": [((X,), {})],
    "quick_gelu": [((X,), {})],
    "gelu": [((X,), {})],
    "gelu_tanh": [((X,), {})],
    "geglu": [((f(2, 3, 8),), {})],
    "softmax": [((f(2, 3, 5),), {"axis": -1}), ((f(2, 3, 5),), {"axis": 1})],
    "embedding": [((i(2, 3), f(7, 4)), {})],
    "gather": [((f(2, 5, 4), i(2)), {})],
    "timestep_embedding": [
        ((i(3),), VECTOR),
        ((f(2),), VECTOR | {"dim": 7, "flip_sin_to_cos": False, "freq_shift": 1}),
    ],
    "rope": [
        ((f(2, 3, 8), i(3)), {"base": 10000.0, "interleaved": True}),
        ((f(5, 6), i(5)), {"base": 500.0, "interleaved": False}),
    ],
    "upsample_nearest": [
        ((f(1, 2, 3, 4),), {"height": 6, "width": 8}), ((f(1, 2, 5, 3),), {"height": 9, "width": 7})
    ],
    "upsample_bilinear": [
        ((f(1, 2, 3, 4),), {"height": 6, "width": 8, "align_corners": False}),
        ((f(1, 2, 3, 4),), {"height": 5, "width": 7, "align_corners": True}),
    ],
    "to_tokens": [((f(2, 3, 4, 5),), {})],
    "to_image": [
        ((f(2, 20, 3),), {"height": 4, "width": 5}), ((f(2, 3),), {"height": 1, "width": 1})
    ],
    "concat": [(([f(2, 3, 4), f(2, 2, 4)],), {"axis": 1})],
    "slice": [((f(2, 6, 3),), {"axis": 1, "start": 2, "stop": 5})],
    "pad": [((f(1, 2, 3, 3),), {"widths": ((0, 0), (0, 0), (0, 1), (0, 1))})],
    "transpose": [((X,), {"axes": (2, 0, 1)})],
    "add": [((X, X), {}), ((X, f(3, 1)), {}), ((X, 0.5), {})],
    "sub": [((X, X), {}), ((f(3, 1), X), {}), ((X, 1), {})],
    "mul": [((X, X), {}), ((X, f(4)), {}), ((X, -2), {})],
    "div": [((X, X), {}), ((X, f(2, 1, 1)), {}), ((X, 0.18215), {})],
    "exp": [((X,), {})],
    "sqrt": [((X,), {})],
    "clamp": [((X,), {"low": -0.5, "high": 0.5})],
}  # fmt: skip


def calls(op: str) -> list[Call]:
    """The worked calls of an op, the plain one first."""
    found = []
    for args, options in _WRITTEN[op]:
        names = ops()[op].signature.bind_partial(*args).arguments
        found.append(Call(dict(names), dict(options)))
    return found


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


# Indices must lie below what they point into; sinusoids are made for training steps.
_BELOW = {"embedding": lambda call: call.inputs["weight"].shape[0],
          "gather": lambda call: call.inputs["x"].shape[1],
          "timestep_embedding": lambda call: 1000}


def numbers(op: str, call: Call, seed: int) -> Call:
    """The call with arrays: normal float32 numbers and valid indices, the same for a seed.

    Where the op has limits they keep them: sqrt is given no negative numbers, div none near 0; a
    mask hides a third of the keys.
    """
    generator = np.random.Generator(np.random.Philox(seed))

    def array(name, spec):
        if spec.dtype != "float32":
            return generator.integers(0, _BELOW.get(op, lambda call: 64)(call), spec.shape)
        values = generator.standard_normal(spec.shape).astype("float32")
        if name == "timesteps":
            return np.float32(999) * generator.random(spec.shape, dtype="float32")
        if name == "mask":
            return np.where(generator.random(spec.shape) < 1 / 3, np.float32(-np.inf), values)
        if op == "sqrt" or (op == "div" and name == "b"):
            return np.abs(values) + np.float32(op == "div")
        return values

    return with_tensors(call, array)
