"""python -m training.words: refsd/data/words.json, what the bundled model's captions can say.

The words are those of captions of so many scenes that the rarest word comes dozens of times, not of
the tokenizer, which knows some that no caption has. Needs NumPy and Numba, not torch.
"""

import json
from importlib import resources

import numpy as np

from refsd.text.words import WORD
from training import captions, scenes

SCENES = 3_000
EXAMPLES = 3  # of each number of solids


def told(seeds):
    """(number of solids, caption) of each scene."""
    rngs = ((scenes.sample_scene(seed), np.random.default_rng([1618, seed])) for seed in seeds)
    return [(len(scene.solids), captions.describe(scene, rng).text) for scene, rng in rngs]


def content():
    """groups: what a word is for -> word -> its synonyms; words: all; examples: captions."""
    found = told(range(SCENES))
    examples = [[text for solids, text in found if solids == n] for n in (1, 2, 3)]
    groups = {
        "solids": _synonyms(captions.NOUNS),
        "colours": {color: _others(captions.COLOR_WORDS.get(color, ()), color)
                    for color in scenes.COLORS},
        "sizes": _synonyms(captions.SIZE_WORDS),
        "surfaces": _synonyms(captions.FINISH_WORDS),
        "places": _synonyms(captions.SIDES),
        "backgrounds": _synonyms(captions.BACKGROUND_WORDS),
        "beginnings": {words.strip(): [] for words in captions.OPENINGS if words},
    }
    return {"groups": groups,
            "words": sorted({word for _, text in found for word in WORD.findall(text)}),
            "examples": [text for texts in examples for text in texts[:EXAMPLES]]}


def _synonyms(table):
    return {first: _others(words, first) for first, words in table.items()}


def _others(words, first):
    return [word for word in dict.fromkeys(words) if word != first]


def main():
    path = resources.files("refsd") / "data" / "words.json"
    parts = [f'"{name}": {json.dumps(value)}' for name, value in content().items()]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
