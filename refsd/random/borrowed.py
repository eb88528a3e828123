"""A torch.Generator as the caller's own source of noise, without torch."""

from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.random.torch_cpu import TorchGenerator


class BorrowedGenerator:
    """A torch.Generator of the CPU: its next numbers, and its state moves on as torch moves it.

    Raises UsageError for one on another device, which keeps its state there.
    """

    def __init__(self, generator: Any):
        device = str(getattr(generator, "device", "cpu"))
        if device != "cpu":
            raise UsageError(
                f"generator is torch's on {device}; give one on the CPU, or "
                f"refsd.random.PhiloxGenerator({generator.initial_seed()}), whose numbers are close"
            )
        self.theirs = generator

    def initial_seed(self) -> int:
        """The seed that it was given."""
        return self.theirs.initial_seed()

    def randn(self, shape: tuple[int, ...], dtype: Any = "float32") -> np.ndarray:
        """Normal numbers of mean 0 and variance 1.   shape -> (shape) dtype"""
        return self._draw("randn", shape, dtype)

    def exponential(self, shape: tuple[int, ...], dtype: Any = "float32") -> np.ndarray:
        """Exponential numbers of mean 1.   shape -> (shape) dtype"""
        return self._draw("exponential", shape, dtype)

    def _draw(self, method, shape, dtype):
        state = self.theirs.get_state()
        ours = TorchGenerator(0).set_state(state)
        values = getattr(ours, method)(shape, dtype=dtype)
        np.asarray(state)[:] = ours.get_state()  # the tensor's memory is the array's
        self.theirs.set_state(state)
        return values


def is_torch_generator(value: Any) -> bool:
    """Whether this is a torch.Generator, told without torch."""
    return all(hasattr(value, name) for name in ("get_state", "set_state", "initial_seed")) and (
        not hasattr(value, "randn"))
