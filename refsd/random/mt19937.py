"""The 32-bit Mersenne Twister, as torch's CPU generator seeds and steps it."""

import numpy as np

N, M = 624, 397
_UPPER, _LOWER = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_MATRIX = np.uint32(0x9908B0DF)


class MersenneTwister:
    """MT19937 (Matsumoto and Nishimura 1998), seeded with `init_genrand(seed mod 2^32)`.

    `words` are the 624 words of the state, `used` how many of them are spent. A fresh generator has
    used none, yet its words are the seed's: it steps before the first draw (`fresh`).
    """

    def __init__(self, seed):
        word = seed & 0xFFFFFFFF
        words = [word]
        for i in range(1, N):
            word = (1812433253 * (word ^ (word >> 30)) + i) & 0xFFFFFFFF
            words.append(word)
        self.words = np.array(words, dtype=np.uint32)
        self.used = 0
        self.fresh = True

    def draw(self, count):
        """The next `count` numbers.   () -> (count,) uint32"""
        parts = []
        missing = count
        while missing > 0:
            if self.fresh or self.used == N:
                self.words, self.used, self.fresh = _next_words(self.words), 0, False
            part = self.words[self.used : self.used + missing]
            parts.append(part)
            self.used += len(part)
            missing -= len(part)
        return _temper(np.concatenate(parts)) if parts else np.empty(0, dtype=np.uint32)


def _next_words(old):
    """new[i] = new_or_old[i + 397] ^ twist(old[i], old[i + 1]).   (624,) -> (624,)

    Word i needs new word i - 227, so the words come in runs of 227 that depend on earlier runs.
    """
    new = np.empty_like(old)
    twisted = _twist(old[:-1], old[1:])
    run = N - M
    new[:run] = old[M:] ^ twisted[:run]
    new[run : 2 * run] = new[:run] ^ twisted[run : 2 * run]
    new[2 * run : -1] = new[run : M - 1] ^ twisted[2 * run :]
    new[-1] = new[M - 1] ^ _twist(old[-1], new[0])
    return new


def _twist(u, v):
    mixed = (u & _UPPER) | (v & _LOWER)
    return (mixed >> np.uint32(1)) ^ (v & np.uint32(1)) * _MATRIX


def _temper(y):
    y = y ^ (y >> np.uint32(11))
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    y ^= y >> np.uint32(18)
    return y
