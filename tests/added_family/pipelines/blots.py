"""Callables of the two networks, and the pipeline that draws with them."""

from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from refsd.contracts import Spec
from refsd.models import blots
from refsd.models.layers import Text
from refsd.pipelines.components import TextEncoder
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.registry import use


class Words(TextEncoder):
    """CLIP's tokenizer is read as there; the rest is its own."""

    @classmethod
    def of(cls, part, backend, exact):
        config = SimpleNamespace(max_length=part.config["max_position_embeddings"])
        return cls(part.tree, config, backend, exact)

    @property
    def rows(self):
        return self.tree["table"]["weight"].shape[0]

    def calls(self, part, asked, texts):
        ids = Spec((asked.copies, self.config.max_length), "int64")
        return {part: partial(blots.words, ids, **self.tree)}

    def __call__(self, ids, *, clip_skip=None):
        with use(self.backend, exact=self.exact):
            return SimpleNamespace(last_hidden_state=blots.words(ids, **self.tree))


class Blots:
    """What predicts."""

    in_channels, patch_size, time_cond_dim = 4, 1, None

    def __init__(self, tree, config, backend, exact):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        self.dtype, self.text_width = str(tree["time"]["weight"].dtype), tree["read"][
            "weight"].shape[1]

    @classmethod
    def of(cls, part, backend, exact):
        config = SimpleNamespace(sample_size=part.config["sample_size"])
        return cls(part.tree, config, backend, exact)

    def calls(self, part, asked, texts):
        rows = asked.rows
        sample = Spec((rows, 4, asked.height, asked.width), self.dtype)
        text = Spec((rows, texts["text_encoder"][0].shape[1], self.text_width), self.dtype)
        return {part: partial(blots.blots, sample, Spec((rows,), "int64"), text, **self.tree)}

    def __call__(self, sample, timestep, text):
        text = text.states if isinstance(text, Text) else text
        with use(self.backend, exact=self.exact):
            return blots.blots(sample, np.full(len(sample), timestep), text, **self.tree)


class BlotsPipeline(StableDiffusionPipeline):
    """Text to image."""

    parts = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    denoises = "transformer"
    lacks: ClassVar = {"adapters": "those of refsd are for UNets"}
