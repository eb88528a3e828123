"""What the texts in a picture say of how it was made, whichever program wrote them.

A1111's infotext is the common tongue (infotext.py). Others write JSON: Fooocus and SwarmUI into the
same place, NovelAI, InvokeAI and Draw Things into their own, ComfyUI the graph that it ran.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd.cli import comfy
from refsd.cli.infotext import Infotext, parse_infotext

# Where an infotext is found too: in JPEG and WebP files, and where editors and converters move it.
ELSEWHERE = ("usercomment", "comment", "imagedescription", "description", "xpcomment",
             "generation_data")
PROMPTS = ("prompt", "positive_prompt", "positivePrompt", "Prompt", "full_prompt", "c")
NEGATIVES = ("negative_prompt", "negativeprompt", "negativePrompt", "Negative Prompt",
             "negative-prompt", "full_negative_prompt", "uc")
UNKNOWN = "an unknown program"


class Description(NamedTuple):
    """How a picture was made, by the words of `program`."""

    program: str
    prompt: str
    negative_prompt: str
    settings: dict[str, str]


def find_infotext(texts: Mapping[str, str]) -> Infotext | None:
    """A1111's text: under `parameters` in any case, or elsewhere if it has settings."""
    named = {name.lower(): text for name, text in texts.items()}
    if "parameters" in named and json_object(named["parameters"]) is None:
        return parse_infotext(named["parameters"])
    for name in ELSEWHERE:
        if name in named and (infotext := parse_infotext(named[name])).settings:
            return infotext
    return None


def find_description(texts: Mapping[str, str]) -> Description | None:
    """What a program said that writes no infotext; None where nothing is known."""
    named = {name.lower(): text for name, text in texts.items()}
    for name, inner in (("parameters", "sui_image_params"), ("parameters", None),
                        ("usercomment", "sui_image_params"), ("usercomment", None),
                        ("invokeai_metadata", None), ("sd-metadata", "image"), ("comment", None),
                        ("generation_data", None)):
        data = json_object(named.get(name, ""))
        if data is not None and inner is not None:
            data = data.get(inner)
        if isinstance(data, dict) and (not data.keys().isdisjoint((*PROMPTS, "uc"))
                                        or _by_its_place(name, named)):
            if name == "comment" and "prompt" not in data:  # NovelAI's first form
                data = {"prompt": named.get("description", ""), **data}
            return _of_json(_program(name, inner, data, named), data)
    if "dream" in named:
        return _of_dream(named["dream"])
    for name in ("prompt", "workflow"):
        graph = json_object(named.get(name, ""))
        if graph is not None:
            return Description("ComfyUI", *comfy.describe(graph))
    return _of_xmp(named) or _of_plain_texts(texts)


def _by_its_place(name: str, named: Mapping[str, str]) -> bool:
    """Whether a JSON text without a prompt is a description all the same."""
    return name in ("invokeai_metadata", "sd-metadata") or (
        name == "comment" and named.get("software") == "NovelAI")


def _of_json(program: str, data: Mapping[str, Any]) -> Description:
    """Prompts under any of their names; the rest are settings."""
    prompt, negative = _first(data, PROMPTS), _first(data, NEGATIVES)
    settings = {str(key): _words(value) for key, value in data.items()
                if key not in (prompt[0], negative[0])}
    return Description(program, _prompt(prompt[1]), _prompt(negative[1]), settings)


def _of_dream(text: str) -> Description:
    """InvokeAI's first form: `"a prompt" -s 50 -S 42 -W 512 ...`; negative words in brackets."""
    matched = re.fullmatch(r'"(.*)"(.*?)', text.strip(), re.DOTALL)
    prompt, options = matched.groups() if matched else (text.strip(), "")
    return Description("InvokeAI", prompt, "", {"options": options.strip()} if options else {})


def _of_xmp(named: Mapping[str, str]) -> Description | None:
    """Draw Things: JSON in XMP's exif:UserComment."""
    from html import unescape  # XMP is XML, of which one JSON text is wanted

    text = unescape(named.get("xml:com.adobe.xmp") or named.get("xmp") or "")
    begin = text.find('{"')
    try:
        data, _ = json.JSONDecoder().raw_decode(text, begin) if begin >= 0 else (None, 0)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or _first(data, PROMPTS)[0] is None:
        return None
    return _of_json("Draw Things" if "c" in data else UNKNOWN, data)


def _of_plain_texts(texts: Mapping[str, str]) -> Description | None:
    """Easy Diffusion, sd-scripts: a text for each setting."""
    if len(texts) < 2 or texts.keys().isdisjoint(("prompt", "Prompt")):
        return None
    return _of_json(texts.get("Software", UNKNOWN), texts)


def _program(name: str, inner: str | None, data: Mapping[str, Any],
             named: Mapping[str, str]) -> str:
    """Who wrote a JSON text, by where it lies and by what is in it."""
    if name in ("invokeai_metadata", "sd-metadata"):
        return "InvokeAI"
    if inner is not None:
        return "SwarmUI"
    marks = " ".join(named.get(key, "") for key in ("fooocus_scheme", "makernote", "software"))
    if "fooocus" in (marks + str(data.get("version", ""))).lower() or "fooocus_scheme" in named:
        return "Fooocus"
    if "uc" in data or named.get("software") == "NovelAI":
        return "Draw Things" if "c" in data else "NovelAI"
    return named.get("software", UNKNOWN)


def json_object(text: str) -> dict[str, Any] | None:
    """A JSON object as Python's json writes it (with NaN); None for any other text."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        data = json.loads(text.rstrip("\0"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _first(data: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str | None, Any]:
    return next(((name, data[name]) for name in names if name in data), (None, ""))


def _prompt(value: Any) -> str:
    """A prompt, or InvokeAI's list of prompts with weights."""
    if isinstance(value, list):
        return ", ".join(_prompt(part.get("prompt", part) if isinstance(part, dict) else part)
                         for part in value)
    return _words(value).strip()


def _words(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
