"""Layers that read the same tensor, such as the three projections of an attention.

A port that merges their weights into one product may have put them in another order: then each
gives what another one should.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import arrays_of, replay


def siblings(pack: Any, entry: Entry, inputs: Mapping[str, Any] | None,
             weight: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, result) of each other linear layer on these inputs that gives a tensor of the shape.

    inputs: the entry's, by parameter (None: unknown, then there is none); weight: what reads a
    weight of the pack.
    """
    if entry.op != "linear" or inputs is None:
        return
    for other in pack.entries.values():
        if (other.op == "linear" and other.shape == entry.shape
                and other.inputs["x"] == entry.inputs["x"]
                and other.inputs["weight"] != entry.inputs["weight"]):
            values = arrays_of(other, tensor=lambda name: inputs["x"], weight=weight)
            yield other.name, np.asarray(replay(other, values))
