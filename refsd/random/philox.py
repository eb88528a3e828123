"""CUDA's generator: Philox4x32-10 as curand and torch use it, in NumPy."""

import math

import numpy as np

from refsd.errors import UsageError
from refsd.random.arguments import as_int, check_seed, check_shape_and_dtype, to_dtype
from refsd.random.fma import fma

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_BLOCK = 256  # threads of one block in torch's kernels


class PhiloxGenerator:
    """The numbers of `torch.Generator("cuda").manual_seed(seed)`, close but not bit-exact.

    The random bits are exact. The last step is not: the graphics card takes sine and cosine from a
    table with an absolute error of up to 2^-21.4, which no other processor has, so each number is
    within about 5e-6 of the card's (docs/noise.md says why).

    A tensor of more elements than the card runs threads at once (`multiprocessors` times
    `threads_per_multiprocessor`) is spread over them in rounds, so its numbers depend on the card.
    The defaults are an RTX 4090's, 128 x 1536 = 196,608 threads: 12 latents of 512 x 512 pictures.
    An A100 has 108 x 2048, an H100 132 x 2048, an RTX 3090 82 x 1536.

    The seed is an int from -2^63 to 2^64 - 1. Raises UsageError for anything else.

    >>> PhiloxGenerator(42).randn(2).round(4)
    array([0.194 , 2.1614], dtype=float32)
    """

    def __init__(
        self, seed: int, *, multiprocessors: int = 128, threads_per_multiprocessor: int = 1536
    ):
        sizes = as_int(multiprocessors), as_int(threads_per_multiprocessor)
        if None in sizes or sizes[0] < 1 or sizes[1] < _BLOCK:
            raise UsageError(
                f"PhiloxGenerator: got {multiprocessors!r} multiprocessors of "
                f"{threads_per_multiprocessor!r} threads; give at least 1 of at least {_BLOCK}"
            )
        self._max_blocks = sizes[0] * (sizes[1] // _BLOCK)
        self.manual_seed(seed)

    def __repr__(self):
        return f"PhiloxGenerator({self._seed})"

    @property
    def seed(self) -> int:
        """The seed in 0 .. 2^64 - 1."""
        return self._seed

    def initial_seed(self) -> int:
        """The seed, under torch's name."""
        return self._seed

    def manual_seed(self, seed: int) -> "PhiloxGenerator":
        """Start again from this seed; gives the generator itself."""
        self._seed = check_seed(seed)
        self._offset = 0
        return self

    def randn(self, *shape: int | tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Normal numbers of mean 0 and variance 1.   shape -> (shape) dtype

        dtype is float32, float64, float16 or bfloat16 (ml_dtypes'); the half types are the rounded
        float32 numbers. Raises UsageError for a bad shape or dtype.
        Source: torch 2.13.0, ATen/native/cuda/DistributionTemplates.h; curand_normal.h of CUDA 12.
        """
        shape, dtype = check_shape_and_dtype("randn", shape, dtype)
        count = math.prod(shape)
        if count == 0:
            return to_dtype(np.empty(shape), dtype)
        lanes, transform = (2, _normal_float64) if dtype == "float64" else (4, _normal_float32)
        threads = _BLOCK * min(-(-count // _BLOCK), self._max_blocks)
        rounds = -(-count // (threads * lanes))

        # Element (round, lane, thread) is lane `lane` of what that thread drew in that round.
        out = []
        for i in range(rounds):
            missing = count - i * threads * lanes
            bits = philox(self._seed, self._offset // 4 + i, np.arange(min(threads, missing)))
            out.append(transform(bits).ravel()[:missing])
        self._offset += 4 * rounds
        return to_dtype(np.concatenate(out), dtype).reshape(shape)

    def get_state(self) -> np.ndarray:
        """The seed and the offset, two little-endian 64-bit numbers.   () -> (16,) uint8"""
        return np.array([self._seed, self._offset], dtype="<u8").view(np.uint8)

    def set_state(self, state: np.ndarray) -> "PhiloxGenerator":
        """Continue from a state of get_state; gives the generator itself.

        Raises UsageError for anything else.
        """
        raw = np.asarray(state)
        if raw.dtype != np.uint8 or raw.shape != (16,):
            raise UsageError(
                f"set_state: got {raw.dtype} of shape {raw.shape}; give the (16,) uint8 array "
                "of get_state()"
            )
        seed, offset = (int(n) for n in np.frombuffer(raw.tobytes(), dtype="<u8"))
        if offset % 4:
            raise UsageError(f"set_state: got the offset {offset}; give a multiple of 4")
        self._seed, self._offset = seed, offset
        return self


def philox(seed, position, subsequences):
    """Philox4x32-10 (Salmon et al. 2011) at the counter (position, subsequence).

    key = (seed low, seed high), counter = (position low, high, subsequence low, high).
    int, int, (T,) ints -> (4, T) uint32
    """
    low32, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    key = [seed & 0xFFFFFFFF, seed >> 32]
    subsequences = subsequences.astype(np.uint64)
    zeros = np.zeros_like(subsequences)
    a, b = zeros + np.uint64(position & 0xFFFFFFFF), zeros + np.uint64(position >> 32)
    c, d = subsequences & low32, subsequences >> shift
    for _ in range(10):
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, c = (q >> shift) ^ b ^ np.uint64(key[0]), (p >> shift) ^ d ^ np.uint64(key[1])
        b, d = q & low32, p & low32
        key = [(k + step) & 0xFFFFFFFF for k, step in zip(key, _KEY_STEPS, strict=True)]
    return np.stack([a, b, c, d]).astype(np.uint32)


def _normal_float32(bits):
    """curand_normal4: pairs of s sin v, s cos v.   (4, T) uint32 -> (4, T) float32"""
    inverse = np.float32(2.3283064e-10)  # curand's 2^-32
    inverse_2pi = inverse * np.float32(6.2831855)
    u = fma(bits[0::2], inverse, inverse / 2).astype(np.float64)
    v = fma(bits[1::2], inverse_2pi, inverse_2pi / 2).astype(np.float64)

    radius = np.sqrt(-2 * np.log(u).astype(np.float32))
    sin, cos = np.sin(v).astype(np.float32), np.cos(v).astype(np.float32)
    return np.stack([radius * sin, radius * cos], axis=1).reshape(bits.shape) + 0


def _normal_float64(bits):
    """curand_normal2_double: s sin(pi v), s cos(pi v).   (4, T) uint32 -> (2, T) float64"""
    x, y = bits[0::2].astype(np.uint64) ^ (bits[1::2].astype(np.uint64) << np.uint64(21))
    u = x * 2.0**-53 + 2.0**-54
    v = y * 2.0**-52 + 2.0**-53

    radius = np.sqrt(-2 * np.log(u))
    quarters = np.round(2 * v)
    rest = np.pi * (v - quarters / 2)  # exact up to the product, in -pi/4 .. pi/4
    sin, cos = np.sin(rest), np.cos(rest)
    turned = [(sin, cos), (cos, -sin), (-sin, -cos), (-cos, sin)]
    quadrant = quarters.astype(np.int64) % 4
    sin, cos = (np.choose(quadrant, choice) for choice in zip(*turned, strict=True))
    return np.stack([radius * sin, radius * cos]) + 0
