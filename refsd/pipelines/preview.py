"""The picture so far: latents as colours by a linear map, in microseconds, or by the VAE.

    rgb = z M + b      a colour in [-1, 1] for each latent z (4,), enlarged to the picture's size

M and b are least squares on what a VAE decodes. refsd/data/latent_rgb.json has those of the spaces
of latents that are known, each with its source; channels and scaling factor tell a space.
"""

import json
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from refsd.arguments import as_array
from refsd.errors import UsageError
from refsd.half import to_float32
from refsd.models.config import VAEConfig
from refsd.pipelines import stages
from refsd.pipelines.tensors import shaped
from refsd.places import on_host
from refsd.registry import use

FILE = "latent_rgb.json"


class LatentColours(NamedTuple):
    """rgb = z M + b.   M (C, 3), b (3,)"""

    matrix: np.ndarray
    bias: np.ndarray

    def __call__(self, latents: Any) -> np.ndarray:
        """(B, C, h, w), as the diffusion has them -> (B, h, w, 3) in [0, 1]; NaN is black"""
        z = np.moveaxis(to_float32(np.asarray(on_host(latents))), 1, -1)
        return np.clip(np.nan_to_num(z @ self.matrix + self.bias, nan=-1) * 0.5 + 0.5, 0, 1)


def colours(config: VAEConfig) -> LatentColours:
    """The map of a VAE's latents; UsageError where none is known."""
    for space in json.loads((resources.files("refsd") / "data" / FILE).read_text("utf-8")):
        if (space["latent_channels"], space["scaling_factor"]) == (config.latent_channels,
                                                                  config.scaling_factor):
            return LatentColours(np.asarray(space["matrix"], np.float32),
                                 np.asarray(space["bias"], np.float32))
    raise UsageError("preview: no linear map to colours is known for this VAE's latents "
                     f"({config.latent_channels} channels, scaling factor "
                     f"{config.scaling_factor:g}); have the VAE decode them: --preview-vae, or "
                     "pipe.preview(latents, vae=True)")


def pictures(pipe: Any, latents: Any, *, vae: bool) -> list[Any]:
    """Latents of the diffusion as PIL images of the picture's size.   (B, C, h, w) -> B images"""
    from PIL import Image

    config = pipe.vae.config
    latents = shaped("preview: latents", latents, ("B", config.latent_channels, "h", "w"),
                     pipe.vae.dtype)
    if vae:
        decoder = pipe.preview_vae or pipe.coder("decoder")
        latents = as_array("latents", latents, decoder.dtype)
        with use(pipe.backend, exact=pipe.exact):
            images = np.nan_to_num(stages.decode(decoder, latents))
        return [Image.fromarray(image) for image in stages.to_bytes(images)]
    small = stages.to_bytes(colours(config)(latents))
    size = tuple(n * config.downscale for n in small.shape[2:0:-1])
    return [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in small]
