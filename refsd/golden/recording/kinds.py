"""The kinds of runs that packs are made of, each of which knows its model and what it records."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from refsd.golden.recording.request import Request
from refsd.golden.recording.text import TextRequest

KINDS = (Request, TextRequest)


def kind_of(recipe: Mapping[str, Any]) -> type:
    """The first kind all of whose fields without a default a manifest's recipe has."""
    for kind in KINDS:
        needed = {field.name for field in dataclasses.fields(kind)
                  if field.default is dataclasses.MISSING}
        if needed <= recipe.keys():
            return kind
    return Request  # which says what is missing


def request_of(recipe: Mapping[str, Any]) -> Any:
    """The request that a manifest's recipe tells of."""
    kind = kind_of(recipe)
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: tuple(value) if key == "ids" and value is not None else value
                   for key, value in recipe.items() if key in names})
