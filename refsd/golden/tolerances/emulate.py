"""A port in another format, emulated: each op in float64, then with the roundings of the port.

    y = round(op(round(weights), x) + e)

x is what the op before gave, already rounded. e stands for the roundings inside the op, where they
matter beside the format's own; with a seed they are drawn, or else results are rounded by chance to
either neighbour; without a seed all is rounded to nearest, and e left out unless sums are
coarser than float32's.
"""

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from refsd.dense import to_dense
from refsd.golden.tolerances.bounds import WEIGHTS, error_model, moves_data
from refsd.golden.tolerances.formats import round_to
from refsd.golden.tolerances.precision import arithmetic_of, running_sum
from refsd.leaf import Weight
from refsd.registry import ops

# Roundings inside an op count where their unit is at least this part of the format's: together
# they are some ten units, the square of a hundredth of which is nothing beside the result's.
MATTERS = 1 / 1024


class Emulator:
    """Answers every op for registry.trace; `listener` is called as refsd.watch calls one."""

    def __init__(self, format: str, *, accumulate: str = "float32", seed: int | None = None,
                 applies: Callable[[str, dict], bool] | None = None,
                 listener: Callable | None = None):
        self.how = arithmetic_of(format, accumulate)
        self.applies = applies or (lambda op, inputs: True)
        self.listener = listener
        self.between = applies is None  # whether what is computed between the ops is rounded too
        self._random = None if seed is None else np.random.Generator(np.random.SFC64(seed))
        # Without a seed the noise of sums is still drawn, the same each time.
        self._noise = self._random or np.random.Generator(np.random.SFC64(0))
        coarse = self.how.sums.u >= MATTERS * self.how.tensors.unit
        self._inside = coarse and (seed is not None or self.how.sums.u > 2.0**-24)
        self._rounded: WeakKeyDictionary[Any, np.ndarray] = WeakKeyDictionary()

    def __call__(self, op: str, inputs: dict, options: dict, inferred: Any) -> np.ndarray:
        """The op's result as the port would have it."""
        definition = ops()[op].definition
        if not self.applies(op, inputs):
            output = definition(**{k: to_dense(inputs[k]) for k in inputs}, **options)
        else:
            stored = {name: self.weight(name, value) if name in WEIGHTS else to_dense(value)
                      for name, value in inputs.items()}
            output = definition(**stored, **options)
            if not moves_data(op):
                output = self.result(op, list(stored.values()), options, output)
            elif self.how.tensors.block:
                output = self.stored(output)
        if self.listener is not None:
            self.listener(op, inputs, options, output)
        return output

    def result(self, op: str, args: list, options: dict, y: np.ndarray) -> np.ndarray:
        """A result in the port's arithmetic."""
        if self._inside:
            size = deviation(op, args, options, y, self.how.sums)
            # Evenly spread over 2 sqrt(3) deviations: as good as any shape, and quick to draw.
            y = y + (self._noise.random(y.shape) - 0.5) * (math.sqrt(12) * size)
        return self.stored(y)

    def stored(self, y: np.ndarray) -> np.ndarray:
        """Rounded as the port stores its tensors; by chance only if nothing was drawn before."""
        return round_to(y, self.how.tensors, generator=None if self._inside else self._random)

    def weight(self, name: str, leaf: Any) -> Any:
        """A weight as the port stores it: to nearest, always the same."""
        if isinstance(leaf, Weight):
            if leaf.identity not in self._rounded:
                self._rounded[leaf.identity] = self.weight(name, leaf.dense())
            return self._rounded[leaf.identity]
        if not isinstance(leaf, np.ndarray):
            return leaf
        matrix = name == "weight" and leaf.ndim > 1
        return round_to(leaf, self.how.matrices if matrix else self.how.tensors,
                        axis=0 if matrix else None)


def deviation(op: str, args: list, options: dict, y: np.ndarray, p: Any) -> Any:
    """The size of the roundings inside an op: of long products a mean, of others each element's."""
    while args and args[-1] is None:
        args = args[:-1]
    model = error_model(op)
    with np.errstate(all="ignore"):
        if model.product:
            n = max(model.terms(args, options))
            squares = n * np.mean(np.square(args[0])) * np.mean(np.square(args[1]))
            size = math.sqrt(np.mean(np.square(y)))
            return np.sqrt(running_sum(n, squares, size, p, orders=1))
        if model.variance:
            return np.nan_to_num(np.sqrt(model.variance(args, options, y, p, 1.0)))
        return model.worst_of_ports(args, options, y, p) / math.sqrt(3)
