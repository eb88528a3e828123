"""The transformer of a pipeline as a callable that works alone, in the place of a UNet."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Self

from refsd.backends import BACKENDS
from refsd.contracts import Spec
from refsd.models import mmdit
from refsd.models.layers import Text
from refsd.models.mmdit import MMDiTConfig
from refsd.pipelines.components import each_step
from refsd.pipelines.from_diffusers import answer
from refsd.pipelines.graph_mode import GraphMode, with_text
from refsd.pipelines.request import check_integer
from refsd.pipelines.t5 import TOKENS
from refsd.pipelines.tensors import shaped
from refsd.registry import use
from refsd.weights.checkpoint import Component


class Transformer(GraphMode):
    """What predicts the velocity: (N, 16, h, w), t, (N, L, D), (N, P) -> (N, 16, h, w)."""

    time_cond_dim = None  # of UNets that are distilled: here nothing is embedded beside the time

    def __init__(self, tree: dict, config: MMDiTConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        patches = tree["pos_embed"]["proj"]["weight"]
        self.dtype, self.in_channels, self.patch_size = str(patches.dtype), *patches.shape[1:3]
        self.text_width = tree["context_embedder"]["weight"].shape[1]
        self.pooled_width = tree["time_text_embed"]["text_embedder"]["linear_1"]["weight"].shape[1]
        self._with_text: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, part: Component, backend: str, exact: bool) -> Self:
        """That of a loaded checkpoint."""
        return cls(part.tree, MMDiTConfig.from_json(part.config), backend, exact)

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any,
                 pooled_projections: Any, *, skip_layers: Iterable[int] | None = None,
                 **others: Any) -> Any:
        """Predict; timestep, 1000 sigma, is one for the whole batch or one for each sample.

        encoder_hidden_states is an array (N, L, D), or a models.layers.Text of one, with which a
        backend may keep the call. skip_layers are numbers of blocks to leave out.
        """
        answered, put = answer("transformer", others), BACKENDS[self.backend].put
        sample = put(shaped("transformer: sample", sample, ("N", self.in_channels, "h", "w"),
                            self.dtype))
        steps = each_step("transformer", timestep, sample.shape[0])
        if not isinstance(encoder_hidden_states, Text):
            encoder_hidden_states = put(shaped(
                "transformer: encoder_hidden_states", encoder_hidden_states,
                (len(steps), "L", self.text_width), self.dtype))
        pooled = put(shaped("transformer: pooled_projections", pooled_projections,
                            (len(steps), self.pooled_width), self.dtype))
        last = len(self.tree["transformer_blocks"]) - 1
        skipped = tuple(check_integer("transformer: skip_layers", i, 0, last)
                        for i in (() if skip_layers is None else skip_layers))
        with use(self.backend, exact=self.exact):
            predict = self._predicting(encoder_hidden_states, skipped)
            return answered(predict(sample, steps, pooled))

    def calls(self, part: str, asked: Any, texts: Mapping[str, Any]) -> dict[str, partial]:
        """What a drawing (refsd.planning.Asked) computes of it: a step's prediction.

        The text is CLIP's, and after it T5's, or zeros in its place.
        """
        rows = asked.rows
        clip = max(states.shape[1] for name, (states, *_) in texts.items()
                   if name != "text_encoder_3")
        sample = Spec((rows, self.in_channels, asked.height, asked.width), self.dtype)
        text = Spec((rows, clip + TOKENS, self.text_width), self.dtype)
        pooled = Spec((rows, self.pooled_width), self.dtype)
        return {part: partial(mmdit.mmdit, sample, Spec((rows,), self.dtype), text, pooled,
                              **self.tree, config=self.config)}

    def _predicting(self, text: Any, skipped: tuple[int, ...]) -> Callable[..., Any]:
        """The model with this text. With a Text it is called again: a backend may keep the call."""
        predict = self.as_graph(partial(self._predict, skipped), skipped)
        if not isinstance(text, Text):
            return partial(predict, text)
        kept, key = self._with_text.setdefault(text, {}), (skipped, self.graph)
        if key not in kept:
            kept[key] = BACKENDS[self.backend].replayed(with_text(predict, text), self.tree)
        return kept[key]

    def _predict(self, skipped, text, sample, steps, pooled):
        states = text.states if isinstance(text, Text) else text
        return mmdit.mmdit(sample, steps, states, pooled, **self.tree, config=self.config,
                           skip_layers=skipped)
