"""The files a T5 tokenizer is made of: pieces with their scores, characters' other forms, tokens.

Read: tokenizer.json, or the spiece.model of SentencePiece, a protocol buffer, of which this needs
four fields (sentencepiece_model.proto): pieces of ModelProto, their text and score, and the
precompiled_charsmap of its normalizer_spec.
"""

import base64
import binascii
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refsd.errors import ModelError, damaged
from refsd.text.vocabulary import (
    MAX_FILE,
    MAX_TOKENS,
    length_of,
    read_optional,
    special_token,
    special_tokens,
)
from refsd.weights.files import read_bytes

NAMED = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
UNKNOWN = 2  # the place of <unk>, whatever the file says, as in transformers
LENGTH = 512
EXTRA_IDS = 100


@dataclass(frozen=True)
class Unigram:
    """(piece, log probability) by id, a charsmap or b"", tokens by role, by id, and without one."""

    pieces: list[tuple[str, float]]
    charsmap: bytes
    named: dict[str, dict]
    added: dict[int, dict]
    extra: list[dict]
    length: int
    source: str


def read_unigram(folder: str | Path) -> Unigram:
    """The pieces of a T5 tokenizer's folder.

    Special tokens are read as of CLIP's (refsd.text.vocabulary). Raises ModelError for a file that
    is absent, damaged, too large, or of another kind of tokenizer.
    """
    folder = Path(folder)
    config = read_optional(folder / "tokenizer_config.json")
    count = config.get("extra_ids", EXTRA_IDS)
    if type(count) is not int or not 0 <= count <= 10_000:
        raise ModelError(f"{folder}: extra_ids is {str(count)[:40]}, expected an integer from 0 to "
                         "10000")
    sentinels = [f"<extra_id_{i}>" for i in range(count)]
    source, listed = folder / "tokenizer.json", []
    if source.is_file():
        pieces, charsmap, listed = _of_json(source)
    else:
        source = folder / "spiece.model"
        if not source.is_file():
            raise ModelError(f"{folder}: no tokenizer.json and no spiece.model; put there those of "
                             "the model's tokenizer_3 folder, or of google/t5-v1_1-xxl")
        pieces, charsmap = _of_protocol_buffer(source)
    _check(pieces, source)
    if source.suffix == ".model":
        pieces += [(token, 0.0) for token in reversed(sentinels)]
    named, added = special_tokens(folder, config, listed, NAMED)
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    more = sentinels if more is None else more
    if not isinstance(more, list):
        raise damaged(f"{folder}: extra_special_tokens is no list of tokens")
    return Unigram(pieces, charsmap, named, added, [special_token(token, folder) for token in more],
                   length_of(config, folder, LENGTH), str(source))


def _of_json(path):
    """Pieces, charsmap and added tokens of a tokenizer.json."""
    found = read_optional(path)
    model = found.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "Unigram":
        raise ModelError(f"{path}: a {str(kind)[:40]} model, expected T5's Unigram. Give the "
                         "tokenizer of a T5")
    pieces, added = model.get("vocab"), found.get("added_tokens", [])
    if not isinstance(pieces, list) or not all(
            isinstance(pair, list) and len(pair) == 2 for pair in pieces):
        raise damaged(f"{path}: vocab is no list of pairs of a piece and its score")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise damaged(f"{path}: added_tokens is no list of objects")
    return [tuple(pair) for pair in pieces], _charsmap(found.get("normalizer"), path), added


def _charsmap(normalizer, path):
    """The bytes of the first precompiled normalizer, as transformers looks for it."""
    several = isinstance(normalizer, dict) and normalizer.get("type") == "Sequence"
    steps = normalizer.get("normalizers") if several else [normalizer]
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and step.get("type") == "Precompiled":
            try:
                return base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, ValueError, TypeError):
                raise damaged(f"{path}: precompiled_charsmap is no base64") from None
    return b""


def _of_protocol_buffer(path):
    """Pieces and charsmap of a spiece.model."""
    pieces, charsmap = [], b""
    try:
        for number, value in _fields(memoryview(read_bytes(path, limit=MAX_FILE))):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                pieces.append((bytes(piece.get(1, b"")).decode("utf-8"), score))
            elif number == 3:
                charsmap = bytes(dict(_fields(value)).get(2, b""))
    except (LookupError, TypeError, UnicodeDecodeError, struct.error):
        raise damaged(f"{path}: not a model of SentencePiece") from None
    return pieces, charsmap


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a protocol buffer's message: number, and a number or its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at:at + size], at + size
            if at > len(data):
                raise IndexError
        yield key >> 3, value


def _varint(data, at):
    """Seven bits a byte, the lowest first, as long as the eighth is set."""
    value = shift = 0
    while shift < 64:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise IndexError


def _check(pieces, path):
    if not UNKNOWN < len(pieces) <= MAX_TOKENS:
        raise ModelError(f"{path}: {len(pieces)} pieces, expected {UNKNOWN + 1} to {MAX_TOKENS}")
    for i, (piece, score) in enumerate(pieces):
        if not isinstance(piece, str) or type(score) not in (int, float) or not math.isfinite(
                score):
            raise ModelError(f"{path}: piece {i} is {str(piece)[:40]!r} with score "
                             f"{str(score)[:40]}, expected a text and a number")
