"""What a step predicts, made of what the model says of two texts: classifier-free guidance.

    eps = eps(negative) + s (eps(text) - eps(negative))           Ho and Salimans 2022

A prediction object is called once a step: predict(x, timestep, index), x (B, C, h, w) as the
scheduler scales it. `change` takes what a callback replaced.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refsd import functional as F
from refsd.half import in_float32
from refsd.models.layers import Text


class Guidance:
    """The model's prediction for a text, guided away from what the negative text describes.

    `positive` and, or None, `negative` are (B, L, D); without the latter the model is asked once.
    `channels` (B, K, h, w) are further channels that the model sees after those of x, in every step
    the same; `control(x, timestep, text, index)` gives further keywords of a call of the model,
    for the same x and text as it is called with. `added` are further keywords of every call, arrays
    in the order of the texts of a batch.
    """

    def __init__(self, unet: Any, positive: Any, negative: Any = None, *, scale: float,
                 rescale: float = 0.0, channels: Any = None, control: Callable | None = None,
                 added: Mapping[str, Any] | None = None):
        self.unet, self.positive, self.negative = unet, positive, negative
        self.scale, self.rescale, self.control = scale, rescale, control
        self.channels, self.added = channels, dict(added or {})
        self.condition = guidance_condition(unet, scale, positive.shape[0])
        self.text = as_text(negative, positive)

    def __call__(self, x: Any, timestep: Any, index: int) -> Any:
        """The prediction of a step.   (B, C, h, w) -> the same"""
        if self.negative is None:
            return self.ask(x, timestep, index)
        both = self.ask(F.concat([x, x], axis=0), timestep, index)
        half = x.shape[0]
        away, towards = both[:half], both[half:]
        predicted = guided(away, towards, self.scale)
        return rescale(predicted, towards, self.rescale) if self.rescale > 0 else predicted

    def ask(self, x: Any, timestep: Any, index: int) -> Any:
        """The model's prediction for one x a text, the negative ones first.   (N, C, h, w)"""
        more = {} if self.control is None else self.control(x, timestep, self.text, index)
        if self.channels is not None:
            copies = [self.channels] * (x.shape[0] // self.channels.shape[0])
            x = F.concat([x, F.concat(copies, axis=0)], axis=1)
        # without the negative texts, the last rows
        added = {name: rows[-x.shape[0]:] for name, rows in self.added.items()}
        if self.condition is not None:
            more = {**more, "timestep_cond": self.condition}
        return self.unet(x, timestep, self.text, **added, **more)

    def change(self, changed: Mapping[str, Any]) -> None:
        """Other texts or another scale from here on, under the names of diffusers' callbacks."""
        self.scale = changed.get("guidance_scale", self.scale)
        self.positive = changed.get("prompt_embeds", self.positive)
        self.negative = changed.get("negative_prompt_embeds", self.negative)
        self.added = changed.get("added", self.added)
        if {"prompt_embeds", "negative_prompt_embeds"} & changed.keys():
            self.text = as_text(self.negative, self.positive)


def as_text(*parts: Any) -> Text:
    """The texts of one call of the model, in the order of its batch; a part may be None."""
    states = [part for part in parts if part is not None]
    if len(states) == 1:
        return Text(states[0])
    joined = F.concat(states, axis=0)
    if hasattr(joined, "flags"):
        joined.flags.writeable = False  # nobody else has it: what layers make of it is kept
    return Text(joined)


def guidance_condition(unet: Any, guidance_scale: float, batch: int) -> Any:
    """The guidance scale as sinusoids, for distilled models that take it as an input; else None.

    -> (B, K) with K = unet.time_cond_dim.   Meng et al. 2023, "On Distillation of Guided ..."
    """
    if unet.time_cond_dim is None:
        return None
    w = np.full(batch, (guidance_scale - 1) * 1000, np.float32)
    return F.timestep_embedding(w, dim=unet.time_cond_dim, flip_sin_to_cos=False, freq_shift=1,
                                dtype=unet.dtype)


@in_float32
def guided(away: Any, towards: Any, scale: float) -> Any:
    """From one prediction to the other, and beyond.   (B, 4, h, w) twice -> the same"""
    return away + scale * (towards - away)


@in_float32
def rescale(guided: Any, text: Any, share: float) -> Any:
    """`share` of the way to the guided prediction with the text prediction's deviation.

    (B, 4, h, w) twice -> the same.   Lin et al. 2023, section 3.4; deviations are unbiased.
    """
    axes = {"axis": (1, 2, 3), "keepdims": True, "ddof": 1}
    rescaled = guided * (text.std(**axes) / guided.std(**axes))
    return share * rescaled + (1 - share) * guided
