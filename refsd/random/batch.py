"""Noise for a batch of samples, in the order in which diffusers takes it from its generators."""

from typing import Any

import numpy as np

from refsd.errors import UsageError


def draw_noise(shape: tuple[int, ...], dtype: Any, generator: Any) -> np.ndarray:
    """N(0, 1) from one generator for the whole batch, or from a list, (1, ...) from each.

    The order in which diffusers' randn_tensor consumes its generators; a list of one counts as one.
    """
    if isinstance(generator, (list, tuple)) and len(generator) == 1:
        generator = generator[0]
    if generator is None:
        raise UsageError("there is noise to draw and no generator; give one, or a list of one each")
    if not isinstance(generator, (list, tuple)):
        return generator.randn(tuple(shape), dtype)
    if len(generator) != shape[0]:
        raise UsageError(
            f"got {len(generator)} generators for {shape[0]} samples; give one, or {shape[0]}"
        )
    return np.concatenate([one.randn((1, *shape[1:]), dtype) for one in generator])
