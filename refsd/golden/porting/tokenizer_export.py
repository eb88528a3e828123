"""A CLIP tokenizer as its two published files and as flat arrays that a C program can read.

The arrays hold all that encoding needs but Unicode's normal form C: the tables of letters, digits,
spaces and lower case are asked of the tokenizer itself, character by character.
"""

import functools
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.golden.porting.export import Files, encode, write_folder
from refsd.text.vocabulary import Vocabulary, byte_alphabet

END = "</w>"
SURROGATES = range(0xD800, 0xE000)


def export_tokenizer(vocabulary: Vocabulary, folder: str | Path, *, kind: str = "raw") -> Path:
    """vocab.json, merges.txt, special.json, README.md, and the arrays in arrays/.

    kind is what the arrays are written as (porting.export.KINDS). Raises UsageError for a
    vocabulary whose tokens are not those of its bytes and merges.
    """
    made = arrays(vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in vocabulary.merges)]
    folder = write_folder(folder, {
        "vocab.json": encode(vocabulary.tokens), "special.json": encode(special(vocabulary)),
        "merges.txt": "".join(f"{line}\n" for line in lines).encode("utf-8"),
        "README.md": (files("refsd") / "data" / "tokenizer.md").read_bytes()})
    with Files(folder / "arrays", kind) as out:
        for name, array in made.items():
            out.add(name, array)
    return folder


def special(vocabulary: Vocabulary) -> dict[str, Any]:
    """The length of a prompt in tokens, and each special token's text, id and flags by role."""
    ids = vocabulary.tokens | {token["content"]: i for i, token in vocabulary.added.items()}
    roles = {role: {**token, "id": ids.get(token["content"])}
             for role, token in vocabulary.named.items()}
    added = [{**token, "id": i} for i, token in vocabulary.added.items()]
    return {"length": vocabulary.length, **roles, "added": added}


def arrays(vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Everything as flat arrays; refsd/data/tokenizer.md says what each holds."""
    ids = vocabulary.tokens
    character = _character_of_byte()
    byte_of = {c: b for b, c in enumerate(character)}
    try:
        merges = [(ids[a], ids[b], ids[a + b]) for a, b in vocabulary.merges]
        single = [ids[c] for c in character], [ids[c + END] for c in character]
    except KeyError as error:
        raise UsageError(f"{vocabulary.source}: no token {str(error)[:80]}, which a byte or a "
                         "merge needs: not CLIP's kind of vocabulary") from None
    count = max(ids.values()) + 1
    texts: list[bytes] = [b""] * count
    ends = np.zeros(count, "uint8")
    for token, i in ids.items():
        inside = token.removesuffix(END)
        plain = set(inside) <= byte_of.keys()
        texts[i] = bytes(byte_of[c] for c in inside) if plain else token.encode("utf-8")
        ends[i] = plain and token.endswith(END)
    offsets = np.cumsum([0, *map(len, texts)]).astype("uint32")
    return {
        "byte_alphabet": np.array([ord(c) for c in character], "uint32"),
        "byte_ids": np.array(single[0], "int32"), "byte_ids_at_end": np.array(single[1], "int32"),
        "token_bytes": np.frombuffer(b"".join(texts), "uint8"), "token_offsets": offsets,
        "token_ends_word": ends, "merges": np.array(merges, "int32").reshape(-1, 3),
        **unicode_tables(),
    }


def _character_of_byte() -> list[str]:
    """The printable character that stands for each byte 0 .. 255."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order = [*visible, *(b for b in range(256) if b not in visible)]
    characters = dict(zip(order, byte_alphabet()))
    return [characters[b] for b in range(256)]


@functools.cache
def unicode_tables() -> dict[str, np.ndarray]:
    """Ranges [first, last] of letters, digits and spaces, and lower case where it differs.

    As the tokenizers library has them, whose version of Unicode decides the ids.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    # plane by plane, which is faster than all at once; no range goes beyond its plane
    planes = ("".join(chr(code) for code in range(first, first + 0x10000)
                      if code not in SURROGATES) for first in range(0, sys.maxunicode, 0x10000))
    patterns = {"letters": r"[\p{L}]+", "digits": r"[\p{N}]+", "spaces": r"\s+"}
    ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in patterns}
    rows = []
    for text in planes:
        for name, pattern in patterns.items():
            split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
            ranges[name] += [(ord(run[0]), ord(run[-1])) for run, _ in split.pre_tokenize_str(text)]
        apart = text.replace("\n", "")
        lower = normalizers.Lowercase().normalize_str("\n".join(apart)).split("\n")
        rows += [[ord(character), *map(ord, other), *[0] * (3 - len(other))]
                 for character, other in zip(apart, lower, strict=True) if other != character]
    return {**{name: np.array(pairs, "uint32") for name, pairs in ranges.items()},
            "lower": np.array(rows, "uint32")}
