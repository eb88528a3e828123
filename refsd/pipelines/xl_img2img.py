"""StableDiffusionXLImg2ImgPipeline: from a picture, or from latents that another model left."""

from collections.abc import Callable
from functools import partial
from typing import Any

from refsd.pipelines import from_diffusers, img2img
from refsd.pipelines.request import check_number
from refsd.pipelines.stable_diffusion_xl import StableDiffusionXL, check_shares


class StableDiffusionXLImg2ImgPipeline(StableDiffusionXL):
    """Image to image with Stable Diffusion XL; also what its refiner draws with."""

    def __call__(self, prompt: str | list[str] | None = None,
                 prompt_2: str | list[str] | None = None, image: Any = None, strength: float = 0.3,
                 num_inference_steps: int | None = 50, timesteps: Any = None, sigmas: Any = None,
                 denoising_start: float | None = None, denoising_end: float | None = None,
                 guidance_scale: float = 5.0, negative_prompt: str | list[str] | None = None,
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
        """Draw. Every argument means what it means in diffusers' StableDiffusionXLImg2ImgPipeline.

        image: see refsd.pipelines.images. denoising_start: the share of the noise where the steps
        begin, whatever the strength; the picture, or the latents that it is, have their noise
        already. The scores are of models that read them, such as the refiner. The rest as in
        StableDiffusionXLPipeline and StableDiffusionImg2ImgPipeline.
        """
        from_diffusers.calling(self, others)
        start, end = check_shares(denoising_start, denoising_end)
        return img2img.draw(
            self, image, strength, num_inference_steps, timesteps, sigmas, start=start, end=end,
            latents=latents, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
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


def ids_with(score: Any, away: Any, *sizes: Any) -> Callable:
    """What makes the numbers beside the texts, of two scores and the sizes of a call."""
    from refsd.pipelines.xl_prompts import Sizes, ids_of_pictures

    scores = (check_number("aesthetic_score", score, 0, 100),
              check_number("negative_aesthetic_score", away, 0, 100))
    return partial(ids_of_pictures, Sizes.of(*sizes), scores)
