"""Text to image as five stages, each of which can be called, recorded and replayed alone.

    tokenize -> encode_text -> make_schedule -> denoise -> decode

`denoise` is a generator: whoever calls it owns the progress bar, the previews and the stopping.
The arithmetic between network calls uses plain operators, so any backend's arrays serve (see
refsd/places.py); of halves it is done in float32 and rounded once.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.half import in_float32, to_float32
from refsd.pipelines.autoencoder import VAE
from refsd.pipelines.components import TextEncoder, UNet
from refsd.pipelines.guidance import Guidance
from refsd.pipelines.tensors import not_finite
from refsd.places import on_host
from refsd.random import draw_noise
from refsd.schedulers import SCHEDULERS
from refsd.schedulers.prediction import to_x0


class DenoisingStep(NamedTuple):
    """One step is done: its index, the training step it left, and the latents it arrived at.

    A step is one of the schedule's timesteps and one prediction of the model, as in diffusers'
    callbacks; a sampler may make more of them than num_inference_steps (PNDM: n + 1). `denoised()`
    is x0 as the model sees it from here, which is what a preview shows.
    """

    index: int
    timestep: Any
    latents: Any
    denoised: Callable[[], Any]


def tokenize(tokenizer: Any, prompts: list[str]) -> np.ndarray:
    """Stage 1: the prompts as ids.   B texts -> (B, 77)"""
    return tokenizer(prompts)


def encode_text(text_encoder: TextEncoder, ids: np.ndarray, *, clip_skip: int | None = None) -> Any:
    """Stage 2: the ids as vectors.   (B, L) -> (B, L, D)"""
    return text_encoder(ids, clip_skip=clip_skip).last_hidden_state


def make_schedule(scheduler: Any, steps: int | None, *, timesteps: Any = None,
                  sigmas: Any = None, mu: float | None = None) -> np.ndarray:
    """Stage 3: the training steps to visit, the noisiest first.   -> (T,)

    T is the number of steps that `denoise` makes: `steps`, or one more for PNDM. Instead of
    `steps` the caller's own timesteps or sigmas, and a shift `mu` of the sigmas, for samplers that
    take them; UsageError for others.
    """
    own = {k: v for k, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
    if len(own) > 1:
        raise UsageError("timesteps and sigmas are two ways to say the same; give one of them")
    shift = {} if mu is None else {"mu": mu}
    for name in [*own, *shift]:
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            takers = [kind for kind, cls in SCHEDULERS.items()
                      if name in inspect.signature(cls.set_timesteps).parameters]
            raise UsageError(f"{name} of the caller's own are not for {type(scheduler).__name__}; "
                             f"leave them out, or take {', '.join(takers)}")
    if own:
        scheduler.set_timesteps(**own, **shift)
    else:
        scheduler.set_timesteps(steps, **shift)
    return scheduler.timesteps


def until(scheduler: Any, timesteps: Any, share: float | None) -> Any:
    """Those of a schedule's timesteps that lie in the first `share` of the training's.   (T,) ->

    All for None and 1. diffusers' denoising_end; UsageError where none does.
    """
    if share is None or share == 1:
        return timesteps
    whole = scheduler.config.num_train_timesteps
    count = int(np.sum(np.asarray(timesteps) >= round(whole - share * whole)))
    if not count:
        raise UsageError(f"denoising_end is {share:g}: no step comes before that; give more, or "
                         "more steps")
    return timesteps[:count]


def initial_latents(scheduler: Any, shape: tuple[int, ...], dtype: str, generator: Any) -> Any:
    """Noise at the schedule's start.   -> (B, 4, h, w)   make_schedule comes first"""
    return scaled(draw_noise(shape, dtype, generator), float(scheduler.init_noise_sigma))


@in_float32
def scaled(x: Any, factor: float) -> Any:
    """factor x.   any shape -> the same"""
    return x * factor


def denoise(unet: UNet, scheduler: Any, latents: Any, prompt_embeds: Any,
            negative_prompt_embeds: Any = None, *, guidance_scale: float,
            guidance_rescale: float = 0.0, eta: float = 0.0,
            generator: Any = None) -> Iterator[DenoisingStep]:
    """Stage 4: from noise to latents, one step at a time.   (B, 4, h, w), (B, L, D) -> steps

    With negative_prompt_embeds the model predicts for both and is guided away from them (see
    Guidance). A caller may send() a dict with new "latents", "prompt_embeds",
    "negative_prompt_embeds" or "guidance_scale" in answer to a step. eta and generator go to the
    samplers that add noise.
    """
    predict = Guidance(unet, prompt_embeds, negative_prompt_embeds, scale=guidance_scale,
                       rescale=guidance_rescale)
    return denoise_with(predict, scheduler, latents, eta=eta, generator=generator)


def denoise_with(predict: Any, scheduler: Any, latents: Any, *, timesteps: Any = None,
                 eta: float = 0.0, generator: Any = None,
                 after_step: Callable | None = None, done: int = 0) -> Iterator[DenoisingStep]:
    """The steps of `denoise` with any prediction object (refsd.pipelines.guidance).

    timesteps: by default all, of which the first `done` were made before. after_step(latents,
    index) gives the latents that a step is taken to have arrived at, the index among timesteps.
    """
    takes = inspect.signature(scheduler.step).parameters
    noise = {k: v for k, v in (("eta", eta), ("generator", generator)) if k in takes}
    timesteps = scheduler.timesteps if timesteps is None else timesteps
    for index, timestep in enumerate(timesteps[done:], done):
        x = scheduler.scale_model_input(latents, timestep)
        predicted = predict(x, timestep, index)
        stepped = scheduler.step(predicted, timestep, latents, **noise)
        latents = stepped.prev_sample
        if after_step is not None:
            latents = after_step(latents, index)

        denoised = partial(x0_of_step, scheduler, stepped, predicted, timestep, x)
        changed = yield DenoisingStep(index, timestep, latents, denoised)
        if changed:
            latents = changed.get("latents", latents)
            predict.change(changed)


def x0_of_step(scheduler: Any, stepped: Any, predicted: Any, timestep: Any, x: Any) -> Any:
    """x0 as a step has it; of a sampler that does not say (PNDM), by its definition at x.

    A scheduler without alphas_cumprod gives none: then the latents as they are.
    """
    if (x0 := getattr(stepped, "pred_original_sample", None)) is not None:
        return x0
    if (alpha_bars := getattr(scheduler, "alphas_cumprod", None)) is None:
        return stepped.prev_sample
    return to_x0(scheduler.config.prediction_type, to_float32(predicted), to_float32(x),
                 alpha_bars[int(timestep)])


def decode(vae: VAE, latents: Any) -> np.ndarray:
    """Stage 5: the images.   (B, 4, h, w) -> (B, H, W, 3) in [0, 1], float32 also of halves"""
    decoded = vae.decode(for_vae(latents, vae.config))
    images = to_float32(np.asarray(on_host(decoded)))
    return np.clip(images * 0.5 + 0.5, 0, 1).transpose(0, 2, 3, 1)


def for_vae(latents: Any, config: Any) -> Any:
    """z / scaling_factor + shift_factor: latents of the diffusion as the VAE's.   -> the same"""
    return _for_vae(latents, config.scaling_factor, config.shift_factor)


def for_diffusion(latents: Any, config: Any) -> Any:
    """(z - shift_factor) scaling_factor: latents of the VAE as the diffusion's.   -> the same"""
    return _for_diffusion(latents, config.scaling_factor, config.shift_factor)


@in_float32
def _for_vae(z, factor, shift):
    z = z / factor
    return z + shift if shift else z


@in_float32
def _for_diffusion(z, factor, shift):
    return (z - shift if shift else z) * factor


def to_bytes(images: np.ndarray) -> np.ndarray:
    """round(255 x), halves to even, as diffusers; others cut.   (B, H, W, 3) in [0, 1] -> uint8"""
    return (images * 255).round().astype("uint8")


def cut_to_bytes(images: np.ndarray) -> np.ndarray:
    """255 x without its fraction, as A1111 and ComfyUI.   (B, H, W, 3) in [0, 1] -> uint8"""
    return (images * 255).astype("uint8")


def require_finite(array: Any, stage: str) -> None:
    """Stop with the stage's name at the first NaN or infinity."""
    if problem := not_finite(array):
        raise ModelError(f"{stage}: {problem}. The weights are damaged or the inputs overflow; see "
                         "refsd info for the former, and try float32 for the latter")
