"""StableDiffusionImg2ImgPipeline: from a picture, with noise of a later step, to another one."""

from collections.abc import Callable
from typing import Any

from refsd.pipelines import from_diffusers, images, starts
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_number, check_steps
from refsd.registry import use

CALL_ARGUMENTS = (
    "prompt", "image", "strength", "num_inference_steps", "timesteps", "sigmas", "guidance_scale",
    "negative_prompt", "num_images_per_prompt", "eta", "generator", "prompt_embeds",
    "negative_prompt_embeds", "output_type", "return_dict", "clip_skip", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)


class StableDiffusionImg2ImgPipeline(Pipeline):
    """Image to image: a picture is noised to where the last `strength` of the steps begin.

    >>> from refsd import StableDiffusionPipeline
    >>> pipe = StableDiffusionPipeline.from_pretrained(backend="numpy")
    >>> image = pipe("a red cube", 32, 32, num_inference_steps=2, generator=7).images[0]
    >>> pipe = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    >>> pipe("a blue cube", image, num_inference_steps=2, generator=7).images[0].size
    (32, 32)
    """

    def __call__(self, prompt: str | list[str] | None = None, image: Any = None,
                 strength: float = 0.8, num_inference_steps: int | None = 50,
                 timesteps: Any = None, sigmas: Any = None, guidance_scale: float = 7.5,
                 negative_prompt: str | list[str] | None = None, num_images_per_prompt: int = 1,
                 eta: float = 0.0, generator: Any = None, prompt_embeds: Any = None,
                 negative_prompt_embeds: Any = None, *, output_type: str = "pil",
                 return_dict: bool = True, clip_skip: int | None = None,
                 callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: Any = ("latents",),
                 **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusionImg2ImgPipeline.

        image: see refsd.pipelines.images; its size, rounded down, is the picture's. Of n steps
        int(n strength) are made. The rest as in StableDiffusionPipeline.
        """
        from_diffusers.take(type(self).__name__, others, from_diffusers.CALLING, CALL_ARGUMENTS)
        strength = check_number("strength", strength, 0, 1)
        own = timesteps is not None or sigmas is not None
        steps = check_steps(num_inference_steps, own=own)
        factor = self.vae.config.downscale
        image = images.as_image("image", image, factor,
                                latent_channels=self.vae.config.latent_channels)
        height, width = (n * (1 if image.shape[1] == 3 else factor) for n in image.shape[2:])
        drawing = Drawing.begin(
            self, height, width, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale, eta=eta,
            generator=generator, output_type=output_type, return_dict=return_dict,
            clip_skip=clip_skip, callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs, steps=steps)
        left = starts.begin(self, strength, steps, timesteps=timesteps, sigmas=sigmas)
        with use(self.backend, exact=self.exact):
            latents = starts.as_latents(self, image, drawing.generator, drawing.batch,
                                        samples=drawing.batch)
            noise = starts.noise_of(self, tuple(latents.shape), drawing.generator)
            latents = self.scheduler.add_noise(latents, noise, left[0])
        return drawing.finish(latents, timesteps=left)
