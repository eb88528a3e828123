"""Stable Diffusion XL: what its pipelines share, and text to image.

Its UNet reads what the last layer but one of two text encoders gives, side by side, the second's
vector of the whole text, and numbers: the sizes of the picture, where it was cropped, or how well
it is liked (Podell et al. 2023, section 2.2). The refiner has the second encoder alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from refsd.arguments import as_array
from refsd.errors import UsageError
from refsd.half import is_half
from refsd.pipelines import from_diffusers, stages
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_number, check_steps
from refsd.pipelines.stable_diffusion import first_latents


class StableDiffusionXL(Pipeline):
    """The parts of Stable Diffusion XL. `tokenizer` and `text_encoder` are None in its refiner.

    force_zeros_for_empty_prompt: whether no negative prompt, None, is zeros in the place of a text;
    "" is a text.
    """

    parts = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae",
             "scheduler")
    optional = ("tokenizer", "text_encoder")
    settings: ClassVar = {"force_zeros_for_empty_prompt": True}
    upgrades_scheduler = False
    further: ClassVar = {
        "add_text_embeds": ("text_embeds", False),
        "negative_pooled_prompt_embeds": ("text_embeds", True),
        "add_time_ids": ("time_ids", False), "negative_add_time_ids": ("time_ids", True)}
    lacks: ClassVar = {
        "dialect": "two encoders' weights, chunks and changes of a prompt are diffusers' alone",
        "textual inversion": "its words would need vectors in both text encoders",
        "ControlNet": "its ControlNets are read, but no pipeline asks them yet",
        "hires": "draw in the size that is wanted, or from the picture made larger",
    }

    def embed(self, *texts: Any, size: tuple[int, int], **options: Any) -> Any:
        """The prompts, their vectors and the numbers beside them, as what the UNet reads."""
        from refsd.pipelines.xl_prompts import embed

        return embed(self, *texts, size=size, **options)

    def upcasts(self, part: str) -> bool:
        """Whether the VAE overflows in halves.

        As in diffusers the config's force_upcast says so, and it is asked of the decoder in float16
        and of the encoder in both halves.
        """
        halves = is_half(self.vae.dtype) if part == "encoder" else self.vae.dtype == "float16"
        return halves and getattr(self.vae.config, "force_upcast", False)


class StableDiffusionXLPipeline(StableDiffusionXL):
    """Text to image with Stable Diffusion XL: its base model, Turbo, Lightning, and finetunes."""

    def __call__(self, prompt: str | list[str] | None = None,
                 prompt_2: str | list[str] | None = None, height: int | None = None,
                 width: int | None = None, num_inference_steps: int | None = 50,
                 timesteps: Any = None, sigmas: Any = None, denoising_end: float | None = None,
                 guidance_scale: float = 5.0, negative_prompt: str | list[str] | None = None,
                 negative_prompt_2: str | list[str] | None = None, num_images_per_prompt: int = 1,
                 eta: float = 0.0, generator: Any = None, latents: Any = None,
                 prompt_embeds: Any = None, negative_prompt_embeds: Any = None,
                 pooled_prompt_embeds: Any = None, negative_pooled_prompt_embeds: Any = None, *,
                 output_type: str = "pil", return_dict: bool = True, guidance_rescale: float = 0.0,
                 original_size: Any = None, crops_coords_top_left: Any = (0, 0),
                 target_size: Any = None, negative_original_size: Any = None,
                 negative_crops_coords_top_left: Any = (0, 0), negative_target_size: Any = None,
                 clip_skip: int | None = None, callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: Any = ("latents",), **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusionXLPipeline.

        Sizes are (height, width), crops (top, left). Of two texts the first encoder reads prompt,
        the second prompt_2. denoising_end: the share of the noise after which to stop, for what
        goes on from latents there. The rest as in StableDiffusionPipeline.
        """
        from refsd.pipelines.xl_prompts import Sizes, ids_of_texts

        from_diffusers.calling(self, others)
        latents = latents if latents is None else as_array("latents", latents, self.denoiser.dtype)
        height, width = self.side("height", height, latents), self.side("width", width, latents)
        steps = check_steps(num_inference_steps, own=timesteps is not None or sigmas is not None)
        end = check_share("denoising_end", denoising_end)
        sizes = Sizes.of(original_size, crops_coords_top_left, target_size, negative_original_size,
                         negative_crops_coords_top_left, negative_target_size)
        drawing = Drawing.begin(
            self, height, width, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, eta=eta, generator=generator,
            output_type=output_type, return_dict=return_dict, clip_skip=clip_skip,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs, steps=steps,
            prompt_2=prompt_2, negative_prompt_2=negative_prompt_2,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            ids=partial(ids_of_texts, sizes))
        schedule = stages.make_schedule(self.scheduler, steps, timesteps=timesteps, sigmas=sigmas)
        left = stages.until(self.scheduler, schedule, end)
        return drawing.finish(first_latents(self, latents, drawing, height, width), timesteps=left)


def check_share(name: str, value: Any) -> float | None:
    """A share of the noise, above 0 and up to 1; None is none."""
    share = None if value is None else check_number(name, value, 0, 1)
    if share == 0:
        raise UsageError(f"{name} is 0; give a number above 0, up to 1, or leave it out")
    return share


def check_shares(start: Any, end: Any) -> tuple[float | None, float | None]:
    """denoising_start and denoising_end; UsageError where they leave nothing between them."""
    start, end = check_share("denoising_start", start), check_share("denoising_end", end)
    if start == 1:
        raise UsageError("denoising_start is 1; give a number between 0 and 1, or leave it out")
    if start is not None and end is not None and start >= end:
        raise UsageError(f"denoising_start is {start:g} and denoising_end {end:g}; give a start "
                         "before the end")
    return start, end
