"""The kinds of runs that packs are made of, each of which knows its model and what it records."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from refsd.golden.recording.request import Request
from refsd.golden.recording.text import TextRequest


def kind_of(recipe: Mapping[str, Any]) -> type:
    """That of a manifest's recipe: texts alone have a number of tokens."""
    return TextRequest if "tokens" in recipe else Request


def request_of(recipe: Mapping[str, Any]) -> Any:
    """The request that a manifest's recipe tells of."""
    kind = kind_of(recipe)
    names = {field.name for field in fields(kind)}
    return kind(**{key: tuple(value) if key == "ids" and value is not None else value
                   for key, value in recipe.items() if key in names})
