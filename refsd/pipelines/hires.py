"""A1111's hires. fix: latents or pictures made larger, and drawn over from a part of the noise.

Its rules (modules/processing.py, sample_hr_pass): the second pass makes all of its steps, the last
ones of a schedule of int(steps / strength) (strength at most 0.999); noise is drawn anew from the
first pass's seeds, at the new size. Pictures are cut to bytes, made larger and encoded; where A1111
takes a sample of the VAE's posterior from a generator that nobody seeds, here it is the mean.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.pipelines import from_diffusers, stages, starts
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_choice, check_number, check_side, check_steps
from refsd.pipelines.tensors import given
from refsd.pipelines.upscale import LATENT, UPSCALERS, upscaled_latents, upscaled_pictures
from refsd.registry import use


class StableDiffusionHiresPipeline(Pipeline):
    """The second pass of text to image, from the latents of a first one.

    >>> from refsd import StableDiffusionPipeline
    >>> pipe = StableDiffusionPipeline.from_pretrained(backend="numpy")
    >>> small = pipe("a red cube", 32, 32, num_inference_steps=2, generator=7, output_type="latent")
    >>> hires = StableDiffusionHiresPipeline.from_pipe(pipe)
    >>> hires("a red cube", small.images, 48, 48, num_inference_steps=2, generator=7).images[0].size
    (48, 48)
    """

    def __call__(self, prompt: str | list[str] | None = None, latents: Any = None,
                 height: int | None = None, width: int | None = None, strength: float = 0.7,
                 upscaler: str = "latent", num_inference_steps: int = 20,
                 guidance_scale: float = 7.5, negative_prompt: str | list[str] | None = None,
                 num_images_per_prompt: int = 1, eta: float = 0.0, generator: Any = None, *,
                 noise: Any = None, prompt_embeds: Any = None, negative_prompt_embeds: Any = None,
                 output_type: str = "pil", return_dict: bool = True, clip_skip: int | None = None,
                 guidance_rescale: float = 0.0, callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: Any = ("latents",), **others: Any) -> Any:
        """Draw again, larger. latents: those of a first pass, output_type="latent".

        height and width: of the new pictures, twice the old ones by default. upscaler: one of
        UPSCALERS. num_inference_steps: all of them are made, whatever the strength. noise: instead
        of what the generator gives first. The rest as in StableDiffusionPipeline.
        """
        from_diffusers.calling(self, others)
        check_choice("upscaler", upscaler, tuple(UPSCALERS))
        steps = check_steps(num_inference_steps, own=False)
        total = schedule_length(steps, strength)
        if latents is None:
            raise UsageError("latents is None; give those of a first pass, output_type=\"latent\"")
        factor, channels = self.vae.config.downscale, self.vae.config.latent_channels
        small = given(self, "latents", latents, ("N", channels, "h", "w"))
        height, width = (
            check_side(name, 2 * factor * old if value is None else value, factor)
            for name, value, old in (("height", height, small.shape[2]),
                                     ("width", width, small.shape[3])))
        drawing = Drawing.begin(
            self, height, width, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, eta=eta, generator=generator,
            output_type=output_type, return_dict=return_dict, clip_skip=clip_skip,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs, steps=steps)
        stages.make_schedule(self.scheduler, total)
        first = (total - steps) * getattr(self.scheduler, "order", 1)
        self.scheduler.set_begin_index(first)
        left = self.scheduler.timesteps[first:]
        with use(self.backend, exact=self.exact):
            large = self.upscaled(small, height, width, upscaler)
            large = starts.repeated("latents", large, drawing.batch)
            shape = tuple(large.shape)
            if noise is None:
                noise = starts.noise_of(self, shape, drawing.generator)
            noise = given(self, "noise", noise, shape)
            latents = self.scheduler.add_noise(large, noise, left[0])
        return drawing.finish(latents, timesteps=left)

    def upscaled(self, latents: Any, height: int, width: int, upscaler: str) -> Any:
        """Latents of pictures of another size.   (B, 4, h, w) -> (B, 4, h', w')"""
        factor, put = self.vae.config.downscale, BACKENDS[self.backend].put
        if upscaler in LATENT:
            large = upscaled_latents(np.asarray(self.to_output(latents, "latent")),
                                     height // factor, width // factor, upscaler)
            return put(large)
        pictures = stages.cut_to_bytes(self.to_output(latents, "np"))
        pixels = upscaled_pictures(pictures, height, width, upscaler).transpose(0, 3, 1, 2)
        mean = self.vae.encode(np.float32(pixels) / 255 * 2 - 1).mode()
        return stages.for_diffusion(mean, self.vae.config)


def schedule_length(steps: int, strength: Any) -> int:
    """int(steps / strength), of which the last `steps` are made; UsageError for a strength of 0"""
    strength = check_number("strength", strength, 0, 1)
    if strength == 0:
        raise UsageError("strength is 0; give a number above 0, up to 1: how much is drawn over")
    return int(steps / min(strength, 0.999))
