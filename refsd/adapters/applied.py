"""The adapters of one network: merged into its tree, and taken out again to the bit.

W' = W + sum_i delta_i(W), each of the W that the model was loaded with, in float64, rounded once to
the form in which W is held. The tree has W' as a leaf of its own, placed as the backend places
weights, so that models, kernels and what is kept by a leaf's identity see nothing but a weight. W
is kept beside it, and put back: at most one more copy of each weight that an adapter touches.

A weight that is held as int8 is rounded to int8 again, with scales of its own: half a step more,
of the kind that the user accepted for W, and no more memory.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refsd.adapters.blocks import Blocks
from refsd.adapters.kinds import Change
from refsd.backends import find_backend
from refsd.half import is_half, to_half
from refsd.leaf import Weight, seal
from refsd.places import is_on_device
from refsd.quantized import Quantized, can_quantize, quantize
from refsd.weights.memory import check_memory

Strengths = Mapping[str, float | Blocks]


class Applied:
    """The adapters of a network, by name, and the strength at which each is in its tree."""

    def __init__(self, tree: Mapping[str, Any], backend: str):
        self.tree, self.backend = tree, backend
        self.changes: dict[str, Mapping[str, Change]] = {}  # adapter -> weight -> what it adds
        self.strengths: dict[str, float | Blocks] = {}  # of those in the tree
        self.fused = False
        self._originals: dict[str, Weight] = {}
        self._merged: dict[str, tuple[list, Weight]] = {}  # weight -> what is in it, and the leaf

    def show(self, strengths: Strengths, changes: Mapping[str, Mapping] | None = None) -> None:
        """Have these adapters in the tree at these strengths, of these `changes` if they are new.

        ResourceError where the copies would not fit into memory. Where that fails all the same, or
        by an interrupt, it is as before.
        """
        before = self.strengths, self.changes
        changes = self.changes if changes is None else changes
        check_memory(self._more_bytes(strengths, changes), "merging the adapters")
        try:
            self._show(strengths, changes)
        except BaseException:
            self._show(*before)
            raise

    def _more_bytes(self, strengths, changes):
        """Of the host: a copy of each weight that none has yet, and float64 of the largest."""
        touched = {weight for name in strengths for weight in changes.get(name, ())}
        leaves = [self._get(weight) for weight in touched - self._originals.keys()]
        leaves = [leaf for leaf in leaves if not is_on_device(leaf)]
        largest = max((math.prod(leaf.shape) for leaf in leaves), default=0)
        return sum(leaf.nbytes for leaf in leaves) + 4 * 8 * largest

    def keep(self) -> None:
        """Forget the adapters and the weights of before; what is in the tree stays in it."""
        self.changes, self.strengths, self.fused = {}, {}, False
        self._originals.clear()
        self._merged.clear()

    def _show(self, strengths, changes):
        wanted: dict[str, list] = {}
        for name, strength in strengths.items():
            for weight, change in changes.get(name, {}).items():
                own = strength.of(weight) if isinstance(strength, Blocks) else strength
                wanted.setdefault(weight, []).append((change, own))
        for weight in [*self._originals]:
            if self._get(weight) is not self._merged[weight][1]:  # the caller has put another there
                del self._originals[weight], self._merged[weight]
            elif weight not in wanted:
                self._put(weight, self._originals[weight])
                del self._originals[weight], self._merged[weight]
        for weight, what in wanted.items():
            if weight not in self._merged or not _same(self._merged[weight][0], what):
                original = self._originals[weight] if weight in self._originals else (
                    self._get(weight))
                leaf = {weight: merged(original, what)}
                find_backend(self.backend).place(leaf)
                self._put(weight, leaf[weight])
                self._originals[weight], self._merged[weight] = original, (what, leaf[weight])
        self.strengths, self.changes = dict(strengths), dict(changes)

    def _get(self, name):
        node = self.tree
        for key in name.split("."):
            node = node[int(key) if isinstance(node, list) else key]
        return node

    def _put(self, weight, leaf):
        module, _, last = weight.rpartition(".")
        self._get(module)[last] = leaf


def merged(original: Weight, changes: list[tuple[Change, float]]) -> Weight:
    """W + what is added to it, rounded once, in the form in which W is held."""
    held = original.numpy() if is_on_device(original) else np.asarray(original)
    (change, strength), *others = changes
    total = change.delta(held, strength)
    for change, strength in others:
        total += change.delta(held, strength)
    total += held
    name, dtype = getattr(original, "name", None), original.dtype
    if isinstance(original, Quantized):
        if original.scale is None:
            return type(original)(seal(to_half(total, original.values.dtype)), None, dtype, name)
        if can_quantize(total):
            values, scale = quantize(total.astype(np.float32))
            return type(original)(seal(values), scale, dtype, name)
    return Weight(seal(to_half(total, dtype) if is_half(dtype) else total.astype(dtype)), name)


def _same(some, others):
    return len(some) == len(others) and all(
        a is b and s == t for (a, s), (b, t) in zip(some, others))
