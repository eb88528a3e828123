"""Textual inversion: the vectors that a file has for a word of prompts (Gal et al. 2022).

A1111's `.safetensors` hold them as `emb_params`, and the file's name is the word; diffusers' hold
one tensor under the word. Either is (vectors, width), or (width,) of a single vector.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd.arguments import as_array, shown
from refsd.errors import ModelError, UsageError
from refsd.families import family_of_width
from refsd.weights.header import PICKLES, WEIGHTS, read_header
from refsd.weights.reader import nonfinite, read_tensors

A1111 = "emb_params"
FOLDERS = "learned_embeds.safetensors"  # the file in a folder of diffusers'
MAX_VECTORS = 1024
OF_OTHERS = ("clip_l", "clip_g", "t5xxl")  # of models with several encoders, a tensor for each
CONVERT = "docs/checkpoints.md says how to convert one"


class Embedding(NamedTuple):
    """A word, and the vectors that stand for it in the place of tokens.   (n, D) float32"""

    word: str
    vectors: np.ndarray


def read_embedding(source: Any, word: str | None = None, *, width: int) -> Embedding:
    """The embedding of a file or a folder, or of arrays: {word: vectors}, or vectors with a word.

    `word` is what prompts are to call it, in place of what the file says. width: of the text
    encoder's own vectors. Raises ModelError for what is no such file, UsageError for arguments.
    """
    if word is not None and (not isinstance(word, str) or not word.strip()):
        raise UsageError(f"token is {shown(word)}; give the word that prompts say")
    if isinstance(source, (str, Path)):
        path = Path(source)
        where, tensors = str(path), _read(path)
    else:
        where, tensors = "the embedding", _given(source, word)
    if others := [name for name in OF_OTHERS if name in tensors]:
        raise ModelError(f"{where}: it holds {', '.join(others)}, the vectors of a model with "
                         "several text encoders; give one that was made for this model")
    if len(tensors) != 1:
        raise ModelError(f"{where}: {len(tensors)} tensors, expected one: {A1111}, or a word's "
                         "own. Give an embedding of textual inversion")
    (own, vectors), = tensors.items()
    if own == A1111 and isinstance(source, (str, Path)):
        own = path.stem
    return Embedding(word or own, _checked(vectors, width, where))


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        path = path / FOLDERS
    elif not path.exists() and not str(path).lower().endswith(PICKLES):
        raise UsageError(f"{str(path)[:200]}: no such file or folder. Give one that there is")
    header = read_header(path)
    if A1111 in header.tensors:
        found = [A1111]  # whatever training left beside it
    else:
        found = list(header.tensors)[:len(OF_OTHERS) + 1]
    for name in found:
        info = header.tensors[name]
        if info.dtype not in WEIGHTS or not 1 <= len(info.shape) <= 2 or info.count > 1 << 24:
            raise ModelError(f"{path}: tensor {ascii(name)[:100]} is {info.dtype} {info.shape}, "
                             "expected (vectors, width). Give an embedding of textual inversion")
    return read_tensors(header, dtype="float32", names=found)


def _given(source, word):
    if isinstance(source, Mapping):
        return {str(name): as_array("the embedding", array, "float32")
                for name, array in source.items()}
    if word is None:
        raise UsageError("an array has no word of its own: give token=, what prompts call it")
    return {word: as_array("the embedding", source, "float32")}


def _checked(vectors, width, where):
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not 1 <= len(vectors) <= MAX_VECTORS or not vectors.shape[1]:
        raise ModelError(f"{where}: vectors of shape {vectors.shape}, expected 1 to {MAX_VECTORS} "
                         f"of width {width}. Give an embedding of textual inversion")
    if vectors.shape[1] != width:
        family = family_of_width(vectors.shape[1])
        of = f" (those of {family})" if family else ""
        raise ModelError(f"{where}: vectors of width {vectors.shape[1]}{of}, the text encoder has "
                         f"{width}. Give one that was made for this model")
    if nonfinite(vectors):
        raise ModelError(f"{where}: a vector holds NaN or infinity; give another file")
    return vectors
