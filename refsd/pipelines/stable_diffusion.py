"""StableDiffusionPipeline: the class people expect, with diffusers' names and defaults."""

from collections.abc import Callable
from typing import Any

from refsd.arguments import as_array
from refsd.backends import BACKENDS
from refsd.pipelines import from_diffusers, stages
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_steps
from refsd.pipelines.tensors import given


class StableDiffusionPipeline(Pipeline):
    """Text to image with a Stable Diffusion checkpoint of a family that refsd.families has.

    >>> pipe = StableDiffusionPipeline.from_pretrained(backend="numpy")
    >>> pipe("a red cube", 32, 32, num_inference_steps=2, generator=7).images[0].size
    (32, 32)
    """

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
        from_diffusers.calling(self, others)
        latents = latents if latents is None else as_array("latents", latents, self.denoiser.dtype)
        height, width = self.side("height", height, latents), self.side("width", width, latents)
        steps = check_steps(num_inference_steps, own=timesteps is not None or sigmas is not None)
        drawing = Drawing.begin(
            self, height, width, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, eta=eta, generator=generator,
            output_type=output_type, return_dict=return_dict, clip_skip=clip_skip,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs, steps=steps)
        stages.make_schedule(self.scheduler, steps, timesteps=timesteps, sigmas=sigmas)
        return drawing.finish(first_latents(self, latents, drawing, height, width))


def first_latents(pipe: Any, latents: Any, drawing: Drawing, height: int, width: int) -> Any:
    """What text to image begins with: the caller's noise or new one, as the schedule scales it."""
    factor = pipe.vae.config.downscale
    shape = (drawing.batch, pipe.vae.config.latent_channels, height // factor, width // factor)
    if latents is None:
        latents = stages.initial_latents(pipe.scheduler, shape, pipe.denoiser.dtype,
                                         drawing.generator)
        return BACKENDS[pipe.backend].put(latents)
    latents = given(pipe, "latents", latents, shape)
    return stages.scaled(latents, float(pipe.scheduler.init_noise_sigma))
