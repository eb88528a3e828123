"""Docstrings, tables and sources as Markdown."""

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator

SPECIAL = re.compile(r"[\\*_\[\]<>$|{}^~#]|^[-+](?= )|(?<=^\d)\.")


def escaped(text: str) -> str:
    """Plain text for Markdown: `code` and *a word* stay, nothing else is markup."""
    parts = re.split(r"(`[^`\n]+`|(?<![\w*])\*\w+\*(?![\w*]))", text)
    return "".join(part if i % 2 else SPECIAL.sub(r"\\\g<0>", part)
                   for i, part in enumerate(parts))


def code(text: object) -> str:
    """A value as code that may stand in a table."""
    mark = "``" if "`" in str(text) else "`"
    return f"{mark}{text}{mark}".replace("|", r"\|")


def block(source: str, language: str = "python") -> str:
    """A block of code; the fence is longer than those inside."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`{3,}", source)), 3)
    return f"{fence}{language}\n{textwrap.dedent(source).strip(chr(10))}\n{fence}\n"


def from_docstring(text: str | None) -> str:
    """A docstring's paragraphs, lists, examples and indented code."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    return "\n".join(_block(each) for each in blocks if each.strip())


def _block(text):
    lines = text.splitlines()
    if lines[0].lstrip().startswith(">>>"):
        return block(text, "pycon")
    if all(line.startswith("    ") for line in lines):
        return block(text)
    return "\n".join(_lines(lines)) + "\n"


def _lines(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        mark = "* " if line.startswith("* ") else ""
        yield mark + escaped(line.removeprefix(mark))


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table; nothing where there are no rows. Cells are Markdown."""
    rows = [f"| {' | '.join(map(str, row))} |" for row in rows]
    if not rows:
        return ""
    head = list(head)
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]) + "\n"
