"""A ControlNet as a callable that works alone: weights, configuration, backend."""

from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from refsd.backends import BACKENDS, choose_backend, find_backend
from refsd.errors import UsageError
from refsd.half import in_float32
from refsd.models.controlnet import ControlNetConfig, controlnet, embed_hint
from refsd.models.layers import Text
from refsd.pipelines import from_diffusers
from refsd.pipelines.added import added_inputs
from refsd.pipelines.components import each_step
from refsd.pipelines.request import check_flag
from refsd.pipelines.tensors import added_width, shaped, text_width
from refsd.places import beside, on_host
from refsd.registry import use
from refsd.weights.checkpoint import load
from refsd.weights.control import NAME, plan_controlnet
from refsd.weights.folder import check_variants
from refsd.weights.location import resolve


class Hint(NamedTuple):
    """A picture as a ControlNet has read it, once for all steps.   (N or 1, C, h, w)"""

    states: Any


class Residuals(NamedTuple):
    """What is added to each skip of a UNet, and to its middle."""

    down_block_res_samples: list
    mid_block_res_sample: Any


class ControlNet:
    """The network: (N, 4, h, w), t, the text, a picture (N, 3, 8 h, 8 w) -> Residuals."""

    def __init__(self, tree: dict, config: ControlNetConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        self.dtype = str(tree["conv_in"]["weight"].dtype)
        self.in_channels, self.text_width = tree["conv_in"]["weight"].shape[1], text_width(tree)
        self.added_width, hint = added_width(tree), tree["controlnet_cond_embedding"]
        self.channels = hint["conv_in"]["weight"].shape[1]
        self.downscale = 2 ** (len(hint["blocks"]) // 2)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, backend: str = "auto", dtype: Any = "float32",
                        weights: str | None = None, download: bool = False,
                        variant: str | None = None, force: bool = False, exact: bool = False,
                        torch_dtype: Any = None, local_files_only: bool | None = None,
                        **others: Any) -> Self:
        """Load a diffusers folder, a single file, or a hub id from the local cache.

        The options are those of a pipeline's from_pretrained; backend and dtype are to be the
        pipeline's. Raises ModelError, ResourceError, UsageError.
        """
        for name, value in {"force": force, "exact": exact}.items():
            check_flag(name, value)
        dtype, download, hub = from_diffusers.loading(
            cls.from_pretrained, others, dtype=dtype, torch_dtype=torch_dtype, download=download,
            local_files_only=local_files_only)
        backend = choose_backend(backend)
        place = resolve(path, download=download, variant=variant, parts=(NAME,), **hub)
        plan = plan_controlnet(place, variant=variant)
        check_variants({NAME: plan.variant}, variant, str(place))
        part = load({NAME: plan}, dtype=dtype, weights=weights, force=force)[NAME]
        find_backend(backend).place(part.tensors)
        return cls(part.tree, ControlNetConfig.from_json(part.config), backend, exact)

    from_single_file = from_pretrained

    def embed(self, picture: Any) -> Hint:
        """(N, 3, H, W) in [0, 1], H and W multiples of the downscale -> Hint((N, C, h, w))"""
        picture = shaped("controlnet: controlnet_cond", picture, ("N", self.channels, "H", "W"),
                         self.dtype)
        if any(n % self.downscale for n in picture.shape[2:]):
            raise UsageError(f"controlnet: controlnet_cond has shape {tuple(picture.shape)}; give "
                             f"H and W that are multiples of {self.downscale}")
        with use(self.backend, exact=self.exact):
            return Hint(embed_hint(BACKENDS[self.backend].put(picture),
                                   **self.tree["controlnet_cond_embedding"], config=self.config))

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, controlnet_cond: Any,
                 conditioning_scale: float = 1.0, guess_mode: bool = False, *,
                 text_embeds: Any = None, time_ids: Any = None, added_cond_kwargs: Any = None,
                 **others: Any) -> Residuals:
        """What the UNet is to add, times the scale.

        controlnet_cond is a picture, or what `embed` made of one, of N or one for all; text_embeds,
        time_ids and what stands before it are the UNet's. In guess_mode the scales rise from a
        tenth at the first skip to 1 in the middle.
        """
        from_diffusers.answer("controlnet", others)  # what it gives is a tuple in any case
        put = BACKENDS[self.backend].put
        sample = put(shaped("controlnet: sample", sample, ("N", self.in_channels, "h", "w"),
                            self.dtype))
        steps = each_step("controlnet", timestep, sample.shape[0])
        text_embeds, time_ids = added_inputs("controlnet", self, len(steps), text_embeds, time_ids,
                                             added_cond_kwargs)
        if not isinstance(encoder_hidden_states, Text):
            encoder_hidden_states = put(shaped(
                "controlnet: encoder_hidden_states", encoder_hidden_states,
                (len(steps), "L", self.text_width), self.dtype))
        if not isinstance(controlnet_cond, Hint):
            controlnet_cond = self.embed(controlnet_cond)
        trunk = {key: block for key, block in self.tree.items()
                 if key != "controlnet_cond_embedding"}
        with use(self.backend, exact=self.exact):
            skips, middle = controlnet(sample, steps, encoder_hidden_states, controlnet_cond.states,
                                       **trunk, config=self.config, text_embeds=text_embeds,
                                       time_ids=time_ids)
        found = [*skips, middle]
        factors = [conditioning_scale] * len(found)
        if guess_mode and not self.config.global_pool:
            rising = np.logspace(-1, 0, len(found)).astype(np.float32)
            factors = (rising * np.float32(conditioning_scale)).tolist()
        found = [_times(x, factor) for x, factor in zip(found, factors)]
        if self.config.global_pool:
            found = [beside(x, _mean(on_host(x))) for x in found]
        return Residuals(found[:-1], found[-1])


@in_float32
def _times(x: Any, factor: float) -> Any:
    return x * factor


@in_float32
def _mean(x: np.ndarray) -> np.ndarray:
    """Over all pixels.   (N, C, H, W) -> (N, C, 1, 1)"""
    return x.mean(axis=(2, 3), keepdims=True)
