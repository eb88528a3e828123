"""A prediction made of several texts with weights, each of which may change between steps.

    eps = eps(negative) + sum of w_i s (eps(text_i) - eps(negative))             Liu et al. 2022
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refsd import functional as F
from refsd.errors import UsageError
from refsd.half import in_float32
from refsd.pipelines.guidance import Guidance, as_text, rescale
from refsd.places import beside, on_host

KEPT = 8  # texts of which a layer's keys and values are kept for when they come again


class Timeline(NamedTuple):
    """One prompt's vectors (L, D): `states[which[i]]` up to and including call ends[i]."""

    ends: list[int]
    which: list[int]
    states: list[Any]

    def at(self, call: int) -> int:
        """The number of the state that a call of the model reads; after the last end the first."""
        return next((i for end, i in zip(self.ends, self.which) if call <= end), self.which[0])


def constant(states: Any) -> Timeline:
    """A prompt that does not change.   (L, D)"""
    return Timeline([0], [0], [states])


class Block(NamedTuple):
    """For each picture of a batch one text, and its weight."""

    weights: list[float]
    timelines: list[Timeline]


class ComposedGuidance(Guidance):
    """Guidance by `blocks` of texts away from `avoided`, which may be None for one block.

    Texts of fewer vectors than the longest beside them repeat their last one, as in A1111. Negative
    texts of another length are asked for in a call of their own.
    """

    def __init__(self, unet: Any, positive: Any, negative: Any = None, *, blocks: list[Block],
                 avoided: list[Timeline] | None, put: Any, **options: Any):
        super().__init__(unet, positive, None, **options)
        if getattr(self.control, "guess_mode", False):
            raise UsageError("guess_mode is not for prompts that are composed, that change between "
                             "steps, or of two lengths; leave it out")
        self.blocks, self.avoided, self.put = blocks, avoided, put
        self._texts: dict[tuple, list[Any]] = {}

    @staticmethod
    def rows(blocks: list[Block], **others: Any) -> int:
        """How many times as many samples the model is asked for at once as with one text."""
        return -(-(len(blocks) + 1) // 2)

    @staticmethod
    def arrays(blocks: list[Block], avoided: list[Timeline] | None, **others: Any) -> list[Any]:
        """What decides the predictions, as arrays."""
        lines = [line for row in ([block.timelines for block in blocks], [avoided or []])
                 for timelines in row for line in timelines]
        return [np.array([block.weights for block in blocks]), *(
            array for line in lines
            for array in (np.array(line.ends), np.array(line.which), *line.states))]

    def __call__(self, x: Any, timestep: Any, index: int) -> Any:
        """The prediction of a step.   (B, C, h, w) -> the same"""
        count, found = x.shape[0], []
        for text in self._at(index):
            self.text, blocks = text, text.states.shape[0] // count
            both = self.ask(F.concat([x] * blocks, axis=0), timestep, index)
            found += [both[i * count:(i + 1) * count] for i in range(blocks)]
        if self.avoided is None:
            return found[0]
        away, *towards = found
        weights = [self._weight(block, away) for block in self.blocks]
        predicted = composed(away, towards, weights)
        return rescale(predicted, towards[0], self.rescale) if self.rescale > 0 else predicted

    def change(self, changed: Mapping[str, Any]) -> None:
        """Another scale, or texts that from here on neither change nor are composed."""
        self.scale = changed.get("guidance_scale", self.scale)
        if (positive := changed.get("prompt_embeds")) is not None:
            self.blocks = [Block([1.0] * len(on_host(positive)), constants(positive))]
            self._texts.clear()
        if self.avoided and (negative := changed.get("negative_prompt_embeds")) is not None:
            self.avoided = constants(negative)
            self._texts.clear()

    def _at(self, index):
        """The texts of a step, for one call of the model each, the negative ones first."""
        rows = [[] if self.avoided is None else self.avoided,
                [timeline for block in self.blocks for timeline in block.timelines]]
        chosen = tuple(timeline.at(index) for row in rows for timeline in row)
        texts = self._texts.pop(chosen, None)
        if texts is None:
            states = [even([line.states[line.at(index)] for line in row]) for row in rows if row]
            if len({state.shape[1] for state in states}) == 1:
                states = [np.concatenate(states)]
            for state in states:
                state.flags.writeable = False
            texts = [as_text(self.put(state)) for state in states]
        self._texts[chosen] = texts
        if len(self._texts) > KEPT:
            del self._texts[next(iter(self._texts))]
        return texts

    def _weight(self, block, like):
        weights = [weight * self.scale for weight in block.weights]
        if len(set(weights)) == 1:
            return weights[0]
        dtype = "float64" if str(like.dtype) == "float64" else "float32"
        return beside(like, np.array(weights, dtype).reshape(-1, 1, 1, 1))


def constants(states: Any) -> list[Timeline]:
    """Prompts that do not change.   (B, L, D)"""
    return [constant(row) for row in on_host(states)]


def even(states: Sequence[Any]) -> Any:
    """Texts stacked, the shorter with their last vector repeated.   N times (L, D) -> (N, L, D)"""
    longest = max(len(state) for state in states)
    return np.stack([state if len(state) == longest else np.concatenate(
        [state, np.repeat(state[-1:], longest - len(state), axis=0)]) for state in states])


@in_float32
def composed(away: Any, towards: Sequence[Any], weights: Sequence[Any]) -> Any:
    """away + sum of w (towards - away).   (B, 4, h, w) each -> the same"""
    total = away
    for one, weight in zip(towards, weights, strict=True):
        total = total + weight * (one - away)
    return total
