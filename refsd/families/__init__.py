"""Families of models, one a file: how each is recognised, and what its single files do not say.

The networks are refsd.models' whatever the family; no other part of refsd names one. A file of this
folder that makes a Family is all that adds it.
"""

import pkgutil
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from refsd.families.family import Family, Layout, Location
from refsd.families.gpt2 import GPT2
from refsd.families.inputs import INPUTS, input_of, not_drawn
from refsd.families.latent_diffusion import CONTROLNET, NOISE
from refsd.families.others import kind_of
from refsd.families.sd1 import SD1

__all__ = ["COMPONENTS", "CONTROLNET", "DEFAULT", "FAMILIES", "GPT2", "INPUTS", "NOISE",
           "PARTS", "WRITING", "Family", "Layout", "Location", "family_of_width",
           "input_of", "not_drawn", "of_parts", "other_family", "published", "recognise",
           "short_names", "text_widths"]  # fmt: skip

DEFAULT = SD1  # what is meant, or taken for, where nothing tells


def _listed() -> tuple[Family, ...]:
    """The families that the files of this folder make; the default first."""
    found = {DEFAULT.name: DEFAULT}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Family) and found.setdefault(value.name, value) is not value:
                raise ImportError(f"refsd.families.{module.name}: there is another {value.name}; "
                                  "give it a name of its own")
    return tuple(found.values())


_ALL = _listed()
FAMILIES = tuple(family for family in _ALL if family.scheduler)
WRITING = tuple(family for family in _ALL if not family.scheduler)  # their models continue texts
# The parts of models, those with weights, and all.
COMPONENTS = tuple(dict.fromkeys(part for family in FAMILIES for part in family.networks))
PARTS = tuple(dict.fromkeys(part for family in FAMILIES for part in family.parts))


def recognise(tensors: Mapping[str, Any], default: Family = DEFAULT) -> Family:
    """The family of a file of these tensors, by their names or by the width of its text.

    The default where nothing tells, as for a network alone that several families have.
    """
    for family in FAMILIES:
        if any(mark in name for name in tensors for mark in family.marks):
            return family
    widths = text_widths(tensors)
    return next((family for family in FAMILIES if family.text_width in widths), default)


def other_family(tensors: Mapping[str, Any]) -> str:
    """What a file of these tensors is that refsd does not draw with; empty where it may."""
    known = {start for family in FAMILIES for start in (
        *family.marks, *(layout.prefix for layout in family.layouts.values()))}
    return kind_of(tensors, known)


def of_parts(parts: Collection[str]) -> Family:
    """The first family of these parts."""
    return next(family for family in FAMILIES if {*family.parts} == {*parts})


def short_names() -> list[str]:
    """The short names of published models: "sd1"."""
    return [name for family in (*FAMILIES, *WRITING) for name in family.published]


def published(name: str | None) -> tuple[Family, dict[str, Mapping[str, Any]]] | None:
    """The family and the configs of the published model of a short name; of None the default's."""
    if name is None:
        return DEFAULT, dict(DEFAULT.configs)
    family = next((f for f in (*FAMILIES, *WRITING) if name in f.published), None)
    return family and (family, {part: {**config, **family.published[name].get(part, {})}
                                for part, config in family.configs.items()})


def text_widths(tensors: Mapping[str, Any]) -> set[int]:
    """The widths of the text that the cross-attentions among these tensors read."""
    return {tensor.shape[-1] for name, tensor in tensors.items()
            if name.endswith("attn2.to_k.weight") and tensor.shape}


def family_of_width(width: int) -> str | None:
    """The name of the family whose UNet reads text of a width; None where none is known."""
    return {family.text_width: family.name for family in FAMILIES}.get(width)
