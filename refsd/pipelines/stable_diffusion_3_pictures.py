"""StableDiffusion3Pipeline's relatives: from a picture, and where a mask paints.

diffusers decodes what it inpaints without the VAE's shift_factor; here it is decoded as all else.
"""

from typing import Any

from refsd.errors import UsageError
from refsd.pipelines import img2img, inpaint
from refsd.pipelines.stable_diffusion_3 import StableDiffusion3, common


class StableDiffusion3Img2ImgPipeline(StableDiffusion3):
    """Image to image: a picture is noised to where the last `strength` of the steps begin."""

    resizes = True

    def __call__(self, prompt: str | list[str] | None = None,
                 prompt_2: str | list[str] | None = None, prompt_3: str | list[str] | None = None,
                 height: int | None = None, width: int | None = None, image: Any = None,
                 strength: float = 0.6, num_inference_steps: int | None = 50, sigmas: Any = None,
                 guidance_scale: float = 7.0, negative_prompt: str | list[str] | None = None,
                 negative_prompt_2: str | list[str] | None = None,
                 negative_prompt_3: str | list[str] | None = None, num_images_per_prompt: int = 1,
                 generator: Any = None, latents: Any = None, prompt_embeds: Any = None,
                 negative_prompt_embeds: Any = None, pooled_prompt_embeds: Any = None,
                 negative_pooled_prompt_embeds: Any = None, *, timesteps: Any = None,
                 mu: float | None = None, **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusion3Img2ImgPipeline.

        image: see refsd.pipelines.images; it is made to the model's own size unless height and
        width are given. Of n steps n - int(n - n strength) are made. latents: a picture with its
        noise, in the place of one. The rest as in StableDiffusion3Pipeline.
        """
        asked = common(self, others)
        return img2img.draw(
            self, image, strength, num_inference_steps, timesteps, sigmas, mu=mu,
            size={"height": height, "width": width}, latents=latents, prompt=prompt,
            prompt_2=prompt_2, prompt_3=prompt_3, negative_prompt=negative_prompt,
            negative_prompt_2=negative_prompt_2, negative_prompt_3=negative_prompt_3,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale,
            generator=generator, **asked)


class StableDiffusion3InpaintPipeline(StableDiffusion3):
    """Inpainting with a text-to-image model: outside the mask the picture's own latents stay."""

    def __call__(self, prompt: str | list[str] | None = None,
                 prompt_2: str | list[str] | None = None, prompt_3: str | list[str] | None = None,
                 image: Any = None, mask_image: Any = None, masked_image_latents: Any = None,
                 height: int | None = None, width: int | None = None,
                 padding_mask_crop: int | None = None, strength: float = 0.6,
                 num_inference_steps: int | None = 50, sigmas: Any = None,
                 guidance_scale: float = 7.0, negative_prompt: str | list[str] | None = None,
                 negative_prompt_2: str | list[str] | None = None,
                 negative_prompt_3: str | list[str] | None = None, num_images_per_prompt: int = 1,
                 generator: Any = None, latents: Any = None, prompt_embeds: Any = None,
                 negative_prompt_embeds: Any = None, pooled_prompt_embeds: Any = None,
                 negative_pooled_prompt_embeds: Any = None, *, timesteps: Any = None,
                 mu: float | None = None, **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusion3InpaintPipeline.

        image and mask_image: see refsd.pipelines.images. masked_image_latents are for models that
        read them, which there are none of. The rest as in StableDiffusionInpaintPipeline and
        StableDiffusion3Img2ImgPipeline.
        """
        asked = common(self, others)
        if masked_image_latents is not None:
            raise UsageError("masked_image_latents is for transformers that read a mask; leave it "
                             "out: of this one the picture's latents stay outside the mask")
        return inpaint.draw(
            self, image, mask_image, strength, num_inference_steps, timesteps, sigmas, mu=mu,
            masked=None, height=height, width=width, padding=padding_mask_crop, latents=latents,
            prompt=prompt, prompt_2=prompt_2, prompt_3=prompt_3, negative_prompt=negative_prompt,
            negative_prompt_2=negative_prompt_2, negative_prompt_3=negative_prompt_3,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale,
            generator=generator, **asked)
