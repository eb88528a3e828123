"""What a model on disk is made of, part for part, and what it lacks: no tensor is read."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsd.errors import ModelError, ResourceError
from refsd.families import Family, input_of
from refsd.networks import NETWORKS
from refsd.pipelines.loading import BUNDLED, bundled_model, family_at, load_scheduler
from refsd.weights import resolve
from refsd.weights.header import read_header
from refsd.weights.model_index import OTHERS, PARTS
from refsd.weights.plan import Plan, plan_folder, plan_replacement
from refsd.weights.single import contents

# What a UNet reads -> the family's pipeline for that, and the one of a family of its own.
TASKS = {"latents": "text", "mask": "mask"}
EDITS = "StableDiffusionInstructPix2PixPipeline"


@dataclass(frozen=True)
class Part:
    """A network of a model: its class, its numbers, and its bytes on disk by type.

    problem: why it is not read; empty where it is, and where it may be missing (`optional`).
    """

    part: str
    word: str
    kind: str = ""
    parameters: int = 0
    types: Mapping[str, int] | None = None
    optional: bool = False
    problem: str = ""

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum((self.types or {}).values())

    @property
    def found(self) -> bool:
        """Whether it is there, and what it is to be."""
        return self.types is not None


@dataclass(frozen=True)
class Inventory:
    """A model: its family, what draws with it, its parts, and what in its folder is not used.

    scheduler: the class of its own sampler, `scheduler_problem` why there is none.
    """

    model: str
    family: str
    pipeline: str
    scheduler: str
    scheduler_problem: str
    parts: tuple[Part, ...]
    tokenizers: Mapping[str, str]
    unused: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """Why it cannot be drawn with; empty if it can."""
        return [part.problem for part in self.parts if part.problem] + (
            [self.scheduler_problem] if self.scheduler_problem else [])


def inventory(model: str | None = None, *, variant: str | None = None, **hub: Any) -> Inventory:
    """Of a folder, a single file, or a hub id in the cache; None is the model in refsd.

    Raises UsageError for a path that does not exist, ModelError for what holds no such model.
    """
    place = bundled_model() if model is None else resolve(model, variant=variant, **hub)
    family = family_at(place)
    parts = tuple(_part(place, family, part, variant) for part in family.networks)
    if not any(part.found for part in parts) and not any(
            (place / part).is_dir() for part in family.networks):
        raise ModelError(f"{place}: {_first(parts)}")
    scheduler, problem = _scheduler(place)
    return Inventory(
        BUNDLED if model is None else str(model), family.name, _pipeline(place, family, variant),
        scheduler, problem, parts,
        {name: "its own" if (place / name).is_dir() else "CLIP's, which comes with refsd"
         for name in family.tokenizers}, _unused(place))


def _first(parts: tuple[Part, ...]) -> str:
    """The problem of the first part, without the place that it begins with."""
    problem = next(part.problem for part in parts if part.problem)
    return problem.partition(": ")[2] or problem


def _plan(place: Path, family: Family, part: str, variant: str | None) -> Plan:
    if place.is_dir():
        return plan_folder(place, part, variant=variant)
    return plan_replacement(place, part, family=family)


def _part(place: Path, family: Family, part: str, variant: str | None) -> Part:
    known = Part(part, NETWORKS[part].word, optional=part in family.optional)
    there = (place / part).is_dir() if place.is_dir() else part in contents(
        read_header(place)).parts
    if known.optional and not there:
        return known
    try:
        plan = _plan(place, family, part, variant)
    except (ModelError, ResourceError) as error:
        return Part(part, known.word, optional=known.optional, problem=str(error))
    return Part(part, known.word, _class(plan.config) or NETWORKS[part].classes[0],
                sum(map(math.prod, plan.shapes.values())), types(plan), known.optional)


def _class(config: Mapping[str, Any]) -> str:
    found = config.get("_class_name") or (config.get("architectures") or [""])[0]
    return found if isinstance(found, str) else ""


def types(plan: Plan) -> dict[str, int]:
    """Bytes on disk by type, of each stored tensor once: three parts may lie in one."""
    stored = {(source.header.path, source.location.name): source.info
              for source in plan.sources.values()}
    stored |= {(source.scale.header.path, source.scale.location.name): source.scale.info
               for source in plan.sources.values() if source.scale is not None}
    found: Counter = Counter()
    for info in stored.values():
        found[info.dtype] += info.stop - info.start
    return dict(found.most_common())


def _pipeline(place: Path, family: Family, variant: str | None) -> str:
    """The class that draws with it, by what its denoiser reads."""
    if "unet" not in family.networks:
        return family.pipelines["text"]
    try:
        config = _plan(place, family, "unet", variant).config
    except (ModelError, ResourceError):
        return family.pipelines["text"]
    reads = input_of(config["in_channels"], config["out_channels"])
    return EDITS if reads == "image" else family.pipelines[TASKS.get(reads, "text")]


def _scheduler(place: Path) -> tuple[str, str]:
    """The class of its sampler, and why there is none."""
    try:
        return type(load_scheduler(place)).__name__, ""
    except (ModelError, ResourceError) as error:
        return "", str(error)


def _unused(place: Path) -> tuple[str, ...]:
    """Folders of a model that its pictures do not come from, and those that refsd does not know."""
    if not place.is_dir():
        return ()
    return tuple(sorted(child.name for child in place.iterdir() if child.name not in PARTS
                        and (child.name in OTHERS or (child / "config.json").is_file())))
