"""Where the steps start that are given a picture: its latents, and the later part of a schedule.

The order in which noise is drawn is diffusers': a sample of the VAE's posterior first, then the
noise of the start, then that of the steps. A1111 and ComfyUI draw the sample from a generator that
nobody seeds: in their dialects it is the mean, and the seed's first noise is that of the start.
"""

from typing import Any

import numpy as np

from refsd import functional as F
from refsd.arguments import as_array
from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.pipelines import stages
from refsd.pipelines.autoencoder import DiagonalGaussian
from refsd.pipelines.tensors import given
from refsd.random import draw_noise

# A1111's samplers that count int(n strength) steps.
OF_LDM = ("DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler")


def begin(pipe: Any, strength: float, steps: int | None, *, timesteps: Any = None,
          sigmas: Any = None, start: float | None = None, mu: float | None = None) -> Any:
    """Make the schedule, and give the timesteps that a strength leaves of it.

    Of n steps, or of the caller's own schedule of n, diffusers makes int(n strength), for classes
    that round up n - int(n - n strength), and A1111 one more, but for its samplers that are not
    k-diffusion's. ComfyUI makes n of int(n / strength). With a `start` (diffusers' denoising_start)
    those that lie behind this share of the training's, whatever the strength. mu: see Kind.mu.
    UsageError where none is left.
    """
    if start is not None:
        return _after(pipe.scheduler, start, stages.make_schedule(
            pipe.scheduler, steps, timesteps=timesteps, sigmas=sigmas, mu=mu))
    scheduler, rule = pipe.scheduler, pipe.dialect.strength
    own, total = timesteps is not None or sigmas is not None, steps
    if rule == "longer" and not own and 0 < strength <= 0.9999:
        total = int(steps / strength)
    schedule = stages.make_schedule(scheduler, total, timesteps=timesteps, sigmas=sigmas, mu=mu)
    count = len(schedule) if own else total
    left = min(int(count * strength), count)
    if pipe.rounds_up:
        left = count - int(count - count * strength)
    if rule == "longer" and not own and strength > 0:
        left = steps
    elif rule == "one-more":
        left = int(min(strength, 0.999) * count) + (type(scheduler).__name__ not in OF_LDM)
    first = (count - left) * getattr(scheduler, "order", 1)
    if first >= len(schedule):
        raise UsageError(f"a strength of {strength:g} leaves none of {count} steps; give at least "
                         f"{1 / count:.3g}, or more steps")
    scheduler.set_begin_index(first)
    return schedule[first:]


def _after(scheduler, share, schedule):
    """The timesteps behind a share.

    As in diffusers of a sampler of two predictions a step whole steps, and the last in any case,
    which is one prediction; of others UsageError where there is none.
    """
    whole = scheduler.config.num_train_timesteps
    left = int(np.sum(np.asarray(schedule) < round(whole - share * whole)))
    if getattr(scheduler, "order", 1) == 2 and left % 2 == 0:
        left += 1
    if not left:
        raise UsageError(f"denoising_start is {share:g}: no step comes after that; give less, or "
                         "more steps")
    first = len(schedule) - left
    scheduler.set_begin_index(first)
    return schedule[first:]


def encode_image(pipe: Any, image: Any, generator: Any, *, samples: int | None = None) -> Any:
    """A sample of the VAE's posterior as latents of the diffusion.   (N, 3, H, W) -> (N, 4, h, w)

    Of a list of generators, one a picture, the first N draw; with `samples`, so many of them, for
    the pictures in turn: -> (samples, 4, h, w). In dialects that do not sample it is the mean.
    """
    vae = pipe.coder("encoder")
    posterior = vae.encode(image).latent_dist
    if pipe.dialect.posterior == "mean":
        return _as_the_diffusions(pipe, posterior.mode())
    if isinstance(generator, list):
        samples = image.shape[0] if samples is None else samples
        if not hasattr(posterior, "logvar"):  # a tiny VAE's, which draws nothing
            return _as_the_diffusions(pipe, repeated("image", posterior.mean, samples))
        moments = (repeated("image", x, samples) for x in (posterior.mean, posterior.logvar))
        posterior = DiagonalGaussian(*moments, posterior.backend)
        generator = generator[:samples]
    return _as_the_diffusions(pipe, posterior.sample(generator))


def _as_the_diffusions(pipe, latents):
    """Rounded first, where a VAE encodes in float32 for a model of halves, as in diffusers."""
    latents = as_array("latents", latents, pipe.denoiser.dtype)
    return stages.for_diffusion(latents, pipe.vae.config)


def as_latents(pipe: Any, image: Any, generator: Any, count: int, **options: Any) -> Any:
    """The latents of a prepared picture, or those that it is itself.   -> (count, 4, h, w)"""
    channels = pipe.vae.config.latent_channels
    if image.shape[1] == channels:
        return repeated("image", given(pipe, "image", image, ("N", channels, "h", "w")), count)
    latents = encode_image(pipe, image, generator, **options)
    pipe.require_finite("encode the picture", latents)
    return repeated("image", latents, count)


def noise_of(pipe: Any, shape: tuple[int, ...], generator: Any) -> Any:
    """N(0, 1) in the dtype of a pipeline's latents, where it computes."""
    return BACKENDS[pipe.backend].put(draw_noise(shape, pipe.denoiser.dtype, generator))


def repeated(name: str, array: Any, count: int) -> Any:
    """N pictures for `count`, in turn: a b a b.   (N, ...) -> (count, ...)"""
    if count % array.shape[0]:
        raise UsageError(f"{name}: {array.shape[0]} for {count} pictures; give 1, or one for each "
                         "prompt")
    return F.concat([array] * (count // array.shape[0]), axis=0)
