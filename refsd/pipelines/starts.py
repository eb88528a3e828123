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


def encode_image(vae: VAE, image: Any, generator: Any, *, samples: int | None = None) -> Any:
    """A sample of the VAE's posterior as latents of the diffusion.   (N, 3, H, W) -> (N, 4, h, w)

    Of a list of generators, one a picture, the first N draw; with `samples`, so many of them, for
    the pictures in turn: -> (samples, 4, h, w).
    """
    posterior = vae.encode(image).latent_dist
    if isinstance(generator, list):
        samples = image.shape[0] if samples is None else samples
        if not hasattr(posterior, "logvar"):  # a tiny VAE's, which draws nothing
            return stages.scaled(repeated("image", posterior.mean, samples),
                                 vae.config.scaling_factor)
        moments = (repeated("image", x, samples) for x in (posterior.mean, posterior.logvar))
        posterior = DiagonalGaussian(*moments, posterior.backend)
        generator = generator[:samples]
    return stages.scaled(posterior.sample(generator), vae.config.scaling_factor)


def as_latents(pipe: Any, image: Any, generator: Any, count: int, **options: Any) -> Any:
    """The latents of a prepared picture, or those that it is itself.   -> (count, 4, h, w)"""
    channels = pipe.vae.config.latent_channels
    if image.shape[1] == channels:
        return repeated("image", given(pipe, "image", image, ("N", channels, "h", "w")), count)
    latents = encode_image(pipe.vae, image, generator, **options)
    pipe.require_finite("encode the picture", latents)
    return repeated("image", latents, count)


def noise_of(pipe: Any, shape: tuple[int, ...], generator: Any) -> Any:
    """N(0, 1) in the dtype of a pipeline's latents, where it computes."""
    return BACKENDS[pipe.backend].put(draw_noise(shape, pipe.unet.dtype, generator))


def repeated(name: str, array: Any, count: int) -> Any:
    """N pictures for `count`, in turn: a b a b.   (N, ...) -> (count, ...)"""
    if count % array.shape[0]:
        raise UsageError(f"{name}: {array.shape[0]} for {count} pictures; give 1, or one for each "
                         "prompt")
    return F.concat([array] * (count // array.shape[0]), axis=0)
