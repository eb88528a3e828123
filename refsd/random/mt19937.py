"""The 32-bit Mersenne Twister, as torch's CPU generator seeds and steps it: NumPy's own."""

import numpy as np


class MersenneTwister:
    """MT19937 (Matsumoto and Nishimura 1998), seeded with `init_genrand(seed mod 2^32)`.

    `fresh` until the first draw: torch tells that apart from 624 words that are all spent.
    """

    def __init__(self, seed: int):
        self._engine = np.random.MT19937()
        self._engine.state = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self.fresh = True

    @property
    def words(self) -> np.ndarray:
        """The 624 words of the state.   (624,) uint32"""
        return self._engine.state["state"]["key"]

    @property
    def used(self) -> int:
        """How many of the words are spent: of a fresh state, as torch counts, none."""
        return 0 if self.fresh else self._engine.state["state"]["pos"]

    def resume(self, words: np.ndarray, used: int, fresh: bool) -> None:
        """Continue from a state."""
        state = {"key": words.astype(np.uint32), "pos": 624 if fresh else used}
        self._engine.state = {"bit_generator": "MT19937", "state": state}
        self.fresh = fresh

    def draw(self, count: int) -> np.ndarray:
        """The next `count` numbers.   () -> (count,) uint32"""
        self.fresh = self.fresh and count == 0
        return self._engine.random_raw(count).astype(np.uint32)
