"""Textual inversion: words of prompts with vectors of their own, as diffusers loads them.

The text encoder's table of vectors is replaced by one with more rows, and the tokenizer learns the
words. Without words both are what they were.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from refsd.arguments import shown
from refsd.backends import find_backend
from refsd.errors import UsageError
from refsd.half import HALVES
from refsd.leaf import Weight, seal
from refsd.pipelines import from_diffusers
from refsd.places import on_host
from refsd.weights.embedding import read_embedding

LOADING = {
    "tokenizer": ((None,), "pipe.tokenizer is the one that learns the words"),
    "text_encoder": ((None,), "pipe.text_encoder is the one that gets the vectors"),
    "weight_name": ((None,), "give the path of the file itself"),
    "subfolder": ((None, ""), "give the path of the file itself"),
    "use_safetensors": ((None, True), "pickles can run code and are never read: leave it out"),
    "force_download": ((None, False), "embeddings are read from paths: leave it out"),
    "local_files_only": ((None, True), "embeddings are read from paths: leave it out"),
    "cache_dir": ((None,), "embeddings are read from paths: leave it out"),
    "hf_token": ((None,), "embeddings are read from paths: leave it out"),
    "revision": ((None,), "embeddings are read from paths: leave it out"),
}


@dataclass
class Learned:
    """What a text encoder had before, and the vectors of each word since.   (n, D) float32"""

    tokenizer: Any
    table: Any
    vectors: dict[str, np.ndarray]


def load(pipe: Any, source: Any, token: Any = None, **others: Any) -> None:
    """Give words vectors: of a path, arrays by word, or vectors with a `token`; or lists of these.

    All or nothing: where one of a list is refused, none is taken. Raises ModelError, UsageError.
    """
    pipe.require("textual inversion")
    from_diffusers.take("load_textual_inversion", others, LOADING, LOADING)
    sources = source if isinstance(source, list) else [source]
    words = token if isinstance(token, list) else [token] * len(sources)
    if len(words) != len(sources) or (not isinstance(token, list) and token and len(sources) > 1):
        raise UsageError(f"token is {shown(token)} for {len(sources)} embeddings; give a list with "
                         "one each")
    width = _table(pipe.text_encoder).shape[1]
    found = dict(_learned(pipe).vectors)
    for one, word in zip(sources, words):
        embedding = read_embedding(one, word, width=width)
        if embedding.word in found:
            raise UsageError(f"there is an embedding of the word {embedding.word[:80]!r} already; "
                             "give this one another with token=, or unload that one")
        found[embedding.word] = embedding.vectors
    _teach(pipe, found)


def unload(pipe: Any, tokens: Any = None, **others: Any) -> None:
    """Take embeddings away: those of these words, or all. UsageError where there is none."""
    pipe.require("textual inversion")
    from_diffusers.take("unload_textual_inversion", others, LOADING, LOADING)
    found = dict(_learned(pipe).vectors)
    for word in [tokens] if isinstance(tokens, str) else list(found) if tokens is None else tokens:
        if word not in found:
            raise UsageError(f"no embedding of the word {shown(word)} is loaded; give one of: "
                             f"{', '.join(found) or 'none is loaded'}")
        del found[word]
    _teach(pipe, found)


def words(pipe: Any) -> dict[str, int]:
    """The words that are loaded, and how many vectors each has."""
    found = {} if "textual inversion" in pipe.lacks else _learned(pipe).vectors
    return {word: len(vectors) for word, vectors in found.items()}


def _learned(pipe):
    encoder = pipe.text_encoder
    found = getattr(encoder, "learned", None)
    if found is None:
        return Learned(pipe.tokenizer, _table(encoder), {})
    if found.tokenizer is not pipe.tokenizer:
        raise UsageError("the tokenizer that learned this text encoder's words was replaced; set "
                         "pipe.tokenizer back to it")
    return found


def _table(encoder):
    return encoder.tree["embeddings"]["token_embedding"]["weight"]


def _teach(pipe, vectors):
    """Let the pipeline have these words, and no others."""
    before, encoder = _learned(pipe), pipe.text_encoder
    rows = pipe.tokenizer.learn({word: len(array) for word, array in vectors.items()})
    table = before.table
    if vectors:
        own = np.asarray(on_host(table))
        count = max(len(own), 1 + max(row for ids in rows.values() for row in ids))
        more = np.zeros((count, own.shape[1]), own.dtype)
        more[:len(own)] = own
        for word, array in vectors.items():
            more[rows[word]] = array.astype(HALVES.get(str(own.dtype), own.dtype))
        placed = {"embeddings": Weight(seal(more), table.name)}
        find_backend(pipe.backend).place(placed)
        table = placed["embeddings"]
    encoder.tree["embeddings"]["token_embedding"]["weight"] = table
    encoder.learned = Learned(pipe.tokenizer, before.table, vectors) if vectors else None
