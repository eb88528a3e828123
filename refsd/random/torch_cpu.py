"""torch's CPU generator: the same seed gives the same values as `torch.Generator`, bit-exact."""

import math

import numpy as np

from refsd.errors import UsageError
from refsd.random.arguments import as_int, check_seed, check_shape, check_shape_and_dtype, to_dtype
from refsd.random.box_muller import box_muller_float32, box_muller_float64, normal_pairs
from refsd.random.mt19937 import MersenneTwister

# The 5056 bytes of torch.Generator().get_state() (aten/src/ATen/CPUGeneratorImpl.cpp).
_STATE = np.dtype(
    {
        "names": ["seed", "left", "seeded", "next", "words", "normal", "has_normal", "has_float"],
        "formats": ["<u8", "<i4", "<i4", "<u8", ("<u8", 624), "<f8", "<i4", "u1"],
        "offsets": [0, 8, 12, 16, 24, 5024, 5040, 5052],
        "itemsize": 5056,
    }
)


class TorchGenerator:
    """The numbers of `torch.Generator("cpu").manual_seed(seed)` in torch 2.13.0.

    Equal to the bit to torch on x86 processors with AVX2 (docs/noise.md says more). The seed is an
    int from -2^63 to 2^64 - 1, negative ones counting from 2^64 down; seeds that are equal modulo
    2^32 give equal numbers, as in torch. Anything else raises UsageError.

    >>> TorchGenerator(42).randn(2).round(4)
    array([0.3367, 0.1288], dtype=float32)
    """

    def __init__(self, seed: int):
        self.manual_seed(seed)

    def __repr__(self):
        return f"TorchGenerator({self._seed})"

    @property
    def seed(self) -> int:
        """The seed in 0 .. 2^64 - 1. (In torch, `seed()` draws a new one; there is none here.)"""
        return self._seed

    def initial_seed(self) -> int:
        """The seed, under torch's name."""
        return self._seed

    def manual_seed(self, seed: int) -> "TorchGenerator":
        """Start again from this seed; gives the generator itself."""
        self._seed = check_seed(seed)
        self._engine = MersenneTwister(self._seed)
        self._cached = None  # the second normal of a pair, when the first was the last one asked
        return self

    def randn(self, *shape: int | tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Normal numbers of mean 0 and variance 1.   shape -> (shape) dtype

        dtype is float32, float64, float16 or bfloat16 (ml_dtypes'); float64 numbers are other
        numbers, not the same ones to more digits. A tensor of 16 elements or more is filled in
        blocks, a smaller one in pairs whose second number is kept for the next small tensor.
        Raises UsageError for a bad shape or dtype.
        Source: torch 2.13.0, ATen/native/cpu/DistributionTemplates.h, normal_fill, normal_kernel.
        """
        shape, dtype = check_shape_and_dtype("randn", shape, dtype)
        count = math.prod(shape)
        flat = self._blocks(count, dtype) if count >= 16 else self._pairs(count)
        return to_dtype(flat, dtype).reshape(shape)

    def rand(self, *shape: int | tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Uniform numbers in [0, 1).   shape -> (shape) dtype

        Source: torch 2.13.0, ATen/native/cpu/DistributionTemplates.h, uniform_kernel.
        """
        shape, dtype = check_shape_and_dtype("rand", shape, dtype)
        flat = to_dtype(self._uniform(math.prod(shape), dtype), dtype)
        flat[flat == 1] = 0  # a half type may have rounded up to the open end
        return flat.reshape(shape)

    def randint(self, low: int, high: int, *shape: int | tuple[int, ...]) -> np.ndarray:
        """Integers in low .. high - 1, by remainder.   shape -> (shape) int64

        Raises UsageError unless -2^63 <= low < high < 2^63.
        Source: torch 2.13.0, ATen/core/DistributionsHelper.h, uniform_int_from_to_distribution.
        """
        shape = check_shape("randint", shape)
        bounds = as_int(low), as_int(high)
        if None in bounds or not -(2**63) <= bounds[0] < bounds[1] < 2**63:
            raise UsageError(
                f"randint: got low {low!r}, high {high!r}; give ints, -2**63 <= low < high < 2**63"
            )
        low, high = bounds
        count = math.prod(shape)
        draws = self._draw64(count) if high - low >= 2**28 else self._engine.draw(count)
        offset = draws.astype(np.uint64) % np.uint64(high - low)
        return (offset + np.uint64(low % 2**64)).view(np.int64).reshape(shape)

    def exponential(self, *shape: int | tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """-log(1 - u) of uniform u, of mean 1.   shape -> (shape) dtype

        Always of float64's u, then rounded. torch.multinomial of one sample is the largest of
        probability over this. Source: torch 2.13.0, ATen/core/DistributionsHelper.h.
        """
        shape, dtype = check_shape_and_dtype("exponential", shape, dtype)
        u = self._uniform(math.prod(shape), "float64")
        flat = np.array([-math.log1p(-x) for x in u.tolist()])  # the C library's, as box_muller's
        return to_dtype(flat, dtype).reshape(shape)

    def get_state(self) -> np.ndarray:
        """The state in torch's own layout: `torch.from_numpy` of it fits torch's set_state.

        () -> (5056,) uint8
        """
        engine = self._engine
        state = np.zeros((), dtype=_STATE)
        state["seed"], state["seeded"] = self._seed, 1
        state["words"], state["next"] = engine.words, engine.used
        state["left"] = 1 if engine.fresh else 625 - engine.used
        if self._cached is not None:
            state["normal"], state["has_normal"] = self._cached, 1
        return np.frombuffer(state.tobytes(), dtype=np.uint8).copy()

    def set_state(self, state: np.ndarray) -> "TorchGenerator":
        """Continue from a state of get_state, ours or torch's; gives the generator itself.

        Raises UsageError for anything that is not the state of a torch CPU generator.
        """
        raw = np.asarray(state)
        if raw.dtype != np.uint8 or raw.shape != (_STATE.itemsize,):
            raise UsageError(
                f"set_state: got {raw.dtype} of shape {raw.shape}; give the (5056,) uint8 array "
                "of get_state()"
            )
        fields = np.frombuffer(raw.tobytes(), dtype=_STATE)[0]
        used, left = int(fields["next"]), int(fields["left"])
        fresh = used == 0 and left == 1
        words = fields["words"]
        consistent = fields["seeded"] == 1 and (fresh or (1 <= used <= 624 and left == 625 - used))
        if not consistent or words.max() >= 2**32 or fields["has_float"]:
            raise UsageError("set_state: these bytes are not the state of a torch CPU generator; "
                         "give what get_state gave")
        self._seed = int(fields["seed"])
        self._engine.resume(words, used, fresh)
        self._cached = float(fields["normal"]) if fields["has_normal"] else None
        return self

    def _blocks(self, count, dtype):
        """16 elements or more: Box-Muller on blocks of 16 uniforms.

        A last block that is not full is not used: the last 16 elements, finished or not, are
        made anew from 16 fresh uniforms. float32 and float64 have drawn a uniform for each element
        before that, the half types only for the full blocks.
        """
        transform = box_muller_float64 if dtype == "float64" else box_muller_float32
        full = count - count % 16
        drawn = count if dtype in ("float32", "float64") else full
        uniform = self._uniform(drawn, dtype)
        out = np.empty(count, dtype=uniform.dtype)
        out[:full] = transform(uniform[:full].reshape(-1, 16)).ravel()
        if full < count:
            out[-16:] = transform(self._uniform(16, dtype).reshape(1, 16)).ravel()
        return out

    def _pairs(self, count):
        """Fewer than 16 elements: pairs in float64, the odd one out kept for the next call."""
        kept = [] if self._cached is None or count == 0 else [self._cached]
        missing = count - len(kept)
        pairs = (missing + 1) // 2
        u = self._uniform(2 * pairs, "float64").reshape(pairs, 2)
        fresh = normal_pairs(u[:, 0], u[:, 1]).ravel()
        if count > 0:
            self._cached = float(fresh[-1]) if missing % 2 else None
        # torch's last step is n * std + mean: with mean 0 it turns -0 into +0.
        return np.concatenate([kept, fresh[:missing]]) + 0.0

    def _uniform(self, count, dtype):
        """24 bits of one draw for float32 and the halves, 53 bits of two draws for float64."""
        if dtype == "float64":
            return (self._draw64(count) & np.uint64(2**53 - 1)) * 2.0**-53
        return (self._engine.draw(count) & np.uint32(2**24 - 1)).astype(np.float32) * 2.0**-24

    def _draw64(self, count):
        high, low = self._engine.draw(2 * count).reshape(count, 2).astype(np.uint64).T
        return high << np.uint64(32) | low
