"""StableDiffusionXLInpaintPipeline: new pixels where a mask is white, with Stable Diffusion XL."""

from collections.abc import Callable
from typing import Any

from refsd.pipelines import from_diffusers, inpaint
from refsd.pipelines.stable_diffusion_xl import StableDiffusionXL, check_shares
from refsd.pipelines.xl_img2img import ids_with


class StableDiffusionXLInpaintPipeline(StableDiffusionXL):
    """Inpainting with Stable Diffusion XL: with models for it, with its base and its refiner."""

    inputs = ("latents", "mask")

    def __call__(self, prompt: str | list[str] | None = None,
                 prompt_2: str | list[str] | None = None, image: Any = None,
                 mask_image: Any = None, masked_image_latents: Any = None,
                 height: int | None = None, width: int | None = None,
                 padding_mask_crop: int | None = None, strength: float = 0.9999,
                 num_inference_steps: int | None = 50, timesteps: Any = None, sigmas: Any = None,
                 denoising_start: float | None = None, denoising_end: float | None = None,
                 guidance_scale: float = 7.5, negative_prompt: str | list[str] | None = None,
                 negative_prompt_2: str | list[str] | None = None, num_images_per_prompt: int = 1,
                 eta: float = 0.0, generator: Any = None, latents: Any = None,
                 prompt_embeds: Any = None, negative_prompt_embeds: Any = None,
                 pooled_prompt_embeds: Any = None, negative_pooled_prompt_embeds: Any = None, *,
                 output_type: str = "pil", return_dict: bool = True, guidance_rescale: float = 0.0,
                 original_size: Any = None, crops_coords_top_left: Any = (0, 0),
                 target_size: Any = None, negative_original_size: Any = None,
                 negative_crops_coords_top_left: Any = (0, 0), negative_target_size: Any = None,
                 aesthetic_score: float = 6.0, negative_aesthetic_score: float = 2.5,
                 clip_skip: int | None = None, callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: Any = ("latents",), **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusionXLInpaintPipeline.

        As in StableDiffusionInpaintPipeline and StableDiffusionXLImg2ImgPipeline.
        """
        from_diffusers.calling(self, others)
        start, end = check_shares(denoising_start, denoising_end)
        return inpaint.draw(
            self, image, mask_image, strength, num_inference_steps, timesteps, sigmas, start=start,
            end=end, masked=masked_image_latents, height=height, width=width,
            padding=padding_mask_crop, latents=latents, prompt=prompt,
            negative_prompt=negative_prompt, prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, eta=eta, generator=generator,
            output_type=output_type, return_dict=return_dict, clip_skip=clip_skip,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            prompt_2=prompt_2, negative_prompt_2=negative_prompt_2,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            ids=ids_with(aesthetic_score, negative_aesthetic_score, original_size,
                         crops_coords_top_left, target_size, negative_original_size,
                         negative_crops_coords_top_left, negative_target_size))
