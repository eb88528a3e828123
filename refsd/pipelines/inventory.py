"""What a model on disk is made of, part for part, and what it lacks: no tensor is read."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refsd.errors import ModelError, ResourceError
from refsd.families import COMPONENTS, GPT2, PARTS, Family, input_of, other_family
from refsd.networks import NETWORKS, network_of
from refsd.pipelines.loading import BUNDLED, bundled_model, load_scheduler, load_tokenizer
from refsd.pipelines.planned import planned_network
from refsd.text import CLIPTokenizer
from refsd.weights import resolve
from refsd.weights.gpt2 import NAME, is_gpt2, plan_gpt2
from refsd.weights.header import read_header
from refsd.weights.model_index import OTHERS
from refsd.weights.plan import Plan, family_at, plan_folder, plan_replacement
from refsd.weights.single import contents

# What a UNet reads -> the family's pipeline for that, and the one of a family of its own.
TASKS = {"latents": "text", "mask": "mask"}
EDITS = "StableDiffusionInstructPix2PixPipeline"


@dataclass(frozen=True)
class Part:
    """A network of a model: its class, its numbers, and its bytes on disk by type.

    problem: why it, or its tokenizer, is not read; empty where it is, and where it may be missing
    (`optional`).
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
    family = GPT2 if is_gpt2(place) else family_at(place)
    if place.is_file() and family is not GPT2:
        header = read_header(place)
        if kind := other_family(header.tensors):
            raise ModelError(f"{place}: this is {kind}. See refsd info for what is in the file")
        there = {*contents(header).parts}
    else:
        there = {part for part in family.networks if part == NAME or (place / part).is_dir()}
    if not there:
        raise ModelError(f"{place}: none of a model's networks is in it "
                         f"({', '.join(COMPONENTS)}). Give the folder that holds them")
    plans = {part: _plan(place, family, part, variant) for part in family.networks
             if part in there or part not in family.optional}
    parts = {part: _part(family, part, plans.get(part)) for part in family.networks}
    tokenizers = {}
    for part in parts:
        if part.startswith("text_encoder") and parts[part].found:
            name = part.replace("text_encoder", "tokenizer")
            tokenizers[name], problem = _tokenizer(place, part, name, plans[part].config)
            parts[part] = replace(parts[part], problem=problem)
    scheduler, problem = _scheduler(place) if family.scheduler else ("", "")
    return Inventory(
        BUNDLED if model is None else str(model), family.name, _pipeline(family, plans.get("unet")),
        scheduler, problem, tuple(parts.values()), tokenizers, _unused(place))


def _plan(place: Path, family: Family, part: str, variant: str | None) -> Plan | str:
    """A part as it was found, or why it is not read."""
    try:
        if part == NAME:
            return plan_gpt2(place, variant=variant)
        if place.is_dir():
            return plan_folder(place, part, variant=variant)
        return plan_replacement(place, part, family=family)
    except (ModelError, ResourceError) as error:
        return str(error)


def _part(family: Family, part: str, plan: Plan | str | None) -> Part:
    known = Part(part, NETWORKS[part].word, optional=part in family.optional)
    if plan is None or isinstance(plan, str):
        return replace(known, problem=plan or "")
    return replace(known, kind=_class(plan.config) or network_of(part, plan.config).classes[0],
                   parameters=sum(map(math.prod, plan.shapes.values())), types=types(plan))


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


def _pipeline(family: Family, unet: Plan | str | None) -> str:
    """The class that draws with it, by what its UNet reads, if it has one."""
    if not isinstance(unet, Plan):
        return family.pipeline("text")
    reads = input_of(unet.config["in_channels"], unet.config["out_channels"])
    return EDITS if reads == "image" else family.pipeline(TASKS.get(reads, "text"))


def _tokenizer(place: Path, part: str, name: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Whose tokenizer reads a text encoder's texts, and why none does."""
    try:
        found = load_tokenizer(place, part, planned_network(part, config))
    except (ModelError, ResourceError) as error:
        return "none that fits, see below", str(error)
    ours = isinstance(found, CLIPTokenizer) and not (place / name).is_dir()
    return "CLIP's, which comes with refsd" if ours else "its own", ""


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
