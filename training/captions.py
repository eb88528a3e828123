"""Captions of a scene, and what they claim: the claims are what the fidelity check looks for."""

from dataclasses import dataclass

import numpy as np

NOUNS = {
    "sphere": ("sphere", "sphere", "ball"),
    "cube": ("cube", "cube", "box"),
    "cylinder": ("cylinder", "cylinder", "can"),
    "cone": ("cone",),
    "torus": ("torus", "ring", "donut"),
}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}
FINISH_WORDS = {"glossy": ("glossy", "glossy", "shiny"), "matte": ("matte", "matte", "dull")}
COLOR_WORDS = {"cyan": ("cyan", "cyan", "turquoise"), "purple": ("purple", "purple", "violet")}
BACKGROUND_WORDS = {
    "white": ("white",),
    "grey": ("grey", "gray"),
    "dark": ("dark", "dark", "black"),
    "pale blue": ("pale blue", "light blue"),
}
SIDES = {
    "left of": ("left of", "left of", "to the left of", "on the left of", "beside", "next to"),
    "right of": ("right of", "right of", "to the right of", "on the right of"),
    "in front of": ("in front of", "before"),
    "behind": ("behind", "in back of"),
}
OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "in front of": "behind",
    "behind": "in front of",
}
OPENINGS = ("", "", "", "", "a picture of ", "a still life with ", "a photo of ")


@dataclass(frozen=True)
class Claim:
    """What a caption says of one solid; None where it says nothing."""

    shape: str
    color: str
    size: str | None = None
    finish: str | None = None


@dataclass(frozen=True)
class Caption:
    """text; claims, one a solid; relations (i, relation, j) between claims; background or None."""

    text: str
    claims: tuple
    relations: tuple = ()
    background: str | None = None


def _pick(rng, words):
    return words[int(rng.integers(len(words)))]


def _article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def _phrase(solid, rng, plain):
    """('a small shiny red ball', Claim) with some of the attributes left out."""
    size = solid.size if rng.random() < 0.55 else None
    finish = solid.finish if rng.random() < 0.5 else None
    words = [_pick(rng, FINISH_WORDS[finish])] if finish else []
    if size:
        words.insert(int(rng.integers(0, len(words) + 1)), _pick(rng, SIZE_WORDS[size]))
    nouns, colors = NOUNS[solid.shape], COLOR_WORDS.get(solid.color, (solid.color,))
    words += [colors[0] if plain else _pick(rng, colors), nouns[0] if plain else _pick(rng, nouns)]
    return _article(" ".join(words)), Claim(solid.shape, solid.color, size, finish)


def _relation(scene, a, b):
    """How solid a stands to solid b in this scene."""
    one, two = scene.solids[a], scene.solids[b]
    if abs(one.x - two.x) >= abs(one.y - two.y):
        return "left of" if one.x < two.x else "right of"
    return "in front of" if one.y < two.y else "behind"


def _two(scene, names, rng, plain):
    a, b = (0, 1) if rng.random() < 0.5 else (1, 0)
    if not plain and rng.random() < 0.15:
        return f"{names[a]} and {names[b]}", ()
    relation = _relation(scene, a, b)
    words = SIDES[relation][0] if plain else _pick(rng, SIDES[relation])
    known = () if words in ("beside", "next to") else ((a, relation, b),)
    return f"{names[a]} {words} {names[b]}", known


def _three(scene, names, rng):
    a, b, c = names
    if rng.random() < 0.2:
        i, j, k = rng.permutation(3)
        return f"{names[i]}, {names[j]} and {names[k]}", ()
    if scene.layout == "row":
        known = ((0, "left of", 1), (1, "left of", 2))
        words = (
            f"{a}, {b} and {c} from left to right",
            f"{a}, {b} and {c} in a row",
            f"{b} between {a} and {c}",
            f"{a} left of {b} left of {c}",
        )
        return _pick(rng, words), known
    place = "in front of" if scene.layout == "triangle front" else "behind"
    words = f"{a} left of {b}, {c} {place} them"
    if rng.random() < 0.5:
        words = f"{c} {place} {a} and {b}"
    return words, ((0, "left of", 1), (2, place, 0), (2, place, 1))


def describe(scene, rng: np.random.Generator, *, plain=False) -> Caption:
    """Scene -> a true caption; plain: first synonyms only, and always a relation between two."""
    named = [_phrase(solid, rng, plain) for solid in scene.solids]
    names, claims = [n for n, _ in named], tuple(c for _, c in named)
    if len(names) == 1:
        text, relations = names[0], ()
    elif len(names) == 2:
        text, relations = _two(scene, names, rng, plain)
    else:
        text, relations = _three(scene, names, rng)
    background = scene.background if rng.random() < 0.45 else None
    if background:
        words = _pick(rng, BACKGROUND_WORDS[background])
        text += f" {_pick(rng, ('on', 'on', 'against'))} {_article(words)} background"
    if not plain:
        text = _pick(rng, OPENINGS) + text
    return Caption(text, claims, relations, background)


def all_words():
    """Every word that a caption can contain: what the tokenizer must know as whole words."""
    tables = (NOUNS, SIZE_WORDS, FINISH_WORDS, COLOR_WORDS, BACKGROUND_WORDS, SIDES)
    parts = [words for table in tables for group in table.values() for words in group]
    extra = "a an and them from to in the row between background on against with photo picture of"
    extra += " still life red orange yellow green blue pink solid object two three one image"
    extra += " , . - nothing empty ground small large shadow"
    return sorted({word for part in [*parts, *OPENINGS, extra] for word in part.split()})
