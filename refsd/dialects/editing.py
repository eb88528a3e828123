r"""A1111's prompt editing: words that come, go or take turns from one step to the next.

    [a:b:9]  a up to step 9, then b      [b:0.4]  b after 40 % of the steps      [a::9]  a up to 9
    [a|b]    a and b in turns            AND      several prompts, each with a weight

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/prompt_parser.py, whose grammar this
reads without a parser generator. In it a bracket within another must close, and a bracket that does
not is text, with all around it. A `|` or a last backslash that is text spoils the whole grammar:
then nothing of that prompt is edited.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from refsd.errors import UsageError

MAX_PARTS = 32  # joined by AND: the model is asked for all in one batch
MAX_DEPTH = 50  # of editing within editing; a prompt of it takes as long as its pieces

_PIECE = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]")
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
_AND = re.compile(r"\bAND\b")
_WEIGHED = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*\Z")


class Version(NamedTuple):
    """A prompt's text up to and including a step, counted from 1."""

    end: int
    text: str


class Composed(NamedTuple):
    """One of the prompts that AND joins, and its weight."""

    text: str
    weight: float


@dataclass
class _Edit:
    """`[before:after:when]`, or `[a|b|c]` with when None; an item is a text or another edit."""

    choices: list[list]
    when: str | None
    depth: int


@dataclass
class _Open:
    """A bracket that is not closed yet: its parts, and the separators between them."""

    bracket: str
    parts: list[list] = field(default_factory=lambda: [[]])
    separators: str = ""

    def as_text(self) -> list:
        """Its items, where the bracket turns out to be text."""
        items = [self.bracket, *self.parts[0]]
        for separator, part in zip(self.separators, self.parts[1:]):
            items += [separator, *part]
        return items


def compose(text: str) -> list[Composed]:
    """The prompts that AND joins; a number behind a last colon is a weight also without AND.

    UsageError: too many for one batch.

    >>> compose("a cat AND a dog :1.2")
    [Composed(text='a cat', weight=1.0), Composed(text=' a dog', weight=1.2)]
    """
    parts, found = [], _AND.split(text)
    if len(found) > MAX_PARTS:
        raise UsageError(f"prompt: {len(found)} prompts joined by AND; give at most {MAX_PARTS}")
    for part in found:
        weighed = _WEIGHED.search(part)
        before, weight = (part[:weighed.start()], weighed[1]) if weighed else (part, 1)
        parts.append(Composed(before.rstrip(), float(weight)))
    return parts


def versions(text: str, steps: int, *, old: bool = False) -> list[Version]:
    """The texts of a prompt over `steps` steps, in their order; the last one ends at `steps`.

    A number with a point is a share of the steps, another one a step; with `old` (A1111's "Use old
    prompt editing timelines") a number below 1 is a share. UsageError: nested beyond reason.

    >>> versions("a [red:blue:3] hat", 10)
    [Version(end=3, text='a red hat'), Version(end=10, text='a blue hat')]
    """
    items = _parse(text)
    if items is None:
        return [Version(steps, text)]
    ends: set[int] = {steps}
    _collect(items, steps, old, ends)
    return [Version(end, "".join(_at(items, end, steps, old))) for end in sorted(ends)]


def _parse(text: str) -> list | None:
    """The prompt as texts and edits; None where the grammar does not take it."""
    top: list = []
    stack: list[_Open] = []
    end = 0
    for piece in _PIECE.finditer(text):
        if piece.start() != end:
            return None
        end, part = piece.end(), piece[0]
        if part in "[(":
            stack.append(_Open(part))
        elif not stack:
            if part == "|":
                return None
            top.append(part)
        elif part in ":|":
            stack[-1].separators += part
            stack[-1].parts.append([])
        elif part in "])":
            closed = _close(stack[-1], part)
            if closed is None:  # then no bracket around it is one either
                top += [item for bracket in stack for item in bracket.as_text()] + [part]
                stack.clear()
            else:
                stack.pop()
                (stack[-1].parts[-1] if stack else top).extend(closed)
        else:
            stack[-1].parts[-1].append(part)
    top += [item for bracket in stack for item in bracket.as_text()]
    return top if end == len(text) and "|" not in top else None


def _close(opened: _Open, part: str) -> list | None:
    """What a bracket stands for that `part` closes: an edit, or its own text; None if nothing."""
    separators, parts = opened.separators, opened.parts
    if part == ")":
        return [*opened.as_text(), part] if opened.bracket == "(" and separators in ("", ":") \
            else None
    if opened.bracket != "[":
        return None
    if not separators:
        return [*opened.as_text(), part]
    depth = 1 + max((item.depth for one in parts for item in one if isinstance(item, _Edit)),
                    default=0)
    if depth > MAX_DEPTH:
        raise UsageError(f"prompt: editing within editing, {depth} deep; give at most {MAX_DEPTH}")
    if set(separators) == {"|"}:
        return [_Edit(parts, None, depth)]
    last = parts[-1]
    when = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
    if when is None or separators not in (":", "::"):
        return None
    return [_Edit([parts[0] if separators == "::" else [], parts[-2]], when[1], depth)]


def _step(when: str, steps: int, old: bool) -> int:
    share = float(when) < 1 if old else "." in when
    return int(max(-1, min(steps, float(when) * (steps if share else 1))))


def _collect(items: list, steps: int, old: bool, ends: set[int]) -> None:
    """The steps at which a text may end, added to `ends`."""
    for edit in items:
        if not isinstance(edit, _Edit):
            continue
        if edit.when is None:
            ends.update(range(1, steps + 1))
        elif (step := _step(edit.when, steps, old)) >= 1:
            ends.add(step)
        for choice in edit.choices:
            _collect(choice, steps, old, ends)


def _at(items: list, step: int, steps: int, old: bool) -> list[str]:
    """The texts of the items at a step."""
    texts = []
    for item in items:
        if not isinstance(item, _Edit):
            texts.append(item)
        elif item.when is None:
            texts += _at(item.choices[(step - 1) % len(item.choices)], step, steps, old)
        else:
            late = step > _step(item.when, steps, old)
            texts += _at(item.choices[late], step, steps, old)
    return texts
