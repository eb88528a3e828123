"""The words that the model which comes with refsd was trained on, and which of a text are others.

refsd/data/words.json is made from the grammar of the captions, by training/words.py.
"""

import functools
import json
import re
from importlib import resources
from typing import Any

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
NAMED = 8  # words in a message


@functools.cache
def known() -> dict[str, Any]:
    """groups (what each is for: its words, synonyms behind them), words (all), examples."""
    return json.loads((resources.files("refsd") / "data" / "words.json").read_text("utf-8"))


def unseen(text: str) -> list[str]:
    """The words of a text that no caption had, in order."""
    words = dict.fromkeys(WORD.findall(text.lower()))
    return [word for word in words if word not in known()["words"]]


def remark(text: str) -> str:
    """One line that names such words and says what the model does know, or nothing."""
    others = unseen(text)
    if not others:
        return ""
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    groups = known()["groups"]
    firsts = {name: ", ".join(words) for name, words in groups.items()}
    return (f"the model that comes with refsd never saw {', '.join(map(_short, others[:NAMED]))}"
            f"{more}; it knows {firsts['solids']} in {firsts['colours']}, "
            f"{firsts['sizes']}, {firsts['surfaces']}, and where they stand (refsd words)")


def _short(word: str) -> str:
    return repr(word if len(word) <= 30 else f"{word[:30]}...")
