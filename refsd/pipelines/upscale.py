"""Arrays made larger: torch's interpolate as A1111 takes it for latents, and Lanczos for pictures.

Each filter is a matrix a side, of which every row has the weights of one new row or column: they
add up to 1. Positions are float32, as in torch, whose corners are pixels' corners (align_corners
False).

Source: torch 2.13.0, ATen/native/UpSample.h and cpu/UpSampleKernel.cpp.
"""

from typing import Any

import numpy as np

from refsd.half import to_float32

# A1111's names (modules/shared.py, latent_upscale_modes) by refsd's.
LATENT = {"latent": "Latent", "latent-antialiased": "Latent (antialiased)",
          "latent-bicubic": "Latent (bicubic)",
          "latent-bicubic-antialiased": "Latent (bicubic antialiased)",
          "latent-nearest": "Latent (nearest)",
          "latent-nearest-exact": "Latent (nearest-exact)"}
PICTURE = {"lanczos": "Lanczos", "nearest": "Nearest"}
UPSCALERS = LATENT | PICTURE


def upscaled_latents(latents: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    """(B, C, h, w) -> (B, C, height, width) by one of LATENT, in float32, in its own dtype"""
    rows = matrix(latents.shape[2], height, mode).astype("float32")
    columns = matrix(latents.shape[3], width, mode).astype("float32")
    return (rows @ to_float32(latents) @ columns.T).astype(latents.dtype)


def upscaled_pictures(images: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    """Pictures (B, H, W, 3) uint8 as Pillow makes them larger, by one of PICTURE"""
    from PIL import Image

    kind = Image.Resampling.LANCZOS if mode == "lanczos" else Image.Resampling.NEAREST
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), kind))
                     for image in images])


def matrix(old: int, new: int, mode: str) -> np.ndarray:
    """The weights of `old` numbers in each of `new`.   -> (new, old)"""
    scale = np.float32(old) / np.float32(new)
    at = np.arange(new, dtype="float32")
    if mode == "latent-nearest":
        return _picked(np.floor(at * scale), old)
    if mode == "latent-nearest-exact":
        return _picked(np.floor((at + np.float32(0.5)) * scale), old)
    center = scale * (at + np.float32(0.5))
    if mode.endswith("antialiased"):
        return _filtered(center, old, max(float(scale), 1.0), *FILTERS[mode])
    position = center - np.float32(0.5)
    if mode == "latent":
        position = np.maximum(position, np.float32(0))  # torch keeps the linear one inside
    return _clamped(position, old, *FILTERS[mode])


def _linear(x: Any) -> Any:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(a: float) -> Any:
    """Keys' filter with the slope a at 1."""

    def weight(x):
        x = np.abs(x)
        inside = ((a + 2) * x - (a + 3)) * x * x + 1
        outside = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x < 1, inside, np.where(x < 2, outside, 0))

    return weight


# torch's two cubics differ: plain with -0.75, antialiased with Pillow's -0.5
FILTERS: dict[str, tuple[Any, int]] = {
    "latent": (_linear, 1), "latent-antialiased": (_linear, 1),
    "latent-bicubic": (_cubic(-0.75), 2), "latent-bicubic-antialiased": (_cubic(-0.5), 2),
}


def _picked(index, old):
    found = np.zeros((len(index), old))
    found[np.arange(len(index)), np.minimum(index.astype(int), old - 1)] = 1
    return found


def _clamped(position, old, weight, reach):
    """Neighbours up to `reach` away; beyond an end stands the last one."""
    found, first = np.zeros((len(position), old)), np.floor(position)
    rest = (position - first).astype("float64")
    for step in range(1 - reach, reach + 1):
        index = np.clip(first.astype(int) + step, 0, old - 1)
        np.add.at(found, (np.arange(len(position)), index), weight(rest - step))
    return found


def _filtered(center, old, wide, weight, reach):
    """Those within `reach` times `wide`, weighed as there are; beyond an end is nothing."""
    places = np.arange(old) + 0.5
    found = weight((places - center[:, None].astype("float64")) / wide)
    return found / found.sum(axis=1, keepdims=True)
