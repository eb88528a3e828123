"""The random generators by the names of --rng."""

from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.half import is_half
from refsd.random import PhiloxGenerator, TorchGenerator
from refsd.random.arguments import check_dtype, check_seed, to_dtype

_POSITION = ("buffer_pos", "has_uint32", "uinteger")


class NumPyGenerator:
    """NumPy's own normal numbers: np.random.Generator(np.random.Philox(seed)).

    For those who want to make the same noise with NumPy alone. NumPy may change this stream from
    one release to another (NEP 19); the other generators never change.
    """

    def __init__(self, seed: int):
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> "NumPyGenerator":
        """Start again from this seed; gives the generator itself."""
        self.seed = check_seed(seed)
        self._generator = np.random.Generator(np.random.Philox(self.seed))
        return self

    def initial_seed(self) -> int:
        """The seed that it was given."""
        return self.seed

    def randn(self, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Normal numbers of mean 0 and variance 1.   shape -> (shape) dtype

        The half types are the rounded float32 numbers.
        """
        dtype = check_dtype("randn", dtype)
        drawn = self._generator.standard_normal(shape, "float32" if is_half(dtype) else dtype)
        return to_dtype(drawn, dtype)

    def get_state(self) -> np.ndarray:
        """The seed and the state of np.random.Philox.   () -> (112,) uint8"""
        state = self._generator.bit_generator.state
        numbers = [self.seed, *state["state"]["counter"], *state["state"]["key"], *state["buffer"],
                   *(state[name] for name in _POSITION)]
        return np.array(numbers, "<u8").view(np.uint8)

    def set_state(self, state: np.ndarray) -> "NumPyGenerator":
        """Continue from a state of get_state; gives the generator itself.

        Raises UsageError for anything else.
        """
        raw = np.asarray(state)
        numbers = raw.view("<u8") if raw.dtype == np.uint8 and raw.shape == (112,) else ()
        if len(numbers) == 0 or numbers[11] > 4 or numbers[12] > 1 or numbers[13] >= 2**32:
            raise UsageError(f"set_state: got {raw.dtype} of shape {raw.shape}; give the (112,) "
                             "uint8 array of get_state()")
        self.manual_seed(int(numbers[0]))
        position = dict(zip(_POSITION, map(int, numbers[11:])))
        self._generator.bit_generator.state = {
            "bit_generator": "Philox", "state": {"counter": numbers[1:5], "key": numbers[5:7]},
            "buffer": numbers[7:11], **position}
        return self


GENERATORS: dict[str, Any] = {
    "torch-cpu": TorchGenerator,
    "cuda": PhiloxGenerator,
    "numpy": NumPyGenerator,
}
