"""T5's encoder of a pipeline as a callable that works alone, as those of components.py."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from refsd.arguments import as_array
from refsd.contracts import Spec
from refsd.errors import ModelError, UsageError
from refsd.models.t5 import T5Config, t5_encoder
from refsd.pipelines.from_diffusers import answer
from refsd.places import on_host
from refsd.registry import use
from refsd.text.t5 import T5Tokenizer
from refsd.weights.checkpoint import Component

TOKENS = 256  # of a prompt: what diffusers pads it to, or cuts it off at


class T5Output(NamedTuple):
    """What T5 says of a text: a vector a token, those of the padding too."""

    last_hidden_state: Any


class T5Encoder:
    """T5's encoder: ids (N, L) -> T5Output((N, L, D)); of any length."""

    def __init__(self, tree: dict, config: T5Config, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact

    @classmethod
    def of(cls, part: Component, backend: str, exact: bool) -> Self:
        """That of a loaded checkpoint."""
        return cls(part.tree, T5Config.from_json(part.config), backend, exact)

    def calls(self, part: str, asked: Any, texts: Mapping[str, Any]) -> dict[str, partial]:
        """What a drawing (refsd.planning.Asked) computes of it: a picture's texts."""
        return {part: partial(t5_encoder, Spec((asked.copies, TOKENS), "int64"), **self.tree,
                              config=self.config)}

    @property
    def rows(self) -> int:
        """The number of embeddings."""
        return self.tree["shared"]["weight"].shape[0]

    def tokenizer_of(self, place: Path, name: str, pad: str | None) -> T5Tokenizer:
        """That of a folder of the model, or of one beside a single file."""
        folder = place / name if place.is_dir() else place.with_name(name)
        if not folder.is_dir():
            part = name.replace("tokenizer", "text_encoder")
            raise ModelError(f"{folder}: no such folder, and T5's vocabulary does not come with "
                             f"refsd. Put the {name} folder of the model there, or draw without "
                             f"T5: {part}=None (--without {part})")
        tokenizer = T5Tokenizer.from_folder(folder)
        tokenizer.require_rows(self.rows)
        return tokenizer

    def __call__(self, input_ids: np.ndarray, **others: Any) -> T5Output:
        """Encode. Raises UsageError for ids that are not integers (N, L) below `rows`."""
        answer("text_encoder", others)  # what it gives is a tuple in any case
        ids = as_array("text_encoder_3: ids", on_host(input_ids))
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.shape[1]:
            raise UsageError(f"text_encoder_3: ids are {ids.dtype} {ids.shape}; give integers "
                             "(N, L)")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.rows:
            raise UsageError(f"text_encoder_3: ids run from {ids.min()} to {ids.max()}; give some "
                             f"of 0 to {self.rows - 1}, which have embeddings")
        with use(self.backend, exact=self.exact):
            return T5Output(t5_encoder(ids, **self.tree, config=self.config))
