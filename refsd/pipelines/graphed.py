"""A network's calls as graphs: traced at the first call of each shape, fused, run from then on.

What depends on the text and the weights alone is computed once for a text, as models.layers.Text
does it in eager calls. Eager is the definition: where somebody hears of each op (a profile, a
recording, an audit), it is what runs.
"""

from collections.abc import Callable
from operator import is_not
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from refsd.contracts import Spec
from refsd.graph import run, trace
from refsd.graph.passes import Pass, Split, optimize, split
from refsd.leaf import Weight
from refsd.models.layers import Text
from refsd.registry import is_watched
from refsd.tree import flatten


class _Made(NamedTuple):
    """A graph in two parts, and its inputs' numbers in the order of the call; what it is kept by.
    """

    parts: Split
    numbers: tuple[int, ...]
    specs: tuple[Spec | None, ...]


class Graphed:
    """function(text, *arrays), where text is an array, a Text or None, of a network's leaves.

    Graphs are kept for all shapes that came up, while the network's tree has the same leaves.
    """

    def __init__(self, function: Callable[..., Any], network: Any, passes: tuple[Pass, ...]):
        self._function, self._network, self._passes = function, network, passes
        self._leaves: list[Any] = []
        self._made: dict[tuple, _Made] = {}
        self._kept: WeakKeyDictionary = WeakKeyDictionary()

    def __call__(self, text: Any, *arrays: Any) -> Any:
        """What the function gives."""
        if is_watched():
            return self._function(text, *arrays)
        given = [text.states if isinstance(text, Text) else text, *arrays]
        made = self._graphs(given)
        found = dict(zip(made.numbers, (array for array in given if array is not None)))
        found |= self._once(made, text, found)
        return run(made.parts.each, *made.parts.inputs(made.parts.each, found))

    def _graphs(self, given):
        leaves = [*flatten(self._network.tree).values()]
        if len(leaves) != len(self._leaves) or any(map(is_not, leaves, self._leaves)):
            self._leaves, self._made = leaves, {}
            self._kept.clear()
        specs = tuple(None if array is None else Spec(tuple(array.shape), str(array.dtype))
                      for array in given)
        if specs not in self._made:
            graph, _ = optimize(trace(self._function, *specs), self._passes)
            numbers = graph.numbers("input")
            fixed = () if given[0] is None else numbers[:1]
            self._made[specs] = _Made(split(graph, fixed), numbers, specs)
        return self._made[specs]

    def _once(self, made, text, found):
        """What is hoisted, by number: kept for a Text that nobody can write to, nor to weights."""
        parts = made.parts
        lasting = isinstance(text, Text) and text.lasting and all(
            isinstance(array, Weight) for array in parts.once.held.values())
        kept = self._kept.setdefault(text, {}) if lasting else {}
        if made.specs not in kept:
            kept[made.specs] = dict(zip(parts.hoisted, run(
                parts.once, *parts.inputs(parts.once, found))))
        return kept[made.specs]
