r"""ComfyUI's weights of words: `(x)`, `(x:1.2)`, nested, and `\(` for a bracket that is text.

    (x)  weighs 1.1 times what is around it,  (x:1.2)  weighs 1.2, whatever is around it

Source: comfyanonymous/ComfyUI, comfy/sd1_clip.py, token_weights.
"""

import re
from collections.abc import Callable, Iterator

from refsd.dialects.emphasis import Fragment
from refsd.errors import UsageError

ROUND = 1.1
EMBEDDING = "embedding:"
MAX_DEPTH = 100

# Brackets that are meant as such, while the others are read; as ComfyUI does it.
_ESCAPED = {r"\)": "\0\1", r"\(": "\0\2"}


def words(text: str, embedding: Callable[[str], str]) -> list[Fragment]:
    r"""The runs of text of one weight; none of an empty prompt.

    `embedding` gives the words that stand for the vectors of a name, "" where it knows none: such
    an `embedding:NAME` is left out, as in ComfyUI. UsageError: brackets nested beyond reason.

    >>> words("(red (hat):1.3)", lambda name: "")
    [Fragment(text='red ', weight=1.3), Fragment(text='hat', weight=1.4300000000000002)]
    """
    for written, hidden in _ESCAPED.items():
        text = text.replace(written, hidden)
    found = []
    for part, weight in _weighed(text, 1.0, 0):
        for written, hidden in _ESCAPED.items():
            part = part.replace(hidden, written[1])
        found += [Fragment(word, weight) for word in _words(part, embedding)]
    return found


def _weighed(text: str, weight: float, depth: int) -> Iterator[tuple[str, float]]:
    if depth > MAX_DEPTH:
        raise UsageError(f"prompt: brackets nested more than {MAX_DEPTH} deep; give fewer")
    for part in _parts(text):
        if not (len(part) >= 2 and part[0] == "(" and part[-1] == ")"):
            yield part, weight
            continue
        inner, inner_weight = part[1:-1], weight * ROUND
        before, colon, number = inner.rpartition(":")
        if before and colon:
            try:
                inner, inner_weight = before, float(number)
            except ValueError:
                inner = part[1:-1]
        yield from _weighed(inner, inner_weight, depth + 1)


def _parts(text: str) -> list[str]:
    """The text cut before and after its outermost brackets; those left open are no cut."""
    parts, begin, depth = [], 0, 0
    for at, char in enumerate(text):
        if char == "(":
            if depth == 0 and at > begin:
                parts.append(text[begin:at])
                begin = at
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                parts.append(text[begin:at + 1])
                begin = at + 1
    return [*parts, text[begin:]] if begin < len(text) else parts


def _words(text: str, embedding: Callable[[str], str]) -> Iterator[str]:
    """The text cut before each `embedding:NAME`, and those names as what `embedding` gives."""
    first, *rest = re.split(rf"[ \n](?={EMBEDDING})", text)
    for word in (first, *rest):
        if not word:
            continue
        if not word.startswith(EMBEDDING):
            yield word
            continue
        name, *after = word.removeprefix(EMBEDDING).strip("\n").split() or [""]
        found, end = embedding(name), ""
        if not found and name != name.strip(","):
            found, end = embedding(name.strip(",")), name[len(name.strip(",")):]
        # The word alone: the tokenizer puts all vectors in its place.
        yield from filter(None, (found.partition(" ")[0], " ".join(filter(None, (end, *after)))))
