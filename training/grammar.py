"""Whether a text is a caption: the grammar that training/captions.py writes by, read backwards."""

import re

import numpy as np

from training import captions
from training.scenes import COLORS, sample_scene

HELD_OUT = 21_000_000  # scenes from here on are for judging completions


def _one_of(phrases):
    return f"(?:{'|'.join(re.escape(phrase) for phrase in dict.fromkeys(phrases))})"


def _words(table):
    return [word for group in table.values() for word in group]


_COLOR = _one_of([word for color in COLORS for word in captions.COLOR_WORDS.get(color, (color,))])
_SIZE, _FINISH = _one_of(_words(captions.SIZE_WORDS)), _one_of(_words(captions.FINISH_WORDS))
_HOW = rf"(?:{_SIZE} {_FINISH} |{_FINISH} {_SIZE} |{_SIZE} |{_FINISH} )?"
_SOLID = rf"an? {_HOW}{_COLOR} {_one_of(_words(captions.NOUNS))}"
_PLACE = _one_of(_words(captions.SIDES))
_LINE = r"(?: from left to right| in a row|)"
_FORMS = (
    _SOLID,
    rf"{_SOLID} (?:and|{_PLACE}) {_SOLID}",
    rf"{_SOLID}, {_SOLID} and {_SOLID}{_LINE}",
    rf"{_SOLID} between {_SOLID} and {_SOLID}",
    rf"{_SOLID} left of {_SOLID} left of {_SOLID}",
    rf"{_SOLID} left of {_SOLID}, {_SOLID} (?:in front of|behind) them",
    rf"{_SOLID} (?:in front of|behind) {_SOLID} and {_SOLID}",
)
_GROUND = rf"(?: (?:on|against) an? {_one_of(_words(captions.BACKGROUND_WORDS))} background)?"
_CAPTION = re.compile(rf"{_one_of(captions.OPENINGS)}(?:{'|'.join(_FORMS)}){_GROUND}")
_ARTICLE = re.compile(r"\b(an?) (\w)")
_SOLIDS = re.compile(rf"{_HOW}({_COLOR}) {_one_of(_words(captions.NOUNS))}")
_NAME = {word: color for color, words in captions.COLOR_WORDS.items() for word in words}


def accepts(text):
    """Whether describe() may write this text of some scene.

    The form, the articles, and that no colour comes twice, which no scene has. Not whether such a
    scene fits its picture.
    """
    if not _CAPTION.fullmatch(text):
        return False
    if any((article == "an") != (first in "aeiou") for article, first in _ARTICLE.findall(text)):
        return False
    colors = [_NAME.get(word, word) for word in _SOLIDS.findall(text)]
    return len(set(colors)) == len(colors)


def caption(seed):
    """The caption of a scene that the GPT-2 is taught, or judged by."""
    return captions.describe(sample_scene(seed), np.random.default_rng([4669, seed])).text


def beginnings(count, *, first=HELD_OUT):
    """Beginnings of held-out captions, of one word at least and of all but one at most."""
    found = []
    for seed in range(first, first + count):
        words = caption(seed).split(" ")
        cut = int(np.random.default_rng([691, seed]).integers(1, len(words)))
        found.append(" ".join(words[:cut]))
    return found


def measure(complete, count):
    """(share that is accepted, share that is different) of complete(beginning, seed)."""
    texts = [complete(text, seed) for seed, text in enumerate(beginnings(count))]
    return sum(map(accepts, texts)) / count, len(set(texts)) / count
