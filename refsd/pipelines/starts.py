"""Where the steps start that are given a picture: its latents, and the later part of a schedule.

The order in which noise is drawn is diffusers': a sample of the VAE's posterior first, then the
noise of the start, then that of the steps.
"""

from typing import Any

from refsd import functional as F
from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.pipelines import stages
from refsd.pipelines.components import VAE, DiagonalGaussian
from refsd.pipelines.tensors import given
from refsd.random import draw_noise


def timesteps_left(scheduler: Any, strength: float, *, steps: int | None = None) -> Any:
    """The timesteps of the last min(int(n strength), n) of n steps; the scheduler begins there.

    n is `steps`, without it the length of the schedule. UsageError where none is left.
    """
    count = len(scheduler.timesteps) if steps is None else steps
    left = min(int(count * strength), count)
    first = (count - left) * getattr(scheduler, "order", 1)
    if first >= len(scheduler.timesteps):
        raise UsageError(f"a strength of {strength:g} leaves none of {count} steps; give at least "
                         f"{1 / count:.3g}, or more steps")
    scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def encode_image(vae: VAE, image: Any, generator: Any, *, pictures: int | None = None) -> Any:
    """A sample of the VAE's posterior as latents of the diffusion.   (N, 3, H, W) -> (B, 4, h, w)

    B is `pictures`, for which those given are repeated, or N. One generator draws for N pictures,
    which are then repeated; of a list, one each, every picture has a sample of its own.
    """
    count = image.shape[0] if pictures is None else pictures
    posterior = vae.encode(image).latent_dist
    if isinstance(generator, list):
        mean, logvar = (repeated("image", x, count) for x in (posterior.mean, posterior.logvar))
        sample = DiagonalGaussian(mean, logvar, posterior.backend).sample(generator[:count])
    else:
        sample = repeated("image", posterior.sample(generator), count)
    return stages.scaled(sample, vae.config.scaling_factor)


def as_latents(pipe: Any, image: Any, generator: Any, count: int) -> Any:
    """The latents of a prepared picture, or those that it is itself.   -> (count, 4, h, w)"""
    channels = pipe.vae.config.latent_channels
    if image.shape[1] == channels:
        return repeated("image", given(pipe, "image", image, ("N", channels, "h", "w")), count)
    latents = encode_image(pipe.vae, image, generator, pictures=count)
    pipe.require_finite("encode the picture", latents)
    return latents


def noise_like(pipe: Any, latents: Any, generator: Any) -> Any:
    """N(0, 1) of the shape and the dtype of latents, where they lie."""
    noise = draw_noise(tuple(latents.shape), str(latents.dtype), generator)
    return BACKENDS[pipe.backend].put(noise)


def repeated(name: str, array: Any, count: int) -> Any:
    """N pictures for `count`, in turn: a b a b.   (N, ...) -> (count, ...)"""
    if count % array.shape[0]:
        raise UsageError(f"{name}: {array.shape[0]} for {count} pictures; give 1, or one for each "
                         "prompt")
    return F.concat([array] * (count // array.shape[0]), axis=0)
