"""StableDiffusionPipeline: the class people expect, with diffusers' names and defaults."""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from refsd.arguments import as_array, as_number
from refsd.backends import BACKENDS, choose_backend, find_backend
from refsd.pipelines import from_diffusers, prompts, stages
from refsd.pipelines.callback import StepCallback
from refsd.pipelines.components import VAE, TextEncoder, UNet, as_generators
from refsd.pipelines.memory import working_bytes
from refsd.pipelines.request import (
    MAX_PICTURES,
    check_flag,
    check_integer,
    check_memory,
    check_number,
    check_output_type,
    check_side,
    check_steps,
    idle,
    is_guided,
)
from refsd.pipelines.tensors import given
from refsd.places import is_on_device, on_host
from refsd.random import TorchGenerator
from refsd.registry import make_ready, use
from refsd.text import CLIPTokenizer

logger = logging.getLogger(__name__)

CALL_ARGUMENTS = (
    "prompt", "height", "width", "num_inference_steps", "timesteps", "sigmas", "guidance_scale",
    "negative_prompt", "num_images_per_prompt", "eta", "generator", "latents", "prompt_embeds",
    "negative_prompt_embeds", "output_type", "return_dict", "clip_skip", "guidance_rescale",
    "callback_on_step_end", "callback_on_step_end_tensor_inputs",
)
LOAD_ARGUMENTS = ("path", "backend", "dtype", "weights", "download", "variant", "ema", "force",
                  "exact", "torch_dtype", "local_files_only", "scheduler", "vae", "text_encoder",
                  "prediction_type", "cache_dir", "revision", "token")


@dataclass
class StableDiffusionOutput:
    """`images`: PIL images, an array (B, H, W, 3) in [0, 1], or latents (B, 4, h, w).

    `seed` is the seed of the noise if the call chose or was given one number; `seconds` the time a
    stage ("encode", "denoise", "decode") took, `step_seconds` each denoising step's.
    """

    images: Any
    seed: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)


class StableDiffusionPipeline:
    """Text to image with a Stable Diffusion checkpoint of a family that refsd.families has.

    >>> pipe = StableDiffusionPipeline.from_pretrained(backend="numpy")
    >>> pipe("a red cube", 32, 32, num_inference_steps=2, generator=7).images[0].size
    (32, 32)

    The parts work alone: tokenizer, text_encoder, unet, vae, scheduler; the scheduler may be
    replaced. `from_pretrained` without a path gives the small model that ships with refsd.
    """

    def __init__(self, *, tokenizer: CLIPTokenizer, text_encoder: TextEncoder, unet: UNet, vae: VAE,
                 scheduler: Any, backend: str = "auto", name: str = "", exact: bool = False):
        self.tokenizer, self.text_encoder, self.unet = tokenizer, text_encoder, unet
        self.vae, self.scheduler, self.name = vae, scheduler, name
        self.backend, self.exact = choose_backend(backend), exact
        self.make_generator, self.check_finite = TorchGenerator, True
        self.device = find_backend(backend).device
        self._interrupt, self._guidance_scale, self.num_timesteps = False, None, None
        self._said: set[str] = set()

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, *, backend: str = "auto",
                        dtype: Any = "float32", weights: str | None = None,
                        download: bool = False, variant: str | None = None, ema: bool = False,
                        force: bool = False, exact: bool = False, scheduler: Any = None,
                        vae: Any = None, text_encoder: Any = None,
                        prediction_type: str | None = None, torch_dtype: Any = None,
                        local_files_only: bool | None = None,
                        **others: Any) -> "StableDiffusionPipeline":
        """Load a diffusers folder, a single-file `.safetensors`, or a hub id from the local cache.

        `download` (local_files_only=False) lets a hub id be fetched; nothing else touches the
        network. `variant` ("fp16") and `ema` choose among copies of the weights; dtype
        (torch_dtype) is the arithmetic's, and that of latents and weights: float32, float64,
        bfloat16 or float16, or int8 (float32 whose linear layers multiply int8 by int8);
        `weights` is the form in which matrices and kernels are held meanwhile
        ("float32", "bfloat16", "float16", "int8", "as-is": as in the file); `force` loads what may
        not fit into memory; `exact` keeps convolutions to sums of products: no Winograd, no FFT.
        `scheduler` replaces the model's, which is then not read: a scheduler, or a class or
        function that makes one of the model's options. `vae` and `text_encoder` replace the model's
        by those of a path (a folder, a .safetensors file) or another pipeline; `prediction_type`
        ("epsilon", "v_prediction", "sample") overrules what the model says. cache_dir, revision and
        token go to the hub. Raises ModelError, ResourceError, UsageError.
        """
        from refsd.pipelines.loading import load_components

        for name, value in {"ema": ema, "force": force, "exact": exact}.items():
            check_flag(name, value)
        dtype, download, hub = from_diffusers.loading(
            others, LOAD_ARGUMENTS, dtype=dtype, torch_dtype=torch_dtype, download=download,
            local_files_only=local_files_only)
        from_diffusers.check_scheduler(scheduler, "scheduler")
        backend = choose_backend(backend)
        parts = load_components(path, backend=backend, dtype=dtype, weights=weights,
                                download=download, variant=variant, ema=ema, force=force,
                                exact=exact, hub=hub, scheduler=scheduler, vae=vae,
                                text_encoder=text_encoder, prediction_type=prediction_type)
        return cls(**parts, backend=backend, exact=exact)

    from_single_file = from_pretrained

    def __getattr__(self, name: str) -> Any:
        """Methods of diffusers' pipelines: nothing to do, with a line, or what to do instead."""
        if name in from_diffusers.INSTEAD:
            raise from_diffusers.NotHere(f"{name}: {from_diffusers.INSTEAD[name]}")
        if name not in from_diffusers.ALREADY:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def nothing_to_do(*args: Any, **options: Any) -> None:
            if why := from_diffusers.ALREADY[name]:
                self.remark(f"{name}: nothing to do, {why}")

        return nothing_to_do

    def to(self, *wanted: Any, **options: Any) -> "StableDiffusionPipeline":
        """The pipeline itself, if its own device and dtype are wanted; UsageError otherwise."""
        return from_diffusers.check_device(self, *wanted, **options)

    @property
    def guidance_scale(self) -> float | None:
        """That of the run at hand; a callback sets `_guidance_scale`, as in diffusers."""
        return self._guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the run at hand is to stop after this step; a callback sets `_interrupt`."""
        return self._interrupt

    @property
    def vae_scale_factor(self) -> int:
        """Pixels to a latent, along a side."""
        return self.vae.config.downscale

    @property
    def default_size(self) -> int:
        """The side in pixels that the model was trained at."""
        return self.unet.config.sample_size * self.vae.config.downscale

    def __call__(self, prompt: str | list[str] | None = None, height: int | None = None,
                 width: int | None = None, num_inference_steps: int | None = 50,
                 timesteps: Any = None, sigmas: Any = None, guidance_scale: float = 7.5,
                 negative_prompt: str | list[str] | None = None, num_images_per_prompt: int = 1,
                 eta: float = 0.0, generator: Any = None, latents: Any = None,
                 prompt_embeds: Any = None, negative_prompt_embeds: Any = None, *,
                 output_type: str = "pil", return_dict: bool = True, clip_skip: int | None = None,
                 guidance_rescale: float = 0.0, callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: Any = ("latents",),
                 **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusionPipeline.

        generator: an int seed, a generator of refsd.random or of torch on the CPU, or a list with
        one for each image; None draws a seed, which the output names. Arrays may be any
        library's, of any dtype. callback_on_step_end(pipe, step, timestep, tensors) may return a
        dict of replaced tensors; `pipe._interrupt = True` in it makes this step the last one.
        Raises UsageError for what cannot be requested.
        """
        from_diffusers.take("StableDiffusionPipeline", others, from_diffusers.CALLING,
                            CALL_ARGUMENTS)
        latents = latents if latents is None else as_array("latents", latents, self.unet.dtype)
        height, width = self._side("height", height, latents), self._side("width", width, latents)
        steps = check_steps(num_inference_steps, own=timesteps is not None or sigmas is not None)
        scale = check_number("guidance_scale", guidance_scale, -1000, 1000)
        numbers = {"guidance_rescale": check_number("guidance_rescale", guidance_rescale, 0, 1),
                   "eta": check_number("eta", eta, 0, 1), "guidance_scale": scale}
        check_output_type(output_type)
        as_dict = check_flag("return_dict", return_dict)
        copies = check_integer("num_images_per_prompt", num_images_per_prompt, 1, MAX_PICTURES)
        callback = StepCallback(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        from_diffusers.check_scheduler(self.scheduler)

        make_ready(self.backend, str(self.unet.dtype))
        clock = {"start": time.perf_counter()}
        callback.positive, callback.negative = prompts.embed(
            self, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, copies=copies,
            clip_skip=clip_skip, guided=is_guided(self, scale))
        self._check("encode_text", *callback.texts())
        clock["encode"] = time.perf_counter()
        avoided = negative_prompt if negative_prompt_embeds is None else negative_prompt_embeds
        for name, why in idle(self, negative=avoided, **numbers).items():
            self.remark(f"{name} changes nothing: {why}")
        batch = callback.positive.shape[0]
        check_memory(self.backend, working_bytes(self, width, height, batch),
                     f"drawing {batch} x {width} x {height} pixels")
        seed = generator if generator is not None else secrets.randbits(32)
        generator = as_generators(seed, self.make_generator, batch)
        self.num_timesteps = len(stages.make_schedule(self.scheduler, steps, timesteps=timesteps,
                                                      sigmas=sigmas))
        latents = self._start(latents, batch, height, width, generator)
        self._interrupt, self._guidance_scale = False, scale
        with use(self.backend, exact=self.exact):
            latents, step_seconds = self._denoise(latents, callback, generator=generator, **numbers)
        self._check("denoise", latents)
        clock["denoise"] = time.perf_counter()
        images = self.to_output(latents, output_type)
        clock["decode"] = time.perf_counter()
        seconds = {b: clock[b] - clock[a] for a, b in pairwise(clock)}
        output = StableDiffusionOutput(images, as_number(seed), seconds, step_seconds)
        return output if as_dict else (images, None)

    def to_output(self, latents: Any, output_type: str) -> Any:
        """Final latents as what the caller wants: "pil", "np" or "latent"."""
        latents = as_array("latents", latents, self.vae.dtype)
        if output_type == "latent":
            return on_host(latents)
        with use(self.backend, exact=self.exact):
            images = stages.decode(self.vae, latents)
        self._check("decode", images)
        if output_type == "np":
            return images
        from PIL import Image

        return [Image.fromarray(image) for image in stages.to_bytes(images)]

    def preview(self, latents: Any, *, vae: bool = False) -> list[Any]:
        """Latents of the diffusion as PIL images: at once, by a linear map, or decoded by the VAE.

        For callbacks, whose "denoised" shows more than their "latents". UsageError: no map known.
        """
        from refsd.pipelines.preview import pictures

        return pictures(self, latents, vae=check_flag("vae", vae))

    def _side(self, name, value, latents):
        """The size requested, else that of the caller's latents, else the model's own."""
        if value is None and latents is not None and len(latents.shape) == 4:
            value = latents.shape[2 if name == "height" else 3] * self.vae.config.downscale
        value = self.default_size if value is None else value
        return check_side(name, value, self.vae.config.downscale)

    def _start(self, latents, batch, height, width, generator):
        factor = self.vae.config.downscale
        shape = (batch, self.vae.config.latent_channels, height // factor, width // factor)
        if latents is None:
            latents = stages.initial_latents(self.scheduler, shape, self.unet.dtype, generator)
            return BACKENDS[self.backend].put(latents)
        latents = given(self, "latents", latents, shape)
        return stages.scaled(latents, float(self.scheduler.init_noise_sigma))

    def _denoise(self, latents, callback, **options):
        """Run the steps; tell the callback, and the steps what it changed."""
        steps = stages.denoise(self.unet, self.scheduler, latents, *callback.texts(), **options)
        seconds, changed, begun = [], None, time.perf_counter()
        while True:
            try:
                step = steps.send(changed)
            except StopIteration:
                return latents, seconds
            latents = step.latents
            BACKENDS[self.backend].wait()
            if not is_on_device(latents):  # that would copy them in every step: see __call__
                self._check(f"denoise, step {step.index + 1}", latents)
            seconds.append(time.perf_counter() - begun)
            changed = callback(step)
            begun = time.perf_counter()
            latents = changed.get("latents", latents)
            if self._interrupt:
                return latents, seconds

    def _check(self, stage, *arrays):
        for array in arrays:
            if self.check_finite and array is not None:
                stages.require_finite(array, stage)

    def remark(self, message: str, key: str | None = None) -> None:
        """A warning that this pipeline gives once, however often it would."""
        key = message if key is None else key
        if key not in self._said:
            self._said.add(key)
            logger.warning("%s", message)
