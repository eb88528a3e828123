r"""A1111's "infotext": the prompt, the negative prompt, and one line of settings.

    a red fox
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 512x512, Model hash: ..., ...

A prompt is free text, so one with a line break in it could forge the lines below. Control
characters and line separators are therefore written as \n, \r or \uHHHH, so that a text stays one
line; a run of backslashes before such an escape, or before n, r or u, is doubled. What is read back
is what was written, and a text without any of these stays as it is.

Other programs escape nothing, end the text with newlines, write extras after the settings, or all
in one line. What they write is read by what looks like settings, not by its place.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

NEGATIVE = "Negative prompt:"
MAX_LINE = 100_000  # of settings; A1111's own are some hundred characters
# Two of these make a line of pairs the settings, wherever it stands.
USUAL = frozenset(("steps", "sampler", "schedule type", "scheduler", "cfg scale", "seed", "size",
                   "model", "model hash", "denoising strength", "clip skip", "version"))
TEMPLATES = ("Template:", "Negative Template:")  # of sd-dynamic-prompts, after the settings

# Runs of backslashes are matched whole (possessively), so that a long one costs linear time.
_HARM = r"\A\s|\s\Z|[\x00-\x1f\x7f-\x9f\u2028\u2029]"
_HARMFUL = re.compile(rf"(\\++)({_HARM}|(?=[nru]))?|({_HARM})")
_ESCAPED = re.compile(r"(\\++)([nr]|u[0-9a-f]{4}|u)?")
_NAME = re.compile(r'[^\S\n]*(\w[^:,"\n]{0,80}):[^\S\n]*')
_QUOTED = re.compile(r'"(?:[^\\"]|\\.)*+"', re.DOTALL)
_PLAIN = re.compile(r"[^,\n]*")
_END = re.compile(r"[^\S\n]*(?:,|(?=\n)|\Z)")
_STEPS = re.compile(r"Steps: *\d+ *(?:,|$)")
_STEPS_WITHIN = re.compile(r"(?<!\w)(?<!Hires )Steps: *\d+ *,")
_WITHIN = re.compile(rf"{NEGATIVE}|(?<![\w,])(?<!, )(?<!Hires )Steps: *\d+ *,")
_NEGATIVE = re.compile(NEGATIVE, re.IGNORECASE)


class Infotext(NamedTuple):
    """What an infotext says. The settings are strings, as they were written; so are the extras,
    the lines after the settings, that some extensions add."""

    prompt: str
    negative_prompt: str
    settings: dict[str, str]
    extras: str = ""


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

    The settings are the last line that looks like them. Escapes are undone, and the lines before
    taken by their number, only where refsd wrote them: there no prompt can add a line. Never
    raises: what is no infotext is all prompt.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n\0")
    lines = text.split("\n")
    at = _settings_line(lines)
    if at is None:
        return _in_one_line(text)
    settings, extras = _settings("\n".join(lines[at:]))
    before = lines[:at]
    if settings.get("Version", "").startswith("refsd ") and len(before) in (1, 2):
        negative = before[1].removeprefix(NEGATIVE).strip() if len(before) == 2 else ""
        return Infotext(unescape(before[0].strip()), unescape(negative), settings, extras)
    return Infotext(*_prompts(before), settings, extras)


def escape(text: str) -> str:
    """Text as one line without blanks at its ends."""
    names = {"\n": "n", "\r": "r"}

    def written(match):
        run, after, alone = match.groups()
        harmful = after or alone
        if run and after is not None:
            run *= 2
        return (run or "") + (f"\\{names.get(harmful, f'u{ord(harmful):04x}')}" if harmful else "")

    return _HARMFUL.sub(written, text)


def unescape(text: str) -> str:
    """The inverse of `escape`."""

    def read(match):
        run, code = match.groups()
        if code is None or code == "u" and len(run) % 2:
            return match[0]  # nothing that `escape` writes
        half = "\\" * (len(run) // 2)
        if len(run) % 2 == 0:
            return half + code
        return half + ({"n": "\n", "r": "\r"}.get(code) or chr(int(code[1:], 16)))

    return _ESCAPED.sub(read, text)


def _settings_line(lines: list[str]) -> int | None:
    """The number of the last line that looks like settings, before any templates.

    Where none has the usual names it is the last line with text, if that is three pairs (A1111's
    rule) and nothing else.
    """
    at = None
    for number, line in enumerate(lines):
        if at is not None and line.startswith(TEMPLATES):
            break
        if _look_like_settings(line):
            at = number
    last = max((number for number, line in enumerate(lines) if line.strip()), default=None)
    if at is None and last is not None and not lines[last].startswith(TEMPLATES) \
            and _pairs(lines[last]):
        at = last
    return at


def _look_like_settings(line: str) -> bool:
    if _STEPS.match(line.lstrip()):
        return True
    return len(USUAL & {name.lower() for name in _pairs(line)}) >= 2


def _pairs(line: str) -> dict[str, str]:
    """The settings of a line that is three of them or more from its beginning on; else none."""
    if line.count(":") < 3 or _NAME.match(line) is None or _NEGATIVE.match(line.lstrip()) \
            or _WITHIN.search(line.lstrip().partition('"')[0], 1):
        return {}
    settings, _ = _settings(line)
    return settings if len(settings) >= 3 else {}


def _prompts(lines: list[str]) -> tuple[str, str]:
    """The prompt and the negative prompt in the lines before the settings."""
    starts = [i for i, line in enumerate(lines) if _NEGATIVE.match(line.lstrip())]
    if not starts:  # perhaps within a line
        prompt, _, negative = "\n".join(lines).partition(NEGATIVE)
        return prompt.strip(), negative.strip()
    negative = [_NEGATIVE.sub("", line.lstrip(), count=1) if i + starts[0] in starts else line
                for i, line in enumerate(lines[starts[0]:])]
    return "\n".join(lines[:starts[0]]).strip(), "\n".join(negative).strip()


def _in_one_line(text: str) -> Infotext:
    """An infotext without line breaks, as some programs and clipboards make it."""
    steps = list(_STEPS_WITHIN.finditer(text))
    if steps:
        settings, extras = _settings(text[steps[-1].start():])
        if len(settings) >= 3:
            return Infotext(*_prompts(text[:steps[-1].start()].split("\n")), settings, extras)
    return Infotext(*_prompts(text.split("\n")), {})


def _settings(text: str) -> tuple[dict[str, str], str]:
    """`Name: value, Name: value` up to the end of the line, and what follows it.

    A value may be JSON (a string, an object, a list) and go over several lines; a piece without a
    name belongs to the value before it.
    """
    if len(text.partition("\n")[0]) > MAX_LINE:
        return {}, ""
    settings: dict[str, str] = {}
    name, start, json_fails = None, 0, False
    while start < len(text) and text[start] != "\n":
        named = _NAME.match(text, start)
        begin = named.end() if named else start
        end, value = begin, None
        if named and text[begin:begin + 1] == '"':
            end, value = _quoted_value(text, begin)
        elif named and text[begin:begin + 1] in ("{", "[") and not json_fails:
            end, value = _json_value(text, begin)
            json_fails = value is None  # tried once: a second time costs quadratic time
        if value is None:
            piece = _PLAIN.match(text, begin)
            end, value = piece.end(), piece[0].strip()
        if named:
            name = named[1].strip()
            settings[name] = value
        elif name is not None and value:
            settings[name] += f", {value}"
        start = _END.match(text, end).end()
    return settings, text[start:].strip()


def _quoted_value(text: str, begin: int) -> tuple[int, str | None]:
    """The end and the text of a JSON string that ends its setting."""
    quoted = _QUOTED.match(text, begin)
    if quoted is None or _END.match(text, quoted.end()) is None:
        return begin, None
    try:
        return quoted.end(), str(json.loads(quoted[0], strict=False))
    except ValueError:
        return quoted.end(), quoted[0][1:-1]


def _json_value(text: str, begin: int) -> tuple[int, str | None]:
    """The end and the text of a JSON object or list that ends its setting, as it was written."""
    try:
        _, end = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        return begin, None
    return (end, text[begin:end]) if _END.match(text, end) else (begin, None)


def _quoted(value: str) -> str:
    """A1111's rule: JSON quotes around a value with a comma, a colon or a line break in it."""
    plain = value.isprintable() and value == value.strip() and not set(value) & set(',:"')
    return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
