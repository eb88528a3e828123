"""TAESD, a tiny autoencoder of the same latents: 3 x 3 convolutions and ReLU, and no norm.

Source: Ollin Boer Bohan 2023 (madebyollin/taesd); names as in diffusers' AutoencoderTiny. What its
lists of layers leave out is what has no weights: ReLU and upsampling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refsd import functional as F

INFINITY = float("inf")


@dataclass(frozen=True)
class TinyVAEConfig:
    """A tiny autoencoder; its latents are those of the diffusion: by a factor of 1, not shifted."""

    scaling_factor: float
    shift_factor: float
    latent_channels: int
    downscale: int

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "TinyVAEConfig":
        return cls(
            scaling_factor=config["scaling_factor"],
            shift_factor=config["shift_factor"] or 0.0,
            latent_channels=config["latent_channels"],
            downscale=2 ** (len(config["decoder_block_out_channels"]) - 1),
        )


def encode(image, *, layers):
    """The latents.   image (N, 3, H, W) in [-1, 1] -> (N, 4, h, w); h = H / 8 with four levels

    A convolution without a bias halves the size.
    """
    h = F.div(F.add(image, 1), 2)
    for layer in layers:
        if "conv" in layer:
            h = block(h, **layer)
        else:
            h = F.conv2d(h, **layer, stride=1 if "bias" in layer else 2, padding=1)
    return h


def decode(latents, *, layers):
    """The picture.   (N, 4, h, w) -> (N, 3, 8 h, 8 w), about [-1, 1]

    Before a convolution without a bias comes an upsampling, after the first one a ReLU.
    """
    first, *others = (layers[key] for key in sorted(layers, key=int))
    h = relu(F.conv2d(clamp(latents), **first, padding=1))
    for layer in others:
        if "conv" in layer:
            h = block(h, **layer)
            continue
        if "bias" not in layer:
            h = F.upsample_nearest(h, height=2 * h.shape[2], width=2 * h.shape[3])
        h = F.conv2d(h, **layer, padding=1)
    return F.sub(F.mul(h, 2), 1)


def block(x, *, conv):
    """relu(x + conv relu conv relu conv x).   (N, C, H, W) -> the same"""
    h = relu(F.conv2d(x, **conv["0"], padding=1))
    h = relu(F.conv2d(h, **conv["2"], padding=1))
    return relu(F.add(F.conv2d(h, **conv["4"], padding=1), x))


def relu(x):
    """max(x, 0).   any shape -> the same"""
    return F.clamp(x, low=0, high=INFINITY)


def clamp(x):
    """3 tanh(x / 3): no latent beyond 3.   any shape -> the same"""
    return F.mul(F.tanh(F.div(x, 3)), 3)
