"""One drawing: what every pipeline's call has in common, before its first step and after."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

from refsd.arguments import as_number
from refsd.backends import BACKENDS
from refsd.dialects import DIFFUSERS
from refsd.errors import UsageError
from refsd.pipelines import from_diffusers, stages
from refsd.pipelines.callback import StepCallback
from refsd.pipelines.generators import as_generators
from refsd.pipelines.guidance import Guidance
from refsd.pipelines.memory import working_bytes
from refsd.pipelines.request import (
    MAX_PICTURES,
    check_flag,
    check_integer,
    check_memory,
    check_number,
    check_output_type,
    idle,
    is_guided,
)
from refsd.places import is_on_device
from refsd.registry import make_ready, use


class NotWanted(Exception):
    """Raised after a step where whoever asked for the drawing has left."""


@dataclass
class StableDiffusionOutput:
    """`images`: PIL images, an array (B, H, W, 3) in [0, 1], or latents (B, 4, h, w).

    `seed` is the seed of the noise if the call chose or was given one number; `seconds` the time a
    stage ("encode", "denoise", "decode") took, `step_seconds` each denoising step's;
    `nsfw_content_detected` what `pipe.safety_checker` said of each picture, None where there is no
    such function: refsd ships none.
    """

    images: Any
    seed: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    nsfw_content_detected: list[bool] | None = None


@dataclass
class Drawing:
    """One call of a pipeline: what was asked for, checked, and when its stages ended.

    `numbers` are guidance_scale, guidance_rescale and eta; `generator` is one, or a list with one
    for each of the `batch` pictures, and `seed` what the caller gave for it; `step_generator` is
    that of the noise that samplers add. `composed` makes the prediction object of prompts that
    Guidance is not enough for (refsd.pipelines.spoken), else it is None; `added` are further inputs
    of the network that the prompts gave.
    """

    pipe: Any
    callback: StepCallback
    batch: int
    seed: Any
    generator: Any
    numbers: dict[str, float]
    output_type: str
    as_dict: bool
    clock: dict[str, float]
    step_generator: Any
    composed: Callable | None
    added: dict[str, Any]

    @classmethod
    def begin(cls, pipe: Any, height: int, width: int, *, prompt: Any, negative_prompt: Any,
              prompt_embeds: Any, negative_prompt_embeds: Any, num_images_per_prompt: Any,
              guidance_scale: Any, eta: Any, generator: Any, output_type: Any, return_dict: Any,
              clip_skip: Any, callback_on_step_end: Any, callback_on_step_end_tensor_inputs: Any,
              guidance_rescale: Any = 0.0, steps: int | None = None, **further: Any) -> Self:
        """Check what every call is given, encode the texts, and choose the seed.

        steps: how many there are, for prompts that change from one to the next. `further` is what
        the pipeline's `embed` takes besides.
        """
        scale = check_number("guidance_scale", guidance_scale, -1000, 1000)
        numbers = {"guidance_rescale": check_number("guidance_rescale", guidance_rescale, 0, 1),
                   "eta": check_number("eta", eta, 0, 1), "guidance_scale": scale}
        check_output_type(output_type)
        as_dict = check_flag("return_dict", return_dict)
        copies = check_integer("num_images_per_prompt", num_images_per_prompt, 1, MAX_PICTURES)
        callback = StepCallback(pipe, callback_on_step_end, callback_on_step_end_tensor_inputs)
        from_diffusers.check_scheduler(pipe.scheduler)

        make_ready(pipe.backend, str(pipe.denoiser.dtype))
        clock = {"start": time.perf_counter()}
        callback.positive, callback.negative, composed, added = pipe.embed(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, copies=copies,
            clip_skip=clip_skip, guided=is_guided(pipe, scale), steps=steps,
            size=(height, width), **further)
        callback.added = added
        pipe.require_finite("encode_text", *callback.texts(), *added.values())
        clock["encode"] = time.perf_counter()
        avoided = negative_prompt if negative_prompt_embeds is None else negative_prompt_embeds
        for name, why in idle(pipe, negative=avoided, **numbers).items():
            pipe.remark(f"{name} changes nothing: {why}")
        batch = callback.positive.shape[0]
        rows = batch if composed is None else batch * composed.func.rows(**composed.keywords)
        check_memory(pipe.backend, working_bytes(pipe, width, height, rows),
                     f"drawing {batch} x {width} x {height} pixels",
                     (pipe, width, height, rows))
        seed = generator if generator is not None else secrets.randbits(32)
        generator = step_generator = as_generators(seed, pipe.make_generator, batch)
        if pipe.dialect is not DIFFUSERS:
            from refsd.pipelines.spoken import generators

            generator, step_generator = generators(pipe, seed, batch)
        return cls(pipe, callback, batch, seed, generator, numbers, output_type, as_dict, clock,
                   step_generator, composed, added)

    def finish(self, latents: Any, *, timesteps: Any = None,
               after_step: Callable | None = None, guidance: Callable = Guidance,
               **inputs: Any) -> Any:
        """From the first latents to the output: the steps at `timesteps`, by default all.

        `guidance` makes the prediction object of the texts, the scales and `inputs` (what the model
        sees besides); `after_step` as in stages.denoise_with.
        """
        pipe, numbers, clock = self.pipe, self.numbers, self.clock
        if self.composed is not None and guidance is not Guidance:
            raise UsageError("prompt: this pipeline does not compose prompts, nor changes them "
                             "between steps; give one text that fits into one chunk")
        guidance = guidance if self.composed is None else self.composed
        pipe.num_timesteps = len(pipe.scheduler.timesteps if timesteps is None else timesteps)
        pipe._interrupt, pipe._guidance_scale = False, numbers["guidance_scale"]
        if pipe.controlled is not None:
            inputs["control"] = pipe.controlled.begin(
                self.batch, pipe.num_timesteps, tuple(latents.shape[2:]))
        if self.added:
            inputs["added"] = self.added
        pipe.drawing, self.first = self, latents
        self.inputs = {**inputs, "after_step": getattr(after_step, "__self__", None)}
        latents, done = (latents, 0) if pipe.resumed is None else pipe.resumed(self)
        with use(pipe.backend, exact=pipe.exact):
            predict = guidance(pipe.denoiser, *self.callback.texts(),
                               scale=numbers["guidance_scale"],
                               rescale=numbers["guidance_rescale"], **inputs)
            steps = stages.denoise_with(predict, pipe.scheduler, latents, timesteps=timesteps,
                                        eta=numbers["eta"], generator=self.step_generator,
                                        after_step=after_step, done=done)
            latents, step_seconds = self._steps(steps, latents)
        pipe.require_finite("denoise", latents)
        clock["denoise"] = time.perf_counter()
        images, flagged = self._output(latents)
        clock["decode"] = time.perf_counter()
        seconds = {b: clock[b] - clock[a] for a, b in pairwise(clock)}
        output = StableDiffusionOutput(images, as_number(self.seed), seconds, step_seconds, flagged)
        return output if self.as_dict else (images, flagged)

    def later_texts(self) -> list[Any]:
        """What composed prompts read after the first step, and their weights; else nothing."""
        return [] if self.composed is None else self.composed.func.arrays(**self.composed.keywords)

    def _output(self, latents):
        """The pictures, and which of them the caller's safety checker flagged, if there is one."""
        if self.pipe.safety_checker is None or self.output_type == "latent":
            return self.pipe.to_output(latents, self.output_type), None
        from refsd.pipelines import safety

        return safety.checked_output(self.pipe, latents, self.output_type)

    def _steps(self, steps, latents):
        """Run the steps; tell the callback, and the steps what it changed."""
        seconds, changed, begun = [], None, time.perf_counter()
        while True:
            try:
                step = steps.send(changed)
            except StopIteration:
                return latents, seconds
            latents = step.latents
            BACKENDS[self.pipe.backend].wait()
            if not is_on_device(latents):  # that would copy them in every step: `finish` looks once
                self.pipe.require_finite(f"denoise, step {step.index + 1}", latents)
            seconds.append(time.perf_counter() - begun)
            changed = self.callback(step)
            if self.pipe.stopped is not None and self.pipe.stopped():
                raise NotWanted
            begun = time.perf_counter()
            latents = changed.get("latents", latents)
            if self.pipe._interrupt:
                return latents, seconds
