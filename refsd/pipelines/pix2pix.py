"""StableDiffusionInstructPix2PixPipeline: a picture changed as an instruction says.

The model sees the picture's latents beside its own (8 channels), and is guided by both:

    eps = eps(none) + s_text (eps(text, image) - eps(image)) + s_image (eps(image) - eps(none))

Brooks et al. 2023, "InstructPix2Pix", equation 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

from refsd import functional as F
from refsd.half import in_float32
from refsd.pipelines import from_diffusers, images, stages, starts
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.guidance import Guidance, as_text
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_number, check_steps
from refsd.pipelines.tensors import given
from refsd.registry import use


class StableDiffusionInstructPix2PixPipeline(Pipeline):
    """Editing a picture by an instruction, with a model for it."""

    inputs = ("image",)
    copies = 3  # of each picture in a step's batch

    def __call__(self, prompt: str | list[str] | None = None, image: Any = None,
                 num_inference_steps: int = 100, guidance_scale: float = 7.5,
                 image_guidance_scale: float = 1.5,
                 negative_prompt: str | list[str] | None = None, num_images_per_prompt: int = 1,
                 eta: float = 0.0, generator: Any = None, latents: Any = None,
                 prompt_embeds: Any = None, negative_prompt_embeds: Any = None, *,
                 output_type: str = "pil", return_dict: bool = True,
                 callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: Any = ("latents",),
                 **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' pipeline of this name.

        image: see refsd.pipelines.images; its size, rounded down, is the picture's. Guidance needs
        a guidance_scale above 1 and an image_guidance_scale of at least 1. The rest as in
        StableDiffusionPipeline.
        """
        from_diffusers.calling(self, others)
        steps = check_steps(num_inference_steps, own=False)
        closeness = check_number("image_guidance_scale", image_guidance_scale, -1000, 1000)
        if closeness < 1 and guidance_scale != 1:
            self.remark("guidance_scale changes nothing: at an image_guidance_scale below 1 the "
                        "model is asked once")
            guidance_scale = 1.0
        factor, channels = self.vae.config.downscale, self.vae.config.latent_channels
        image = images.as_image("image", image, factor, latent_channels=channels)
        height, width = (n * (1 if image.shape[1] == 3 else factor) for n in image.shape[2:])
        drawing = Drawing.begin(
            self, height, width, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale, eta=eta,
            generator=generator, output_type=output_type, return_dict=return_dict, clip_skip=None,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs)
        stages.make_schedule(self.scheduler, steps)
        with use(self.backend, exact=self.exact):
            if image.shape[1] == channels:
                image = given(self, "image", image, ("N", channels, "h", "w"))
            else:
                image = self.vae.encode(image).mode()  # the mean, and not scaled
                self.require_finite("encode the picture", image)
            image = starts.repeated("image", image, drawing.batch)
            shape = tuple(image.shape)
            noise = starts.noise_of(self, shape, drawing.generator) if latents is None else given(
                self, "latents", latents, shape)
            latents = stages.scaled(noise, float(self.scheduler.init_noise_sigma))
        return drawing.finish(latents, guidance=_Guidance, channels=image, closeness=closeness)


class _Guidance(Guidance):
    """Guidance by a text and by a picture, the latents of which are `channels`."""

    def __init__(self, *texts, closeness, channels, **options):
        self.closeness, self.image = closeness, channels
        super().__init__(*texts, **options)
        self._join()

    def __call__(self, x: Any, timestep: Any, index: int) -> Any:
        """The prediction of a step.   (B, 4, h, w) -> the same"""
        if self.negative is None:
            return self.ask(x, timestep, index)
        asked = self.ask(F.concat([x, x, x], axis=0), timestep, index)
        count = x.shape[0]
        both, image, none = asked[:count], asked[count:2 * count], asked[2 * count:]
        return guided_twice(none, image, both, self.scale, self.closeness)

    def change(self, changed: Mapping[str, Any]) -> None:
        """As in Guidance."""
        super().change(changed)
        if {"prompt_embeds", "negative_prompt_embeds"} & changed.keys():
            self._join()

    def _join(self):
        """Text and picture, the picture, nothing: what the three calls of a step read."""
        self.channels = self.image
        if self.negative is not None:
            self.text = as_text(self.positive, self.negative, self.negative)
            self.channels = F.concat([self.image, self.image, self.image * 0.0], axis=0)


@in_float32
def guided_twice(none: Any, image: Any, both: Any, text_scale: float, image_scale: float) -> Any:
    """From nothing along the text and along the picture.   (B, 4, h, w) three times -> the same"""
    return none + text_scale * (both - image) + image_scale * (image - none)
