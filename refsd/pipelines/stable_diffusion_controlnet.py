"""StableDiffusionControlNetPipeline: text to image, with pictures that ControlNets read."""

from collections.abc import Callable
from typing import Any, Self

from refsd.arguments import as_array
from refsd.errors import UsageError
from refsd.pipelines import control, from_diffusers, stages
from refsd.pipelines.controlnet import ControlNet
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_side, check_steps
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline

CALL_ARGUMENTS = (
    "prompt", "image", "height", "width", "num_inference_steps", "timesteps", "sigmas",
    "guidance_scale", "negative_prompt", "num_images_per_prompt", "eta", "generator", "latents",
    "prompt_embeds", "negative_prompt_embeds", "output_type", "return_dict",
    "controlnet_conditioning_scale", "guess_mode", "control_guidance_start",
    "control_guidance_end", "clip_skip", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)


class Controlled(Pipeline):
    """A pipeline with a part more: `controlnet`, one ControlNet or a list of them."""

    def __init__(self, *, controlnet: Any = None, **parts: Any):
        super().__init__(**parts)
        self._nets: list[ControlNet] = []
        if controlnet is not None:
            self.controlnet = controlnet

    @classmethod
    def from_pretrained(cls, path: Any = None, *, controlnet: Any = None, **options: Any) -> Self:
        """As Pipeline.from_pretrained; `controlnet` is one ControlNet, or a list of them."""
        return cls.from_pipe(StableDiffusionPipeline.from_pretrained(path, **options),
                             controlnet=controlnet)

    from_single_file = from_pretrained

    @classmethod
    def from_pipe(cls, pipe: Pipeline, *, controlnet: Any = None, **replaced: Any) -> Self:
        """As Pipeline.from_pipe; without `controlnet` the ControlNets are the pipeline's own."""
        made = super().from_pipe(pipe, **replaced)
        made.controlnet = getattr(pipe, "_nets", None) if controlnet is None else controlnet
        return made

    @property
    def controlnet(self) -> Any:
        """The ControlNet; of several a list."""
        return self._nets[0] if len(self._nets) == 1 else self._nets

    @controlnet.setter
    def controlnet(self, nets: Any) -> None:
        if nets is None:
            raise UsageError("controlnet is missing; give controlnet=refsd.ControlNet."
                             "from_pretrained(path), or a list of them")
        self._nets = control.check_nets(self, nets)


class StableDiffusionControlNetPipeline(Controlled, StableDiffusionPipeline):
    """Text to image, with pictures that ControlNets read."""

    def __call__(self, prompt: str | list[str] | None = None, image: Any = None,
                 height: int | None = None, width: int | None = None,
                 num_inference_steps: int | None = 50, timesteps: Any = None, sigmas: Any = None,
                 guidance_scale: float = 7.5, negative_prompt: str | list[str] | None = None,
                 num_images_per_prompt: int = 1, eta: float = 0.0, generator: Any = None,
                 latents: Any = None, prompt_embeds: Any = None, negative_prompt_embeds: Any = None,
                 *, output_type: str = "pil", return_dict: bool = True,
                 controlnet_conditioning_scale: Any = 1.0, guess_mode: bool = False,
                 control_guidance_start: Any = 0.0, control_guidance_end: Any = 1.0,
                 clip_skip: int | None = None, callback_on_step_end: Callable | None = None,
                 callback_on_step_end_tensor_inputs: Any = ("latents",), **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusionControlNetPipeline.

        image: a picture for the ControlNet, of which the size is taken unless height and width
        say another; for several a list. controlnet_conditioning_scale and the start and end of what
        they control, as shares of the steps, are numbers or lists. The rest as in
        StableDiffusionPipeline.
        """
        from_diffusers.take(type(self).__name__, others, from_diffusers.CALLING, CALL_ARGUMENTS)
        wishes = control.check_wishes(self._nets, controlnet_conditioning_scale,
                                      control_guidance_start, control_guidance_end, guess_mode)
        height, width = (size if size is None else check_side(name, size, self.vae_scale_factor)
                         for name, size in (("height", height), ("width", width)))
        pictures = control.pictures(self._nets, image, self.vae_scale_factor, height=height,
                                    width=width)
        height, width = pictures[0].shape[2:]
        latents = latents if latents is None else as_array("latents", latents, self.unet.dtype)
        steps = check_steps(num_inference_steps, own=timesteps is not None or sigmas is not None)
        drawing = Drawing.begin(
            self, height, width, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale, eta=eta,
            generator=generator, output_type=output_type, return_dict=return_dict,
            clip_skip=clip_skip, callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs, steps=steps)
        schedule = stages.make_schedule(self.scheduler, steps, timesteps=timesteps, sigmas=sigmas)
        latents = self._start(latents, drawing.batch, height, width, drawing.generator)
        return drawing.finish(latents, control=control.begin(
            self, pictures, wishes, drawing.batch, num_images_per_prompt, len(schedule)))
