"""What the pipelines of a transformer and three text encoders share, and text to image.

A transformer in the UNet's place reads two CLIPs and, where the model has it, T5
(refsd.pipelines.three_prompts); the steps go along the straight paths of flow matching, whose
sigmas a picture's size may shift (Esser et al. 2024, section 5.3.2).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from refsd.arguments import as_array, shown
from refsd.errors import UsageError
from refsd.pipelines import from_diffusers, stages
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.guidance import Guidance
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_integer, check_number, check_steps
from refsd.pipelines.skip_layers import SkipLayerGuidance
from refsd.pipelines.stable_diffusion import first_latents
from refsd.schedulers import predicts_flow

CALLING = {
    **from_diffusers.CALLING,
    "joint_attention_kwargs": ((None, {}), "there is nothing to scale: leave it out"),
}


class StableDiffusion3(Pipeline):
    """Its parts, of which a model may lack `tokenizer_3` and `text_encoder_3`: they are None."""

    parts = ("tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2",
             "text_encoder_3", "transformer", "vae", "scheduler")
    optional = ("tokenizer_3", "text_encoder_3")
    denoises = "transformer"
    rounds_up = True
    upgrades_scheduler = False
    further: ClassVar = {"pooled_prompt_embeds": ("pooled_projections", False),
                         "negative_pooled_prompt_embeds": ("pooled_projections", True)}
    lacks: ClassVar = {
        "dialect": "three encoders' weights, chunks and changes of a prompt are diffusers' alone",
        "textual inversion": "its words would need vectors in three text encoders",
        "ControlNet": "the ControlNets of refsd are UNets'",
        "adapters": "those of refsd are for UNets",
        "hires": "draw in the size that is wanted, or from the picture made larger",
    }

    def embed(self, *texts: Any, **options: Any) -> Any:
        """The prompts and their vectors, as what the transformer reads."""
        from refsd.pipelines.three_prompts import embed

        return embed(self, *texts, **options)

    def side(self, name: str, value: Any, latents: Any) -> int:
        """As in Pipeline, and no larger than the transformer has places for."""
        places = self.denoiser.tree["pos_embed"]["pos_embed"].shape[1]
        value, most = super().side(name, value, latents), math.isqrt(places) * self.multiple
        if value > most:
            raise UsageError(f"{name} is {value}, and the transformer has places for {most} pixels "
                             "a side; give fewer")
        return value

    def mu(self, height: int, width: int, given: Any) -> float | None:
        """The shift of a run's sigmas that a picture's size asks for, unless one is given."""
        config = self.scheduler.config
        if given is not None:
            if not config.get("use_dynamic_shifting"):
                self.remark("mu changes nothing: the scheduler has no use_dynamic_shifting")
                return None
            return check_number("mu", given, -100, 100)
        if not config.get("use_dynamic_shifting"):
            return None
        return self.scheduler.mu_of(height // self.multiple * (width // self.multiple))


class StableDiffusion3Pipeline(StableDiffusion3):
    """Text to image with SD3Transformer2DModel: version 3 and 3.5, medium, large, turbo."""

    def __call__(self, prompt: str | list[str] | None = None,
                 prompt_2: str | list[str] | None = None, prompt_3: str | list[str] | None = None,
                 height: int | None = None, width: int | None = None,
                 num_inference_steps: int | None = 28, sigmas: Any = None,
                 guidance_scale: float = 7.0, negative_prompt: str | list[str] | None = None,
                 negative_prompt_2: str | list[str] | None = None,
                 negative_prompt_3: str | list[str] | None = None, num_images_per_prompt: int = 1,
                 generator: Any = None, latents: Any = None, prompt_embeds: Any = None,
                 negative_prompt_embeds: Any = None, pooled_prompt_embeds: Any = None,
                 negative_pooled_prompt_embeds: Any = None, *, timesteps: Any = None,
                 skip_guidance_layers: Any = None, skip_layer_guidance_scale: float = 2.8,
                 skip_layer_guidance_stop: float = 0.2, skip_layer_guidance_start: float = 0.01,
                 mu: float | None = None, **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusion3Pipeline.

        Of three texts the first CLIP reads prompt, the second prompt_2, T5 prompt_3, of which it
        takes max_sequence_length tokens. skip_guidance_layers: the numbers of the transformer's
        blocks that are left out in a third call, see refsd.pipelines.skip_layers, at the steps
        between two shares of all. mu: the shift of a scheduler with use_dynamic_shifting, by
        default that of the size. The rest as in StableDiffusionPipeline.
        """
        asked = common(self, others)
        latents = latents if latents is None else as_array("latents", latents, self.denoiser.dtype)
        height, width = self.side("height", height, latents), self.side("width", width, latents)
        steps = check_steps(num_inference_steps, own=timesteps is not None or sigmas is not None)
        skip = skipping(self, skip_guidance_layers, skip_layer_guidance_scale,
                        skip_layer_guidance_start, skip_layer_guidance_stop)
        drawing = Drawing.begin(
            self, height, width, prompt=prompt, prompt_2=prompt_2, prompt_3=prompt_3,
            negative_prompt=negative_prompt, negative_prompt_2=negative_prompt_2,
            negative_prompt_3=negative_prompt_3, prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale,
            generator=generator, steps=steps, **asked)
        schedule = stages.make_schedule(self.scheduler, steps, timesteps=timesteps, sigmas=sigmas,
                                        mu=self.mu(height, width, mu))
        if skip is not None and drawing.callback.negative is None:
            self.remark("skip_guidance_layers changes nothing: the model is asked once")
        count = steps if timesteps is None and sigmas is None else len(schedule)
        guidance = Guidance if skip is None else partial(skip, count)
        return drawing.finish(first_latents(self, latents, drawing, height, width),
                              guidance=guidance)


# Of Drawing.begin, by default as in all calls.
COMMON = {"output_type": "pil", "return_dict": True, "clip_skip": None, "eta": 0.0,
          "guidance_rescale": 0.0, "callback_on_step_end": None,
          "callback_on_step_end_tensor_inputs": ("latents",), "max_sequence_length": 256}


def common(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
    """COMMON with what a call was given of it; UsageError for what no call takes."""
    if not predicts_flow(pipe.scheduler.config):
        raise UsageError(f"pipe.scheduler is a {type(pipe.scheduler).__name__} for models that "
                         "predict noise, this one predicts a flow; take a "
                         "FlowMatchEulerDiscreteScheduler, or options of flow matching")
    others = {name: value for name, value in given.items() if name not in COMMON}
    from_diffusers.calling(pipe, others, CALLING, further=COMMON)
    return {**COMMON, **{name: value for name, value in given.items() if name in COMMON}}


def skipping(pipe: Any, layers: Any, scale: Any, start: Any, stop: Any) -> Callable | None:
    """What makes skip-layer guidance of a count of steps, the texts and their scales; or None."""
    scale = check_number("skip_layer_guidance_scale", scale, -1000, 1000)
    start = check_number("skip_layer_guidance_start", start, 0, 1)
    stop = check_number("skip_layer_guidance_stop", stop, 0, 1)
    if layers is None:
        return None
    most = len(pipe.denoiser.tree["transformer_blocks"]) - 1
    layers = layers.tolist() if hasattr(layers, "tolist") else layers
    if not isinstance(layers, (list, tuple)):
        raise UsageError(f"skip_guidance_layers is {shown(layers)}; give a list of numbers of "
                         f"layers, 0 to {most}")
    layers = [check_integer(f"skip_guidance_layers[{i}]", layer, 0, most)
              for i, layer in enumerate(layers)]

    def make(count, *texts, **options):
        return SkipLayerGuidance(*texts, layers=layers, skip_scale=scale, start=count * start,
                                 stop=count * stop, **options)

    return make
