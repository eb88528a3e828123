"""StableDiffusionPipeline: the class people expect, with diffusers' names and defaults."""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.pipelines import stages
from refsd.pipelines.components import VAE, TextEncoder, UNet, as_generators
from refsd.pipelines.memory import working_bytes
from refsd.pipelines.request import (
    MAX_PICTURES,
    check_integer,
    check_memory,
    check_number,
    check_output_type,
    check_prompts,
    check_side,
    refuse_unknown,
)
from refsd.random import TorchGenerator
from refsd.registry import choose_backend, make_ready, use
from refsd.text import CLIPTokenizer
from refsd.weights.memory import available_bytes

logger = logging.getLogger(__name__)

CALL_ARGUMENTS = (
    "prompt", "height", "width", "num_inference_steps", "guidance_scale", "negative_prompt",
    "num_images_per_prompt", "eta", "generator", "latents", "prompt_embeds",
    "negative_prompt_embeds", "output_type", "clip_skip", "guidance_rescale",
    "callback_on_step_end", "callback_on_step_end_tensor_inputs",
)
CALLBACK_INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")


@dataclass
class StableDiffusionOutput:
    """`images`: PIL pictures, an array (B, H, W, 3) in [0, 1], or latents (B, 4, h, w).

    `seed` is the seed of the noise if the call chose or was given one number; `seconds` the time a
    stage ("encode", "denoise", "decode") took, `step_seconds` each denoising step's.
    """

    images: Any
    seed: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)


class StableDiffusionPipeline:
    """Text to image with a Stable Diffusion 1.x checkpoint.

        pipe = StableDiffusionPipeline.from_pretrained("path/to/model")
        image = pipe("a red fox", generator=7).images[0]

    The parts work alone: tokenizer, text_encoder, unet, vae, scheduler; the scheduler may be
    replaced. `from_pretrained` without a path gives the small model that ships with refsd.
    """

    def __init__(self, *, tokenizer: CLIPTokenizer, text_encoder: TextEncoder, unet: UNet, vae: VAE,
                 scheduler: Any, backend: str = "auto", name: str = "", exact: bool = False):
        self.tokenizer, self.text_encoder, self.unet = tokenizer, text_encoder, unet
        self.vae, self.scheduler, self.name = vae, scheduler, name
        self.backend, self.exact = choose_backend(backend), exact
        self.make_generator = TorchGenerator
        self.check_finite = True

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, *, backend: str = "auto",
                        dtype: str = "float32", download: bool = False, variant: str | None = None,
                        ema: bool = False, force: bool = False,
                        exact: bool = False) -> "StableDiffusionPipeline":
        """Load a diffusers folder, a single-file `.safetensors`, or a hub id from the local cache.

        `download` lets a hub id be fetched; nothing else touches the network. `variant` ("fp16")
        and `ema` choose among copies of the weights; dtype is the arithmetic's, float32 or float64;
        `force` loads what may not fit into memory; `exact` keeps convolutions to sums of products:
        no Winograd, no FFT. Raises ModelError, ResourceError, UsageError.
        """
        from refsd.pipelines.loading import load_components

        backend = choose_backend(backend)
        parts = load_components(path, backend=backend, dtype=dtype, download=download,
                                variant=variant, ema=ema, force=force, exact=exact)
        return cls(**parts, backend=backend, exact=exact)

    from_single_file = from_pretrained

    @property
    def default_size(self) -> int:
        """The side in pixels that the model was trained at."""
        return self.unet.config.sample_size * self.vae.config.downscale

    def __call__(self, prompt: str | list[str] | None = None, height: int | None = None,
                 width: int | None = None, num_inference_steps: int = 50,
                 guidance_scale: float = 7.5, negative_prompt: str | list[str] | None = None,
                 num_images_per_prompt: int = 1, eta: float = 0.0, generator: Any = None,
                 latents: Any = None, prompt_embeds: Any = None, negative_prompt_embeds: Any = None,
                 output_type: str = "pil", clip_skip: int | None = None,
                 guidance_rescale: float = 0.0, callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
                 **unknown: Any) -> StableDiffusionOutput:
        """Draw. Every argument means what it means in diffusers' StableDiffusionPipeline.

        generator: an int seed, a refsd.random generator, or a list with one for each picture; None
        draws a seed, which the output names. callback_on_step_end(pipe, step, timestep, tensors)
        may return a dict of replaced tensors. Raises UsageError for what cannot be asked.
        """
        refuse_unknown("StableDiffusionPipeline", unknown, CALL_ARGUMENTS)
        height = self._side("height", height)
        width = self._side("width", width)
        check_integer("num_inference_steps", num_inference_steps, 1, 1000)
        check_number("guidance_scale", guidance_scale, -1000, 1000)
        check_number("guidance_rescale", guidance_rescale, 0, 1)
        check_number("eta", eta, 0, 1)
        check_output_type(output_type)
        check_integer("num_images_per_prompt", num_images_per_prompt, 1, MAX_PICTURES)
        refuse_unknown("callback_on_step_end_tensor_inputs",
                       callback_on_step_end_tensor_inputs, CALLBACK_INPUTS)
        guided = guidance_scale > 1 and self.unet.time_cond_dim is None

        make_ready(self.backend, str(self.unet.dtype))
        clock = {"start": time.perf_counter()}
        positive, negative = self._embed(prompt, negative_prompt, prompt_embeds,
                                         negative_prompt_embeds, num_images_per_prompt, clip_skip,
                                         guided)
        self._check("encode_text", positive, negative)
        clock["encode"] = time.perf_counter()

        batch = positive.shape[0]
        check_memory(working_bytes(self, width, height, batch), available_bytes(),
                     f"drawing {batch} x {width} x {height} pixels")
        seed = generator if generator is not None else secrets.randbits(32)
        generator = as_generators(seed, self.make_generator, batch)
        stages.make_schedule(self.scheduler, num_inference_steps)
        factor = self.vae.config.downscale
        shape = (batch, self.vae.config.latent_channels, height // factor, width // factor)
        latents = self._start(latents, shape, generator)

        with use(self.backend, exact=self.exact):
            latents, step_seconds = self._denoise(
                latents, positive, negative, guidance_scale=guidance_scale,
                guidance_rescale=guidance_rescale, eta=eta, generator=generator,
                callback=callback_on_step_end, tensors=callback_on_step_end_tensor_inputs)
        clock["denoise"] = time.perf_counter()

        images = self.to_output(latents, output_type)
        clock["decode"] = time.perf_counter()
        names = list(clock)
        seconds = {b: clock[b] - clock[a] for a, b in zip(names, names[1:])}
        return StableDiffusionOutput(images, seed if isinstance(seed, int) else None, seconds,
                                     step_seconds)

    def to_output(self, latents: Any, output_type: str) -> Any:
        """Final latents as what the caller wants: "pil", "np" or "latent"."""
        if output_type == "latent":
            return latents
        with use(self.backend, exact=self.exact):
            pictures = stages.decode(self.vae, latents)
        self._check("decode", pictures)
        if output_type == "np":
            return pictures
        from PIL import Image

        return [Image.fromarray(picture) for picture in stages.to_bytes(pictures)]

    def _embed(self, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, copies,
               clip_skip, guided):
        """The text and what to keep away from, for every picture.   (B, L, D), (B, L, D) or None"""
        if (prompt is None) == (prompt_embeds is None):
            raise UsageError("give either prompt or prompt_embeds, got "
                             + ("neither" if prompt is None else "both"))
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise UsageError("give either negative_prompt or negative_prompt_embeds, got both")
        if prompt_embeds is None:
            prompt_embeds = self._encode(check_prompts("prompt", prompt), clip_skip)
        count = len(prompt_embeds)
        if guided and negative_prompt_embeds is None:
            texts = check_prompts("negative_prompt", "" if negative_prompt is None
                                  else negative_prompt)
            if len(texts) not in (1, count):
                raise UsageError(f"negative_prompt has {len(texts)} texts; give 1, or one for each "
                                 f"of the {count} prompts")
            # diffusers skips layers for the positive prompt only (EXACTNESS: clip skip).
            negative_prompt_embeds = self._encode(texts * (count // len(texts)), None)
        for name, embeds in (("prompt_embeds", prompt_embeds),
                             ("negative_prompt_embeds", negative_prompt_embeds)):
            if embeds is not None and embeds.shape != prompt_embeds.shape:
                raise UsageError(f"{name} has shape {embeds.shape}, prompt_embeds "
                                 f"{prompt_embeds.shape}; give two of one shape")
        positive = np.repeat(prompt_embeds, copies, axis=0)
        return positive, np.repeat(negative_prompt_embeds, copies, axis=0) if guided else None

    def _side(self, name, value):
        value = self.default_size if value is None else value
        return check_side(name, value, self.vae.config.downscale)

    def _encode(self, texts, clip_skip):
        for text in texts:
            if lost := self.tokenizer.truncated(text):
                shown = repr(lost[:200]) + (" ..." if len(lost) > 200 else "")
                logger.warning("the prompt is longer than %d tokens; dropped: %s",
                               self.tokenizer.model_max_length - 2, shown)
        ids = stages.tokenize(self.tokenizer, texts)
        return stages.encode_text(self.text_encoder, ids, clip_skip=clip_skip)

    def _start(self, latents, shape, generator):
        if latents is None:
            return stages.initial_latents(self.scheduler, shape, self.unet.dtype, generator)
        if tuple(latents.shape) != shape:
            raise UsageError(f"latents has shape {tuple(latents.shape)}; give {shape}")
        return latents * float(self.scheduler.init_noise_sigma)

    def _denoise(self, latents, positive, negative, *, callback, tensors, **options):
        """Run the steps; tell the callback, and the steps what it changed."""
        steps = stages.denoise(self.unet, self.scheduler, latents, positive, negative, **options)
        current = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        seconds, changed, begun = [], None, time.perf_counter()
        while True:
            try:
                step = steps.send(changed)
            except StopIteration:
                return latents, seconds
            latents = step.latents
            self._check(f"denoise, step {step.index + 1}", latents)
            seconds.append(time.perf_counter() - begun)
            begun, changed = time.perf_counter(), None
            if callback is not None:
                current["latents"] = latents
                wanted = {name: current[name] for name in tensors}
                changed = callback(self, step.index, step.timestep, wanted)
                current.update(changed or {})
                latents = current["latents"]

    def _check(self, stage, *arrays):
        if self.check_finite:
            for array in arrays:
                if array is not None:
                    stages.require_finite(array, stage)
