"""StableDiffusionImg2ImgPipeline: from a picture, with noise of a later step, to another one."""

from collections.abc import Callable, Mapping
from typing import Any

from refsd.pipelines import from_diffusers, images, stages, starts
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_number, check_steps
from refsd.pipelines.tensors import given, shaped
from refsd.registry import use


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
        from_diffusers.calling(self, others)
        return draw(
            self, image, strength, num_inference_steps, timesteps, sigmas, prompt=prompt,
            negative_prompt=negative_prompt, prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale, eta=eta,
            generator=generator, output_type=output_type, return_dict=return_dict,
            clip_skip=clip_skip, callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs)


def draw(pipe: Any, image: Any, strength: Any, steps: Any, timesteps: Any, sigmas: Any, *,
         start: float | None = None, end: float | None = None, latents: Any = None,
         mu: float | None = None, size: Mapping[str, Any] | None = None, **asked: Any) -> Any:
    """A drawing from a picture, whatever the model; `asked` is what Drawing.begin takes.

    start and end: shares of the noise, of which the steps between are made. A picture at a `start`
    has its noise already; `latents` are a picture with noise, in the place of one. size: the
    height and width that a picture is made to, see Pipeline.side, by default its own. mu: see
    Kind.mu.
    """
    strength = check_number("strength", strength, 0, 1)
    steps = check_steps(steps, own=timesteps is not None or sigmas is not None)
    factor, channels = pipe.vae.config.downscale, pipe.vae.config.latent_channels
    if latents is not None:
        latents = shaped("latents", latents, ("N", channels, "h", "w"), pipe.denoiser.dtype)
    size = {name: pipe.side(name, value, latents) for name, value in (size or {}).items()}
    if latents is not None:
        height, width = (factor * n for n in latents.shape[2:])
    else:
        image = images.as_image("image", image, factor, latent_channels=channels, **size)
        height, width = (n * (1 if image.shape[1] == 3 else factor) for n in image.shape[2:])
    drawing = Drawing.begin(pipe, height, width, steps=steps, **asked)
    left = starts.begin(pipe, strength, steps, timesteps=timesteps, sigmas=sigmas, start=start,
                        mu=pipe.mu(height, width, mu))
    left = stages.until(pipe.scheduler, left, end)
    with use(pipe.backend, exact=pipe.exact):
        if latents is not None:
            shape = (drawing.batch, channels, height // factor, width // factor)
            return drawing.finish(given(pipe, "latents", latents, shape), timesteps=left)
        latents = starts.as_latents(pipe, image, drawing.generator, drawing.batch,
                                    samples=drawing.batch)
        if start is None:
            noise = starts.noise_of(pipe, tuple(latents.shape), drawing.generator)
            latents = pipe.scheduler.add_noise(latents, noise, left[0])
    return drawing.finish(latents, timesteps=left)
