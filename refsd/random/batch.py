"""Noise for a batch of samples, in the order in which diffusers takes it from its generators."""

from typing import Any

import numpy as np

from refsd.arguments import shown
from refsd.errors import UsageError
from refsd.random.borrowed import BorrowedGenerator, is_torch_generator


def draw_noise(shape: tuple[int, ...], dtype: Any, generator: Any) -> np.ndarray:
    """N(0, 1) from one generator for the whole batch, or from a list, (1, ...) from each.

    The order in which diffusers' randn_tensor consumes its generators; a list of one counts as one.
    """
    if isinstance(generator, (list, tuple)) and len(generator) == 1:
        generator = generator[0]
    if generator is None:
        raise UsageError("there is noise to draw and no generator; give one, or a list of one each")
    if not isinstance(generator, (list, tuple)):
        return _drawing(generator).randn(tuple(shape), dtype)
    if len(generator) != shape[0]:
        raise UsageError(
            f"got {len(generator)} generators for {shape[0]} samples; give one, or {shape[0]}"
        )
    return np.concatenate([_drawing(one).randn((1, *shape[1:]), dtype) for one in generator])


def _drawing(generator):
    """The generator, or what draws from torch's. No seed: in every step it would be the same."""
    if is_torch_generator(generator):
        return BorrowedGenerator(generator)
    if not hasattr(generator, "randn"):
        raise UsageError(f"generator is {shown(generator)}; give a generator that goes on from "
                         "step to step, such as refsd.random.TorchGenerator(SEED)")
    return generator
