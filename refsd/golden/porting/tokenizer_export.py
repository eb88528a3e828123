"""A CLIP tokenizer as its two published files and as flat arrays that a C program can read.

The arrays hold all that encoding needs but Unicode's normal form C: the tables of letters, digits,
spaces and lower case are asked of the tokenizer itself, character by character.
"""

import functools
import sys
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
        "README.md": README.encode("utf-8")})
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
    """Everything as flat arrays; README says what each holds."""
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

    halves = ("".join(map(chr, codes)) for codes in (
        range(SURROGATES.start), range(SURROGATES.stop, sys.maxunicode + 1)))
    patterns = {"letters": r"[\p{L}]+", "digits": r"[\p{N}]+", "spaces": r"\s+"}
    ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in patterns}
    rows = []
    for text in halves:
        for name, pattern in patterns.items():
            split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
            ranges[name] += [(ord(run[0]), ord(run[-1])) for run, _ in split.pre_tokenize_str(text)]
        apart = text.replace("\n", "")
        lower = normalizers.Lowercase().normalize_str("\n".join(apart)).split("\n")
        rows += [[ord(character), *map(ord, other), *[0] * (3 - len(other))]
                 for character, other in zip(apart, lower, strict=True) if other != character]
    return {**{name: np.array(pairs, "uint32") for name, pairs in ranges.items()},
            "lower": np.array(rows, "uint32")}


README = """\
# A CLIP tokenizer in plain files

`vocab.json` (token: id) and `merges.txt` (a merge a line, best first) are the files that other
programs read. `special.json` has the number of ids of a prompt (`length`) and the special tokens.
`arrays/` has the same and more as flat little-endian arrays; `index.json` (raw) or `export.json`
there gives file, offset, dtype and shape of each:

| array | type | what it holds |
|---|---|---|
| `byte_alphabet` | uint32 [256] | the code point that stands for each byte in `vocab.json` |
| `byte_ids` | int32 [256] | the token that is this byte alone, inside a word |
| `byte_ids_at_end` | int32 [256] | the same byte as the last of a word |
| `token_bytes` | uint8 | the text of all tokens, one after the other |
| `token_offsets` | uint32 [n + 1] | token i is token_bytes[offsets[i] .. offsets[i + 1]] |
| `token_ends_word` | uint8 [n] | 1 for tokens that end a word (`</w>` in `vocab.json`) |
| `merges` | int32 [m][3] | left id, right id, id of the two joined; the row is the rank |
| `letters`, `digits`, `spaces` | uint32 [k][2] | code points from first to last, both included |
| `lower` | uint32 [k][4] | code point, then up to three that are its lower case, then 0 |

## From text to ids

1. Bring the text (UTF-8) to Unicode's normal form C. Text in ASCII is in it already.
2. Replace each run of `spaces` by one space, then each code point by its lower case.
3. Cut out the special tokens (`special.json`; one without `normalized` is cut out before step 1).
   Cut the rest into words, from the left; at each place the first of these that fits: one of
   `'s 't 're 've 'm 'll 'd`; a run of `letters`; one of `digits`; a run of what is no letter, no
   digit and no space. Spaces separate, and give nothing.
4. A special token is its id. Any other word is its UTF-8 bytes, each as `byte_ids`, the last as
   `byte_ids_at_end`.
5. In that list of ids find the two neighbours whose merge has the lowest row in `merges`, the
   leftmost of equal ones; put the joined id in their place; repeat until no neighbours have one.
6. The prompt is `bos_token`, the ids of all words, cut to `length` - 2 of them, `eos_token`, then
   `pad_token` up to `length`.

From ids to text: join the tokens' bytes, with a space after each that ends a word.
"""
