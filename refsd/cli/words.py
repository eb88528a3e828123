"""`refsd words`: what the model that comes with refsd knows, with examples."""

import argparse
import textwrap

from refsd.cli.arguments import Parser
from refsd.cli.report import answer
from refsd.text.words import WORD, known

ABOUT = """\
Show the words that the model which comes with refsd was trained on: little still
lifes, and nothing else. Any other model (-m) has its own, tens of thousands."""


def parser() -> Parser:
    """The options of words."""
    return Parser("refsd words [options]", ABOUT).answering()


def run(options: argparse.Namespace) -> int:
    """Show the groups, then examples; the first word of a group's is the one to prefer."""
    found = known()
    lines = [f"The {len(found['words'])} words of the model that comes with refsd, for still lifes "
             "of one to three solids:", ""]
    for group, words in found["groups"].items():
        said = ", ".join(f"{word} ({', '.join(others)})" if others else word
                         for word, others in words.items())
        lines += _row(group, said)
    shown = set(WORD.findall(" ".join(lines)))
    lines += _row("and", ", ".join(word for word in found["words"] if word not in shown))
    lines += ["", "such as", *(f"  {example}" for example in found["examples"])]
    return answer(options.json, found, *lines)


def _row(group: str, words: str) -> list[str]:
    return textwrap.wrap(words, 88, initial_indent=f"{group:<13}", subsequent_indent=" " * 13)
