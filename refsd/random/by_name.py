"""The random generators by the names of --rng."""

from typing import Any

import numpy as np

from refsd.half import is_half
from refsd.random import PhiloxGenerator, TorchGenerator
from refsd.random.arguments import check_dtype, check_seed, to_dtype


class NumPyGenerator:
    """NumPy's own normal numbers: np.random.Generator(np.random.Philox(seed)).

    For those who want to make the same noise with NumPy alone. NumPy may change this stream from
    one release to another (NEP 19); the other generators never change.
    """

    def __init__(self, seed: int):
        self.seed = check_seed(seed)
        self._generator = np.random.Generator(np.random.Philox(self.seed))

    def randn(self, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Normal numbers of mean 0 and variance 1.   shape -> (shape) dtype

        The half types are the rounded float32 numbers.
        """
        dtype = check_dtype("randn", dtype)
        drawn = self._generator.standard_normal(shape, "float32" if is_half(dtype) else dtype)
        return to_dtype(drawn, dtype)


GENERATORS: dict[str, Any] = {
    "torch-cpu": TorchGenerator,
    "cuda": PhiloxGenerator,
    "numpy": NumPyGenerator,
}
