r"""A1111's weights of words: `(x)`, `(x:1.2)`, `[x]`, and `\(` for a bracket that is meant as one.

    (x)  weighs 1.1,  (x:1.2)  weighs 1.2,  [x]  weighs 1 / 1.1;  nested ones are multiplied

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/prompt_parser.py, parse_prompt_attention.
"""

import re
from typing import NamedTuple

from refsd.errors import UsageError

ROUND, SQUARE = 1.1, 1 / 1.1
MAX_DEPTH = 100  # brackets open at once: each weighs all that is in it, one after the other
BREAK = "BREAK"  # the text of a fragment of weight -1 that ends a chunk
_PIECE = re.compile(r"\\[()\[\]\\]?|[(\[]|:\s*([+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")


class Fragment(NamedTuple):
    """A part of a prompt that is one text with one weight."""

    text: str
    weight: float


def fragments(prompt: str) -> list[Fragment]:
    """The fragments of a prompt, neighbours of equal weight as one; at least one, perhaps empty.

    Brackets left open reach to the end, those that close nothing are text. A word BREAK is a
    fragment of weight -1; brackets around it multiply that too, and then it is a word like others.
    UsageError for a weight that is no number (`1.2.3`), and for brackets nested beyond reason.

    >>> fragments("an (important)")
    [Fragment(text='an ', weight=1.0), Fragment(text='important', weight=1.1)]
    """
    found: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for piece in _PIECE.finditer(prompt):
        part = piece[0]
        if part.startswith("\\"):
            found.append([part[1:], 1.0])
        elif part in opened:
            opened[part].append(len(found))
            if len(opened[part]) > MAX_DEPTH:
                raise UsageError(f"prompt: more than {MAX_DEPTH} brackets open at once; give fewer")
        elif piece[1] is not None and opened["("]:
            _multiply(found, opened["("].pop(), _number(piece[1]))
        elif part == ")" and opened["("]:
            _multiply(found, opened["("].pop(), ROUND)
        elif part == "]" and opened["["]:
            _multiply(found, opened["["].pop(), SQUARE)
        else:
            between = _BREAK.split(part)
            for i, text in enumerate(between):
                text = text.lstrip() if i else text
                found += [[BREAK, -1.0]] if i else []
                found.append([text.rstrip() if i < len(between) - 1 else text, 1.0])
    for bracket, weight in (("(", ROUND), ("[", SQUARE)):
        for start in opened[bracket]:
            _multiply(found, start, weight)
    return _merged(found) or [Fragment("", 1.0)]


def _number(digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        raise UsageError(f"prompt: {digits[:40]!r} is no weight; give a number, or \\( and \\) "
                         "around what is text") from None


def _multiply(found: list[list], start: int, weight: float) -> None:
    for fragment in found[start:]:
        fragment[1] *= weight


def _merged(found: list[list]) -> list[Fragment]:
    merged: list[Fragment] = []
    for text, weight in found:
        if merged and merged[-1].weight == weight:
            merged[-1] = Fragment(merged[-1].text + text, weight)
        else:
            merged.append(Fragment(text, weight))
    return merged
