"""Text encoder and UNet of a pipeline as callables that work alone.

Each has its weights, its configuration and its backend. It takes arrays of
NumPy's or of its backend, and gives the latter. `use` appears here, at the edge, and nowhere below.
"""

import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from refsd.arguments import as_array
from refsd.backends import BACKENDS
from refsd.contracts import Spec
from refsd.errors import ModelError, UsageError
from refsd.half import to_float32
from refsd.models import clip, unet
from refsd.models.config import CLIPTextConfig, UNetConfig
from refsd.models.layers import Text
from refsd.pipelines.added import added_inputs
from refsd.pipelines.from_diffusers import answer
from refsd.pipelines.graph_mode import GraphMode, with_text
from refsd.pipelines.request import check_flag, check_integer
from refsd.pipelines.tensors import added_width, shaped, text_width
from refsd.places import on_host
from refsd.registry import use
from refsd.text import CLIPTokenizer
from refsd.weights.checkpoint import Component

CLIP_ROWS = 49408


class TextOutput(tuple):
    """What CLIP says of a text: a tuple, in transformers' order, of what there is.

    last_hidden_state (N, L, D) and pooler_output (N, D); with a text_projection text_embeds (N, P)
    and last_hidden_state; then hidden_states, if they are asked for. The names of others are None.
    """

    text_embeds = last_hidden_state = pooler_output = hidden_states = None

    def __new__(cls, **found: Any) -> "TextOutput":
        """Of the names and what they are."""
        self = super().__new__(cls, found.values())
        vars(self).update(found)
        return self


class TextEncoder:
    """CLIP's text encoder: ids (N, L) -> TextOutput of (N, L, D) and (N, D) or (N, P)."""

    def __init__(self, tree: dict, config: CLIPTextConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact

    @classmethod
    def of(cls, part: Component, backend: str, exact: bool) -> Self:
        """That of a loaded checkpoint."""
        tree = {key: branch for key, branch in part.tree.items() if key != "text_model"}
        return cls({**part.tree["text_model"], **tree}, CLIPTextConfig.from_json(part.config),
                   backend, exact)

    def calls(self, part: str, asked: Any, texts: Mapping[str, Any]) -> dict[str, partial]:
        """What a drawing (refsd.planning.Asked) computes of it: a picture's texts."""
        pooled = "text_projection" in self.tree  # else no picture comes of the pooled vector
        ids = Spec((asked.copies, self.config.max_length), "int64")
        if pooled:  # for which the end is looked for in the ids
            ids = np.zeros(*ids)
        return {part: partial(clip.clip_text_pooled if pooled else clip.clip_text, ids,
                              **self.tree, config=self.config)}

    @property
    def rows(self) -> int:
        """The number of embeddings."""
        return self.tree["embeddings"]["token_embedding"]["weight"].shape[0]

    def tokenizer_of(self, place: Path, name: str, pad: str | None) -> CLIPTokenizer:
        """That of a model's folder; where there is none, CLIP's own if the encoder is CLIP's."""
        if (place / name).is_dir():
            tokenizer = CLIPTokenizer.from_folder(place / name)
        elif self.rows != CLIP_ROWS:
            raise ModelError(f"{place}: no tokenizer folder, and with {self.rows} embeddings the "
                             f"text encoder is not CLIP's ({CLIP_ROWS}): the vocabulary cannot be "
                             "known. Put the tokenizer folder of the model there")
        else:
            tokenizer = CLIPTokenizer.clip() if pad is None else CLIPTokenizer.clip(pad=pad)
        tokenizer.require_rows(self.rows, self.config.max_length)
        return tokenizer

    def __call__(self, input_ids: np.ndarray, *, clip_skip: int | None = None,
                 output_hidden_states: bool = False, **others: Any) -> TextOutput:
        """Encode; `clip_skip` leaves that many last layers out, as in diffusers.

        hidden_states are a tuple of what the first layer reads and what each layer gives, as in
        transformers. Raises UsageError for ids that are not integers (N, L) below the vocabulary's
        size.
        """
        answer("text_encoder", others)  # what it gives is a tuple in any case
        ids = as_array("text_encoder: ids", on_host(input_ids))
        rows = self.rows
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not 1 <= ids.shape[1] <= (
                self.config.max_length):
            raise UsageError(f"text_encoder: ids are {ids.dtype} {ids.shape}; give integers (N, L) "
                             f"with L from 1 to {self.config.max_length}")
        if ids.size and not 0 <= ids.min() <= ids.max() < rows:
            raise UsageError(f"text_encoder: ids run from {ids.min()} to {ids.max()}; "
                             f"the vocabulary has 0 to {rows - 1}")
        layers = len(self.tree["encoder"]["layers"])
        if clip_skip is not None:
            clip_skip = check_integer("clip_skip", clip_skip, 0, layers - 1)
        skipped = 0 if clip_skip is None else clip_skip
        states = [] if check_flag("output_hidden_states", output_hidden_states) else None
        with use(self.backend, exact=self.exact):
            last, pooled = clip.clip_text_pooled(ids, **self.tree, config=self.config,
                                                 layers_skipped=skipped, states=states)
        found = ({"text_embeds": pooled, "last_hidden_state": last}
                 if "text_projection" in self.tree else
                 {"last_hidden_state": last, "pooler_output": pooled})
        return TextOutput(**found, **({"hidden_states": tuple(states)} if states else {}))


def each_step(name: str, timestep: Any, count: int) -> np.ndarray:
    """A training step for each of `count` samples, of one for all or of as many.   -> (N,)"""
    steps = to_float32(as_array(f"{name}: timestep", on_host(timestep)))
    if steps.size == 1:
        steps = np.full(count, steps.item(), steps.dtype)
    if steps.shape != (count,):
        raise UsageError(f"{name}: timestep has shape {steps.shape}; give a number or one for "
                         f"each of the {count} samples")
    return steps


class UNet(GraphMode):
    """The noise predictor: (N, 4, h, w), t, (N, L, D) -> (N, 4, h, w)."""

    patch_size = 1  # of transformers, along a side: here each latent is read by itself

    def __init__(self, tree: dict, config: UNetConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        self.dtype = str(tree["conv_in"]["weight"].dtype)
        self.in_channels = tree["conv_in"]["weight"].shape[1]
        self.text_width = text_width(tree)
        condition = tree["time_embedding"].get("cond_proj")
        self.time_cond_dim = None if condition is None else condition["weight"].shape[1]
        self.added_width = added_width(tree)
        self._with_text: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, part: Component, backend: str, exact: bool) -> Self:
        """That of a loaded checkpoint."""
        return cls(part.tree, UNetConfig.from_json(part.config), backend, exact)

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, *,
                 timestep_cond: Any = None, text_embeds: Any = None, time_ids: Any = None,
                 added_cond_kwargs: Any = None, down_block_additional_residuals: Any = None,
                 mid_block_additional_residual: Any = None, **others: Any) -> Any:
        """Predict; timestep is one training step for the whole batch or one for each sample.

        encoder_hidden_states is an array (N, L, D), or a models.layers.Text of one: what layers
        make of the text is then computed once for all calls that are given the same. A model with
        an add_embedding takes text_embeds (N, P) and time_ids (N, K), or a dict of both as
        added_cond_kwargs. The additional residuals are what a ControlNet gives: a list, and an
        array.
        """
        answered, put = answer("unet", others), BACKENDS[self.backend].put
        sample = put(shaped("unet: sample", sample, ("N", self.in_channels, "h", "w"), self.dtype))
        steps = each_step("unet", timestep, sample.shape[0])
        if (timestep_cond is None) != (self.time_cond_dim is None):
            raise UsageError("unet: timestep_cond is "
                             + ("missing; this model is distilled: give "
                                f"(N, {self.time_cond_dim})" if timestep_cond is None else
                                "given, but this model has no time_embedding.cond_proj: "
                                "leave it out"))
        if timestep_cond is not None:
            timestep_cond = put(shaped("unet: timestep_cond", timestep_cond,
                                       (len(steps), self.time_cond_dim), self.dtype))
        text_embeds, time_ids = added_inputs("unet", self, len(steps), text_embeds, time_ids,
                                             added_cond_kwargs)
        if not isinstance(encoder_hidden_states, Text):
            encoder_hidden_states = put(shaped(
                "unet: encoder_hidden_states", encoder_hidden_states,
                (len(steps), "L", self.text_width), self.dtype))
        if (down_block_additional_residuals is None) != (mid_block_additional_residual is None):
            raise UsageError("unet: down_block_additional_residuals and "
                             "mid_block_additional_residual belong together; give both or neither")
        residuals = [] if mid_block_additional_residual is None else [
            put(as_array("unet: a residual", residual, self.dtype)) for residual in
            (*down_block_additional_residuals, mid_block_additional_residual)]
        with use(self.backend, exact=self.exact):
            predict = self._predicting(encoder_hidden_states)
            return answered(predict(sample, steps, timestep_cond, text_embeds, time_ids,
                                    *residuals))

    def calls(self, part: str, asked: Any, texts: Mapping[str, Any]) -> dict[str, partial]:
        """What a drawing (refsd.planning.Asked) computes of it: a step's prediction."""
        rows = asked.rows
        sample = Spec((rows, self.in_channels, asked.height, asked.width), self.dtype)
        length = max(states.shape[1] for states, *_ in texts.values())
        text = Spec((rows, length, self.text_width), self.dtype)
        further = {"timestep_cond": Spec((rows, self.time_cond_dim), self.dtype)
                   } if self.time_cond_dim else {}
        if self.added_width:  # the last text's vector, and as many ids as there is room for
            vector = [*texts.values()][-1][-1].shape[-1]
            ids = (self.added_width - vector) // self.config.addition_time_embed_dim
            further |= {"text_embeds": Spec((rows, vector), self.dtype),
                        "time_ids": Spec((rows, ids), "float32")}
        return {part: partial(unet.unet, sample, Spec((rows,), "int64"), text, **self.tree,
                              config=self.config, **further)}

    def _predicting(self, text):
        """The model with this text. With a Text it is called again: a backend may keep the call."""
        predict = self.as_graph(self._predict)
        if not isinstance(text, Text):
            return partial(predict, text)
        kept = self._with_text.setdefault(text, {})
        if self.graph not in kept:
            kept[self.graph] = BACKENDS[self.backend].replayed(with_text(predict, text), self.tree)
        return kept[self.graph]

    def _predict(self, text, sample, steps, condition, text_embeds, time_ids, *residuals):
        *skips, middle = residuals or (None,)
        return unet.unet(sample, steps, text, **self.tree, config=self.config,
                         timestep_cond=condition, text_embeds=text_embeds, time_ids=time_ids,
                         down_block_additional_residuals=skips or None,
                         mid_block_additional_residual=middle)
