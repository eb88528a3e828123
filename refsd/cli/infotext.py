r"""A1111's "infotext": the prompt, the negative prompt, and one line of settings.

    a red fox
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 512x512, Model hash: ..., ...

A prompt is free text, so one with a line break in it could forge the lines below. Control
characters and line separators are therefore written as \n, \r or \uXXXX, so that a text stays one
line; a run of backslashes before such an escape, or before n, r or u, is doubled. What is read back
is what was written, and a text without any of these stays as it is.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

NEGATIVE = "Negative prompt:"
MAX_LINE = 20_000  # of settings; A1111's own are some hundred characters

# Runs of backslashes are matched whole (possessively), so that a long one costs linear time.
_HARM = r"\A\s|\s\Z|[\x00-\x1f\x7f-\x9f\u2028\u2029]"
_HARMFUL = re.compile(rf"(\\++)({_HARM}|(?=[nru]))?|({_HARM})")
_ESCAPED = re.compile(r"(\\++)([nr]|u[0-9a-f]{4}|u)?")
_SETTING = re.compile(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


class Infotext(NamedTuple):
    """What an infotext says. The settings are strings, as they were written."""

    prompt: str
    negative_prompt: str
    settings: dict[str, str]


def format_infotext(prompt: str, negative_prompt: str, settings: Mapping[str, Any]) -> str:
    """The text of the PNG's `parameters`."""
    first = escape(prompt)
    if first.startswith(NEGATIVE):
        first = f"\\u{ord(first[0]):04x}{first[1:]}"
    negative = [f"{NEGATIVE} {escape(negative_prompt)}"] if negative_prompt else []
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items())
    return "\n".join([first, *negative, line])


def parse_infotext(text: str) -> Infotext:
    """An infotext of refsd, A1111 or another tool that writes it, taken apart.

    The last line is the settings if it has three of them, as in A1111; escapes are undone only
    where refsd wrote them. Never raises: what is no infotext is all prompt.
    """
    lines = text.split("\n")
    settings = _settings(lines[-1])
    if settings:
        lines.pop()
    starts = [i for i, line in enumerate(lines) if line.strip().startswith(NEGATIVE)]
    at = starts[0] if starts else len(lines)
    prompt = "\n".join(lines[:at]).strip()
    negative = "\n".join(lines[at:]).strip().removeprefix(NEGATIVE).strip()
    if settings.get("Version", "").startswith("refsd "):
        prompt, negative = unescape(prompt), unescape(negative)
    return Infotext(prompt, negative, settings)


def escape(text: str) -> str:
    """Text as one line without blanks at its ends."""
    names = {"\n": "n", "\r": "r"}

    def written(found):
        run, after, alone = found.groups()
        harmful = after or alone
        if run and after is not None:
            run *= 2
        return (run or "") + (f"\\{names.get(harmful, f'u{ord(harmful):04x}')}" if harmful else "")

    return _HARMFUL.sub(written, text)


def unescape(text: str) -> str:
    """The inverse of `escape`."""

    def read(found):
        run, code = found.groups()
        if code is None or code == "u" and len(run) % 2:
            return found[0]  # nothing that `escape` writes
        half = "\\" * (len(run) // 2)
        if len(run) % 2 == 0:
            return half + code
        return half + ({"n": "\n", "r": "\r"}.get(code) or chr(int(code[1:], 16)))

    return _ESCAPED.sub(read, text)


def _settings(line: str) -> dict[str, str]:
    if len(line) > MAX_LINE:
        return {}
    found = {name: _unquoted(value.strip()) for name, value in _SETTING.findall(line)}
    return found if len(found) >= 3 else {}


def _quoted(value: str) -> str:
    """A1111's rule: JSON quotes around a value with a comma, a colon or a line break in it."""
    plain = value.isprintable() and value == value.strip() and not set(value) & set(',:"')
    return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
