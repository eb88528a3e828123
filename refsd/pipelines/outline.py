"""A model by its name, its path or its hub id, of which no tensor is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refsd.arguments import nearest, shown
from refsd.errors import ModelError, UsageError
from refsd.families import GPT2, Family, published, short_names
from refsd.pipelines.loading import bundled_model, load_scheduler
from refsd.schedulers import Scheduler, from_config
from refsd.weights import resolve
from refsd.weights.gpt2 import NAME, is_gpt2, plan_gpt2
from refsd.weights.location import FILES
from refsd.weights.plan import Plan, family_at, plan_whole

BUNDLED = "bundled"  # what the model in refsd is called where none is named by a file


class Outline(NamedTuple):
    """What a model is: a config.json for each network, and where its tensors lie, if anywhere.

    A model that writes texts has no scheduler.
    """

    name: str
    family: Family
    configs: Mapping[str, Mapping[str, Any]]
    scheduler: Scheduler | None
    plans: Mapping[str, Plan] | None = None


def outline(model: str | None = None, **hub: Any) -> Outline:
    """That of a path, a hub id, "bundled", or a published model's short name (refsd.families).

    A path of that name goes before. None is the default family's as it was published. No file is
    needed for a short name. hub: as for refsd.weights.resolve. Raises as load_checkpoint.
    """
    there = model is not None and Path(model).exists()
    if not there and (named := published(model)):
        family, configs = named
        scheduler = from_config(family.scheduler) if family.scheduler else None
        return Outline(model or family.name, family, configs, scheduler)
    path = bundled_model() if model == BUNDLED and not there else _resolved(model, hub)
    if is_gpt2(path):
        plan = plan_gpt2(path)
        return Outline(model, GPT2, {NAME: plan.config}, None, {NAME: plan})
    plans = plan_whole(path)
    configs = {part: plan.config for part, plan in plans.items()}
    return Outline(model, family_at(path), configs, load_scheduler(path), plans)


def _resolved(model: str, hub: dict[str, Any]) -> Path:
    """As resolve; UsageError names the short names where the word may have been meant as one."""
    try:
        return resolve(model, **hub)
    except (ModelError, UsageError) as problem:
        if Path(model).name != model or Path(model).suffix in FILES:
            raise
        hint = nearest(model, short_names())
        raise UsageError(f"model: {shown(model)}: no such path, name, or id in the hub cache; "
                         f"{hint and hint + ' '}give one, or a short name: "
                         f"{', '.join(short_names())}") from problem
