"""The next word of a text: scores of the vocabulary, penalised, cut, and drawn from.

The order and the conventions are those of transformers' generate: repetition penalty; then, where
words are drawn, temperature, top-k, top-p. Scores are float32 whatever the model computes in.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.pipelines.request import check_integer, check_number


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0: the most likely one, and nothing is drawn.

    Else each is as likely as e^(score / temperature), among the top_k most likely (all that are as
    likely as the last of them too), and of these among the fewest that have top_p of the
    probability. repetition_penalty divides positive scores of tokens that the text has, and
    multiplies negative ones (Keskar et al. 2019). None leaves a cut out.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, *, temperature: Any, top_k: Any, top_p: Any, repetition_penalty: Any) -> "Sampling":
        """Checked; UsageError for a number out of range, or a cut where nothing is drawn."""
        found = cls(
            check_number("temperature", temperature, 0, 100),
            None if top_k is None else check_integer("top_k", top_k, 1, 2**31),
            None if top_p is None else check_number("top_p", top_p, 0, 1),
            check_number("repetition_penalty", repetition_penalty, 0.01, 100))
        idle = [name for name in ("top_k", "top_p") if getattr(found, name) is not None]
        if idle and not found.draws:
            raise UsageError(f"{idle[0]} is given, and temperature is 0, where the most likely "
                             "token is taken; give a temperature such as 1, or leave it out")
        return found

    @property
    def draws(self) -> bool:
        """Whether chance has a part in it."""
        return self.temperature > 0

    def scores(self, logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """What the next token is chosen by, -infinity for those that are out.   (V,), (L,) -> (V,)

        logits (V,) of the last token, ids (L,) all tokens so far.
        """
        scores = logits.astype(np.float32)
        if self.repetition_penalty != 1:
            seen = np.unique(ids)
            had, penalty = scores[seen], np.float32(self.repetition_penalty)
            scores[seen] = np.where(had < 0, had * penalty, had / penalty)
        if self.draws:
            scores = scores / np.float32(self.temperature)
            for cut in (self._most_likely, self._enough):
                scores = np.where(cut(scores), scores, np.float32(-np.inf))
        return scores

    def _most_likely(self, scores):
        """Which are no less likely than the top_k-th.   (V,) -> (V,)"""
        if self.top_k is None or self.top_k >= scores.size:
            return True
        return scores >= np.partition(scores, -self.top_k)[-self.top_k]

    def _enough(self, scores):
        """Which are not the least likely that have 1 - top_p together; the likeliest always is in.

        Sums are of float64, rounded, as torch's cumsum of float32.
        """
        if self.top_p is None or self.top_p == 1:
            return True
        order = np.argsort(scores, kind="stable")
        sums = np.cumsum(probabilities(scores[order]), dtype=np.float64).astype(np.float32)
        out = sums <= np.float32(1 - self.top_p)
        out[-1] = False
        kept = np.empty_like(out)
        kept[order] = ~out
        return kept

    def choose(self, scores: np.ndarray, generator: Any) -> int:
        """A token by its scores: the likeliest, or drawn as torch.multinomial draws on a CPU."""
        if not np.isfinite(scores.max()):
            raise ModelError("text: the scores of the next token are not finite. The weights are "
                             "damaged or overflow: see refsd info, or take float32")
        if not self.draws:
            return int(np.argmax(scores))
        return int(np.argmax(probabilities(scores) / generator.exponential((scores.size,))))


def probabilities(scores: np.ndarray) -> np.ndarray:
    """softmax of the scores, of which one is finite.   (V,) -> (V,) float32"""
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()
