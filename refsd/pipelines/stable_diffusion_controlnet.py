"""The pipelines with ControlNets: from a text, from a picture, and with a mask.

Each is the pipeline without, whose drawing has one more thing asked of it (Pipeline.controlled).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from refsd.errors import UsageError
from refsd.pipelines import control, images
from refsd.pipelines.controlnet import ControlNet
from refsd.pipelines.img2img import StableDiffusionImg2ImgPipeline
from refsd.pipelines.inpaint import StableDiffusionInpaintPipeline
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_side
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline

MISSING = ("controlnet is missing; give controlnet=refsd.ControlNet.from_pretrained(path), or a "
           "list of them")


class WithControlNets(Pipeline):
    """A pipeline with a part more: `controlnet`, one ControlNet or a list of them."""

    def __init__(self, *, controlnet: Any = None, **parts: Any):
        super().__init__(**parts)
        self._nets: list[ControlNet] = []
        if controlnet is not None:
            self.controlnet = controlnet

    @classmethod
    def from_pretrained(cls, path: Any = None, *, controlnet: Any = None, **options: Any) -> Self:
        """As Pipeline.from_pretrained; `controlnet` is one ControlNet, or a list of them.

        Without it they are those of the model's folder, which diffusers saves as controlnet,
        controlnet_1 and so on.
        """
        places = [] if controlnet is not None else _inside(path)
        if controlnet is None and not places:
            raise UsageError(MISSING)
        made = super().from_pretrained(path, **options)
        made.controlnet = controlnet if controlnet is not None else [ControlNet.from_pretrained(
            place, backend=made.backend, exact=made.exact, **{
                key: options[key] for key in ("dtype", "torch_dtype", "weights", "force")
                if key in options}) for place in places]
        return made

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
            raise UsageError(MISSING)
        self._nets = control.check_nets(self, nets)

    @contextmanager
    def _asking(self, name: str, image: Any, height: Any, width: Any, copies: Any, *,
                scale: Any, start: Any, end: Any, guess_mode: Any) -> Iterator[tuple[int, int]]:
        """Within the block drawings have the ControlNets; gives their pictures' height and width.
        """
        wishes = control.check_wishes(self._nets, scale, start, end, guess_mode)
        height, width = (size if size is None else check_side(side, size, self.vae_scale_factor)
                         for side, size in (("height", height), ("width", width)))
        pictures = control.pictures(self._nets, image, self.vae_scale_factor, name=name,
                                    height=height, width=width)
        self.controlled = control.Asked(self._nets, pictures, wishes, copies, image)
        try:
            yield self.controlled.size
        finally:
            self.controlled = None


class StableDiffusionControlNetPipeline(WithControlNets, StableDiffusionPipeline):
    """Text to image, with pictures that ControlNets read."""

    def __call__(self, prompt: Any = None, image: Any = None, height: int | None = None,
                 width: int | None = None, num_inference_steps: int | None = 50,
                 timesteps: Any = None, sigmas: Any = None, guidance_scale: float = 7.5,
                 negative_prompt: Any = None, num_images_per_prompt: int = 1, eta: float = 0.0,
                 generator: Any = None, latents: Any = None, prompt_embeds: Any = None,
                 negative_prompt_embeds: Any = None, *, controlnet_conditioning_scale: Any = 1.0,
                 guess_mode: bool = False, control_guidance_start: Any = 0.0,
                 control_guidance_end: Any = 1.0, **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' StableDiffusionControlNetPipeline.

        image: a picture for the ControlNet, of which the size is taken unless height and width
        say another; for several a list. controlnet_conditioning_scale and the start and end of what
        they control, as shares of the steps, are numbers or lists. The rest as in
        StableDiffusionPipeline.
        """
        with self._asking("image", image, height, width, num_images_per_prompt,
                          scale=controlnet_conditioning_scale, start=control_guidance_start,
                          end=control_guidance_end, guess_mode=guess_mode) as size:
            return super().__call__(
                prompt, *size, num_inference_steps, timesteps, sigmas, guidance_scale,
                negative_prompt, num_images_per_prompt, eta, generator, latents, prompt_embeds,
                negative_prompt_embeds, **others)


class StableDiffusionControlNetImg2ImgPipeline(WithControlNets, StableDiffusionImg2ImgPipeline):
    """Image to image, with pictures that ControlNets read."""

    def __call__(self, prompt: Any = None, image: Any = None, control_image: Any = None,
                 height: int | None = None, width: int | None = None, strength: float = 0.8,
                 num_inference_steps: int | None = 50, guidance_scale: float = 7.5,
                 negative_prompt: Any = None, num_images_per_prompt: int = 1, eta: float = 0.0,
                 generator: Any = None, *, controlnet_conditioning_scale: Any = 0.8,
                 guess_mode: bool = False, control_guidance_start: Any = 0.0,
                 control_guidance_end: Any = 1.0, **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' pipeline of this name.

        image: the picture to begin with; control_image: as `image` in
        StableDiffusionControlNetPipeline, where also the others are. The rest as in
        StableDiffusionImg2ImgPipeline.
        """
        with self._asking("control_image", control_image, height, width, num_images_per_prompt,
                          scale=controlnet_conditioning_scale, start=control_guidance_start,
                          end=control_guidance_end, guess_mode=guess_mode) as size:
            begin = images.as_image("image", image, self.vae_scale_factor, height=height,
                                    width=width, latent_channels=self.vae.config.latent_channels)
            _same_size(self, begin, size)
            if begin.shape[1] == 3 and begin.min() >= 0:
                begin = (begin + 1) / 2  # what is in [0, 1] is taken to be so
            return super().__call__(
                prompt, begin, strength, num_inference_steps, guidance_scale=guidance_scale,
                negative_prompt=negative_prompt, num_images_per_prompt=num_images_per_prompt,
                eta=eta, generator=generator, **others)


class StableDiffusionControlNetInpaintPipeline(WithControlNets, StableDiffusionInpaintPipeline):
    """Inpainting, with pictures that ControlNets read."""

    def __call__(self, prompt: Any = None, image: Any = None, mask_image: Any = None,
                 control_image: Any = None, height: int | None = None, width: int | None = None,
                 padding_mask_crop: int | None = None, strength: float = 1.0,
                 num_inference_steps: int | None = 50, guidance_scale: float = 7.5,
                 negative_prompt: Any = None, num_images_per_prompt: int = 1, eta: float = 0.0,
                 generator: Any = None, latents: Any = None, *,
                 controlnet_conditioning_scale: Any = 0.5, guess_mode: bool = False,
                 control_guidance_start: Any = 0.0, control_guidance_end: Any = 1.0,
                 **others: Any) -> Any:
        """Draw. Every argument means what it means in diffusers' pipeline of this name.

        control_image: as `image` in StableDiffusionControlNetPipeline; its size is the picture's
        unless height and width say another. The rest as in StableDiffusionInpaintPipeline.
        """
        if padding_mask_crop is not None:
            raise UsageError("padding_mask_crop is not for inpainting with ControlNets; leave it "
                             "out, and give the part of the pictures that is to be drawn")
        with self._asking("control_image", control_image, height, width, num_images_per_prompt,
                          scale=controlnet_conditioning_scale, start=control_guidance_start,
                          end=control_guidance_end, guess_mode=guess_mode) as size:
            return super().__call__(
                prompt, image, mask_image, height=size[0], width=size[1], strength=strength,
                num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
                negative_prompt=negative_prompt, num_images_per_prompt=num_images_per_prompt,
                eta=eta, generator=generator, latents=latents, **others)


def _inside(path):
    """The folders of the ControlNets that diffusers saved with a model."""
    folder = Path(path or "nowhere")
    names = ["controlnet", *(f"controlnet_{i}" for i in range(1, 16))]
    return [folder / name for name in names if (folder / name / "config.json").is_file()]


def _same_size(pipe, image, size):
    factor = 1 if image.shape[1] == 3 else pipe.vae_scale_factor
    if tuple(n * factor for n in image.shape[2:]) != tuple(size):
        raise UsageError(f"image is {image.shape[3] * factor} x {image.shape[2] * factor}, "
                         f"control_image {size[1]} x {size[0]}; give height and width, to which "
                         "both are made")
