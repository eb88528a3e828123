"""Wrong versions of ops whose results a port did not dump, as they show at the end of their chain.

A port that fuses a norm with silu leaves silu's result alone. The norm's wrong versions are made on
the norm's inputs, and what follows is computed again on each, up to the tensor that was dumped.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refsd.golden.comparing.fits import Triple
from refsd.golden.comparing.variants import variants
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import raise_to_float64, replay

LINKS = 8  # ops of a chain: those of a fused kernel; of a whole block it would take minutes


class Link(NamedTuple):
    """An op that was computed: its inputs, which of them were computed too, and its result.

    makers: parameter (tensors.1 of a list) -> the name of the link that made it.
    """

    entry: Entry
    values: Mapping[str, Any]
    makers: Mapping[str, str]
    truth: np.ndarray


def through(last: Link, links: Mapping[str, Link]) -> Iterator[Triple]:
    """(reason, sentence, array) of every wrong version of every link, in the order of execution.

    array is what the last op then gives. A chain of more than LINKS has none.
    """
    if len(links) > LINKS:
        return
    for name in sorted(links, key=lambda name: links[name].entry.index):
        link = links[name]
        wide = {key: raise_to_float64(value) for key, value in link.values.items()}
        for reason, sentence, array, *_ in variants(link.entry, wide, link.truth, link.truth, {}):
            if np.shape(array) == link.truth.shape:
                yield (reason, f"in {link.entry.name} ({link.entry.op}), before it: {sentence}",
                       _again(last, links, {name: array}))


def _again(link: Link, links: Mapping[str, Link], changed: dict[str, np.ndarray]) -> np.ndarray:
    """A link's result where those in `changed` gave something else; what it takes is kept there."""
    values = {key: raise_to_float64(value) for key, value in link.values.items()}
    for parameter, name in link.makers.items():
        if name not in changed:
            changed[name] = _again(links[name], links, changed)
        key, _, member = parameter.partition(".")
        if member:
            values[key] = [changed[name] if i == int(member) else value
                           for i, value in enumerate(values[key])]
        else:
            values[key] = changed[name]
    return np.asarray(replay(link.entry, values))
