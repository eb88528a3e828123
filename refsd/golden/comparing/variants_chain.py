"""Wrong versions of ops whose results a port did not dump, as they show at the end of their chain.

A port that fuses a norm with silu leaves silu's result alone. The norm's wrong versions are made on
the norm's inputs, and what follows is computed again on each, up to the tensor that was dumped.
"""

from collections.abc import Callable, Iterator, Mapping
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
        for reason, sentence, array, *_ in variants(link.entry, wide(link), link.truth, link.truth,
                                                    {}):
            if np.shape(array) == link.truth.shape:
                yield reason, before(link, sentence), instead(last, links, name, array)


def instead(last: Link, links: Mapping[str, Link], name: str, array: np.ndarray) -> np.ndarray:
    """What the last op gives if a link had given this array; only what follows is computed."""
    follow = {name}
    for other in sorted(links, key=lambda name: links[name].entry.index):
        if follow.intersection(links[other].makers.values()):
            follow.add(other)
    kept = {other: link.truth for other, link in links.items() if other not in follow}
    return again(last, links, {**kept, name: array})


def before(link: Link, sentence: str) -> str:
    """What is wrong in a link, for the tensor at the end of the chain."""
    return f"in {link.entry.name} ({link.entry.op}), before it: {sentence}"


def wide(link: Link) -> dict[str, Any]:
    """A link's inputs in float64."""
    return {name: raise_to_float64(value) for name, value in link.values.items()}


def again(link: Link, links: Mapping[str, Link], changed: dict[str, np.ndarray],
          compute: Callable[[Entry, dict], Any] = replay) -> np.ndarray:
    """A link's result where those in `changed` gave something else; what it takes is kept there.

    compute(entry, inputs): what an op makes of its inputs, by parameter.
    """
    values = wide(link)
    for parameter, name in link.makers.items():
        if name not in changed:
            changed[name] = again(links[name], links, changed, compute)
        key, _, member = parameter.partition(".")
        if member:
            values[key] = [changed[name] if i == int(member) else value
                           for i, value in enumerate(values[key])]
        else:
            values[key] = changed[name]
    return np.asarray(compute(link.entry, values))
