"""StableDiffusionInpaintPipeline: new pixels where a mask is white, the picture's own elsewhere.

A model for it (9 channels) sees the mask and the latents of what the mask leaves of the picture. Of
a text-to-image model (4 channels) the latents of each step are blended with the picture's, which
are noised to where the step arrived:  x = (1 - mask) (x_0 noised to t) + mask x_t
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refsd import functional as F
from refsd.arguments import as_array
from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.half import in_float32
from refsd.pipelines import from_diffusers, images, stages, starts
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_integer, check_number, check_steps
from refsd.pipelines.tensors import given
from refsd.random import draw_noise
from refsd.registry import use


class StableDiffusionInpaintPipeline(Pipeline):
    """Inpainting, with models for it and with text-to-image models."""

    inputs = ("latents", "mask")

    def __call__(self, prompt: str | list[str] | None = None, image: Any = None,
                 mask_image: Any = None, masked_image_latents: Any = None,
                 height: int | None = None, width: int | None = None,
                 padding_mask_crop: int | None = None, strength: float = 1.0,
                 num_inference_steps: int | None = 50, timesteps: Any = None, sigmas: Any = None,
                 guidance_scale: float = 7.5, negative_prompt: str | list[str] | None = None,
                 num_images_per_prompt: int = 1, eta: float = 0.0, generator: Any = None,
                 latents: Any = None, prompt_embeds: Any = None,
                 negative_prompt_embeds: Any = None, *, output_type: str = "pil",
                 return_dict: bool = True, clip_skip: int | None = None,
                 callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: Any = ("latents",),
                 **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusionInpaintPipeline.

        image and mask_image: see refsd.pipelines.images. The size is the model's own unless it is
        given. At a strength of 1 the steps start from noise alone. padding_mask_crop draws the part
        around what the mask paints, with so many pixels more on each side, and puts it back (but
        where latents are asked for, which are the part's). The rest as in StableDiffusionPipeline.
        """
        from_diffusers.calling(self, others)
        return draw(
            self, image, mask_image, strength, num_inference_steps, timesteps, sigmas,
            masked=masked_image_latents, height=height, width=width, padding=padding_mask_crop,
            latents=latents, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale, eta=eta,
            generator=generator, output_type=output_type, return_dict=return_dict,
            clip_skip=clip_skip, callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs)


def draw(pipe: Any, image: Any, mask_image: Any, strength: Any, steps: Any, timesteps: Any,
         sigmas: Any, *, masked: Any, height: Any, width: Any, padding: Any, latents: Any,
         start: float | None = None, end: float | None = None, mu: float | None = None,
         **asked: Any) -> Any:
    """A drawing of what a mask paints, whatever the model; `asked` is what Drawing.begin takes.

    start and end: as in refsd.pipelines.img2img.draw.
    """
    strength = check_number("strength", strength, 0, 1)
    latents = latents if latents is None else as_array("latents", latents, pipe.denoiser.dtype)
    height, width = pipe.side("height", height, latents), pipe.side("width", width, latents)
    steps = check_steps(steps, own=timesteps is not None or sigmas is not None)
    output_type = asked["output_type"]
    crop = None if padding is None else _part(
        image, mask_image, output_type, width=width, height=height,
        padding=check_integer("padding_mask_crop", padding, 0, 4096))
    size = {"height": height, "width": width, "crop": crop}
    factor, channels = pipe.vae.config.downscale, pipe.vae.config.latent_channels
    picture = images.as_image("image", image, factor, latent_channels=channels, **size)
    mask = images.as_mask("mask_image", mask_image, factor, **size)
    drawing = Drawing.begin(pipe, height, width, steps=steps, **asked)
    left = starts.begin(pipe, strength, steps, timesteps=timesteps, sigmas=sigmas, start=start,
                        mu=pipe.mu(height, width, mu))
    left = stages.until(pipe.scheduler, left, end)
    with use(pipe.backend, exact=pipe.exact):
        begun = _Start(pipe, drawing, picture, mask, left)
        latents = begun.latents(latents, strength, noised=start is not None)
        extra = begun.channels(masked)
    keep = begun.kept if begun.blends else None
    output = drawing.finish(latents, timesteps=left, after_step=keep, channels=extra)
    if crop is not None and output_type == "pil":
        drawn = output.images if drawing.as_dict else output[0]
        drawn[:] = [images.overlay(mask_image, image, one, crop) for one in drawn]
    return output


class _Start:
    """What a drawing starts from, in diffusers' order: each draw of noise after the one before."""

    def __init__(self, pipe, drawing, picture, mask, timesteps):
        self.pipe, self.picture, self.mask, self.timesteps = pipe, picture, mask, timesteps
        self.generator, self.count = drawing.generator, drawing.batch
        factor, self.depth = pipe.vae.config.downscale, pipe.vae.config.latent_channels
        self.size = tuple(n // factor for n in mask.shape[2:])
        self.blends = pipe.denoiser.in_channels == self.depth
        self.encoded = picture.shape[1] != self.depth  # else it is latents
        self.original, self.noise = None, None
        self.grey = self._grey()

    def arrays(self):
        """What `kept` keeps, and where."""
        return [self.grey, self.original, self.noise]

    def _grey(self):
        """The mask at the size of the latents, in each of their channels.   (B, 4, h, w)"""
        grey = np.repeat(images.nearest(self.mask, *self.size), self.depth, axis=1)
        grey = BACKENDS[self.pipe.backend].put(as_array("mask", grey, self.pipe.denoiser.dtype))
        return starts.repeated("mask_image", grey, self.count)

    def latents(self, latents, strength, *, noised):
        """The first latents: noise, or the picture's noised to the first timestep left.

        Where the picture is `noised` already, its own.
        """
        pipe, shape = self.pipe, (self.count, self.depth, *self.size)
        if self.blends or noised or latents is None and strength < 1:
            self.original = starts.as_latents(pipe, self.picture, self.generator, self.count)
            if tuple(self.original.shape) != shape:
                raise UsageError(f"image has latents of {tuple(self.original.shape)}; give "
                                 f"{shape}, or another height and width")
        if noised:
            if latents is not None:
                pipe.remark("latents changes nothing: from a denoising_start the steps begin with "
                            "the picture's own")
            self.noise = starts.noise_of(pipe, shape, self.generator)
            return self.original
        if latents is not None:
            self.noise = given(pipe, "latents", latents, shape)
        else:
            self.noise = starts.noise_of(pipe, shape, self.generator)
            if strength < 1:
                return pipe.scheduler.add_noise(self.original, self.noise, self.timesteps[0])
        return stages.scaled(self.noise, float(pipe.scheduler.init_noise_sigma))

    def channels(self, masked):
        """What an inpainting model sees: the mask, and the latents of what it leaves."""
        depth = self.depth
        if masked is not None:
            masked = given(self.pipe, "masked_image_latents", masked, ("N", depth, *self.size))
            masked = starts.repeated("masked_image_latents", masked, self.count)
        elif self.blends and self.pipe.dialect.posterior == "mean":
            return None
        elif self.blends and self.encoded:  # not looked at: only its noise is drawn, as diffusers
            pictures = max(self.picture.shape[0], self.mask.shape[0])
            drawn = self.generator
            draw_noise((pictures, depth, *self.size), self.pipe.denoiser.dtype,
                       drawn[:pictures] if isinstance(drawn, list) else drawn)
        elif not self.encoded:
            if not self.blends:
                raise UsageError("image is latents; give masked_image_latents too, of what the "
                                 "mask leaves of the picture")
        else:
            left = self.picture * (self.mask < 0.5)
            masked = starts.encode_image(self.pipe, left, self.generator)
            masked = starts.repeated("image", masked, self.count)
        if self.blends:
            return None
        return F.concat([F.slice(self.grey, axis=1, start=0, stop=1), masked], axis=1)

    def kept(self, latents, index):
        """After a step: outside the mask the picture's latents, noised to the next timestep."""
        original = self.original
        if index + 1 < len(self.timesteps):
            original = self.pipe.scheduler.add_noise(original, self.noise,
                                                     self.timesteps[index + 1])
        return blended(latents, original, self.grey)


@in_float32
def blended(latents: Any, original: Any, mask: Any) -> Any:
    """(1 - mask) original + mask latents.   three times (B, 4, h, w) -> the same"""
    return (1 - mask) * original + mask * latents


def _part(image, mask, output_type, **asked):
    """The part of a picture to draw, which padding_mask_crop asks for: of PIL's pictures alone."""
    if not images.is_pil(image) or not images.is_pil(mask) or output_type == "np":
        raise UsageError("padding_mask_crop is for an image and a mask_image of PIL's and the "
                         "output_type pil; give these, or leave it out")
    if image.size != mask.size:
        raise UsageError(f"image is {image.size}, mask_image {mask.size}; padding_mask_crop needs "
                         "two of one size")
    return images.crop_region(mask, **asked)
