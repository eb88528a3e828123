"""The ControlNets of one drawing: what was asked of them, checked, and what they add in a step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refsd import functional as F
from refsd.arguments import shown
from refsd.errors import UsageError
from refsd.half import in_float32
from refsd.models.layers import Text
from refsd.pipelines import images
from refsd.pipelines.controlnet import ControlNet, Hint
from refsd.pipelines.guidance import as_text
from refsd.pipelines.request import check_flag, check_number
from refsd.places import beside


class Active(NamedTuple):
    """One ControlNet in a drawing: its hint, its scale, and in which part of the steps it acts."""

    net: ControlNet
    hint: Hint
    scale: float
    start: float
    end: float


class Control:
    """The ControlNets of one drawing: control(x, timestep, text, index) as Guidance calls it.

    Their residuals are added up. `batch` is the number of pictures: x has as many rows for each
    text, those of the negative ones first. In guess mode these are left alone.
    """

    def __init__(self, nets: Sequence[Active], *, batch: int, steps: int, guess_mode: bool):
        self.nets, self.batch, self.steps, self.guess_mode = nets, batch, steps, guess_mode
        self._texts: tuple[Any, Any] = None, None  # the text that was read last, and its rest

    def arrays(self) -> list[Any]:
        """What decides what is added, as arrays."""
        return [array for net, hint, *how in self.nets for array in
                (hint.states, np.array([*how, self.guess_mode]))]

    def __call__(self, x: Any, timestep: Any, text: Text, index: int) -> dict[str, Any]:
        """The keywords for the UNet; none in steps in which no ControlNet acts."""
        acting = [one for one in self.nets if one.start <= index / self.steps
                  and (index + 1) / self.steps <= one.end and one.scale]
        if not acting:
            return {}
        left_alone = self.batch if self.guess_mode and x.shape[0] > self.batch else 0
        if left_alone:
            x, text = x[left_alone:], self._rest(text, left_alone)
        total = None
        for net, hint, scale, *_ in acting:
            hint = hint if hint.states.shape[0] == 1 else _copied(hint, x.shape[0])
            skips, middle = net(x, timestep, text, hint, scale, self.guess_mode)
            found = [*skips, middle]
            total = found if total is None else list(map(_plus, total, found))
        if left_alone:
            total = [_after_zeros(y, left_alone) for y in total]
        return {"down_block_additional_residuals": total[:-1],
                "mid_block_additional_residual": total[-1]}

    def _rest(self, text, count):
        if self._texts[0] is not text:
            self._texts = text, as_text(text.states[count:])
        return self._texts[1]


@in_float32
def _plus(x: Any, y: Any) -> Any:
    return x + y


def _copied(hint, count):
    return Hint(F.concat([hint.states] * (count // hint.states.shape[0]), axis=0))


def _after_zeros(y, count):
    zeros = np.zeros((count, *y.shape[1:]), y.dtype)
    return F.concat([beside(y, zeros), y], axis=0)


def check_nets(pipe: Any, nets: Any) -> list[ControlNet]:
    """One ControlNet or several, in a list; UsageError for others, or such as do not fit."""
    found = list(nets) if isinstance(nets, (list, tuple)) else [nets]
    if not found:
        raise UsageError("controlnet is an empty list; give at least one ControlNet")
    for net in found:
        if not isinstance(net, ControlNet):
            raise UsageError(f"controlnet is {shown(net)}; give refsd.ControlNet.from_pretrained("
                             "path), or a list of them")
        for what in ("backend", "dtype", "text_width"):
            mine, theirs = getattr(pipe.unet, what), getattr(net, what)
            if mine != theirs:
                raise UsageError(f"the ControlNet's {what} is {theirs}, the UNet's {mine}; load "
                                 "it as the pipeline is loaded, and of the same kind of model")
        latents = pipe.vae.config.latent_channels  # the mask of an inpainting UNet is not for it
        if net.in_channels != latents:
            raise UsageError(f"the ControlNet's in_channels is {net.in_channels}, latents have "
                             f"{latents} channels; give one of the same kind of model")
        if (net.channels, net.downscale) != (3, pipe.vae.config.downscale):
            raise UsageError(f"the ControlNet reads {net.channels} channels and makes them "
                             f"{net.downscale} times smaller, the pipeline gives 3 for "
                             f"{pipe.vae.config.downscale}; give another")
    return found


class Wishes(NamedTuple):
    """How the ControlNets of a call are to act, checked: a scale, a start and an end each."""

    scales: list[float]
    starts: list[float]
    ends: list[float]
    guess_mode: bool


def check_wishes(nets: Sequence[ControlNet], scale: Any, start: Any, end: Any,
                 guess_mode: Any) -> Wishes:
    """A number for all ControlNets or a list with one each; UsageError for others."""
    scales = _each("controlnet_conditioning_scale", scale, len(nets), -1000, 1000)
    starts = _each("control_guidance_start", start, len(nets), 0, 1)
    ends = _each("control_guidance_end", end, len(nets), 0, 1)
    for first, last in zip(starts, ends):
        if first >= last:
            raise UsageError(f"control_guidance_start is {first:g} and control_guidance_end "
                             f"{last:g}; give a start before the end")
    guess_mode = check_flag("guess_mode", guess_mode) or nets[0].config.global_pool
    return Wishes(scales, starts, ends, guess_mode)


def _each(name, value, count, low, high):
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise UsageError(f"{name} has {len(values)} numbers for {count} ControlNets; give one, or "
                         "one each")
    return [check_number(name, one, low, high) for one in values]


def pictures(nets: Sequence[ControlNet], image: Any, factor: int, *, name: str = "image",
             height: int | None = None, width: int | None = None) -> list[np.ndarray]:
    """A picture for each ControlNet in the size that is asked for, or its own.   (B, 3, H, W) each

    One ControlNet takes what refsd.pipelines.images takes; several a list with one each, or a list
    of such lists, one for each prompt.
    """
    each = [image]
    if len(nets) > 1:
        if not isinstance(image, (list, tuple)) or not image:
            raise UsageError(f"{name} is {shown(image)}; give a list with a picture for each of "
                             f"the {len(nets)} ControlNets")
        each = list(image)
        if isinstance(each[0], (list, tuple)):
            if any(not isinstance(row, (list, tuple)) or len(row) != len(nets) for row in each):
                raise UsageError(f"{name} holds lists that are not of {len(nets)} pictures; give "
                                 "one for each ControlNet")
            each = [list(column) for column in zip(*each)]
        if len(each) != len(nets):
            raise UsageError(f"{name} has {len(each)} pictures for {len(nets)} ControlNets; give "
                             "one each")
    found = [images.as_pixels(name, one, factor, height=height, width=width) for one in each]
    sizes = {one.shape[2:] for one in found}
    if len(sizes) > 1:
        raise UsageError(f"{name} has pictures of {len(sizes)} sizes; give height and width, to "
                         "which all are made")
    return found


class Asked(NamedTuple):
    """What is asked of the ControlNets of a call: pictures, how they act, pictures a prompt.

    `images` are what the pictures were made of: a second pass reads them in its own size.
    """

    nets: Sequence[ControlNet]
    pictures: Sequence[np.ndarray]
    wishes: Wishes
    copies: int = 1
    images: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.pictures[0].shape[2:]

    def begin(self, batch: int, steps: int, latents: tuple[int, int]) -> Control:
        """The Control of a drawing of `batch` pictures in so many steps, of latents (h, w).

        Each of its pictures is read once; it is for all prompts, or there is one for each.
        """
        acting, copies, made = [], self.copies, self.pictures
        factor = self.nets[0].downscale
        height, width = (n * factor for n in latents)
        if (height, width) != tuple(self.size):
            if self.images is None:
                raise UsageError(f"the control pictures are {self.size[1]} x {self.size[0]}, what "
                                 f"is drawn {width} x {height}; give them in that size")
            made = pictures(self.nets, self.images, factor, height=height, width=width)
        for net, picture, *how in zip(self.nets, made, *self.wishes[:3]):
            count = picture.shape[0]
            if count > 1 and count * copies != batch:
                raise UsageError(f"there are {count} control pictures for {batch // copies} "
                                 "prompts; give 1, or one for each prompt")
            picture = picture if count == 1 else picture.repeat(copies, axis=0)
            acting.append(Active(net, net.embed(picture), *how))
        return Control(acting, batch=batch, steps=steps, guess_mode=self.wishes.guess_mode)
