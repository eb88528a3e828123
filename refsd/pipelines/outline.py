"""A model by its name, its path or its hub id, of which no tensor is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refsd.families import Family, published
from refsd.pipelines.loading import bundled_model, load_scheduler
from refsd.schedulers import Scheduler, from_config
from refsd.weights import resolve
from refsd.weights.plan import Plan, family_at, plan_whole

BUNDLED = "bundled"  # what the model in refsd is called where none is named by a file


class Outline(NamedTuple):
    """What a model is: a config.json for each network, and where its tensors lie, if anywhere."""

    name: str
    family: Family
    configs: Mapping[str, Mapping[str, Any]]
    scheduler: Scheduler
    plans: Mapping[str, Plan] | None = None


def outline(model: str | None = None, **hub: Any) -> Outline:
    """That of a path, a hub id, "bundled", or a published model's short name (refsd.families).

    A path of that name goes before. None is the default family's as it was published. No file is
    needed for a short name. hub: as for refsd.weights.resolve. Raises as load_checkpoint.
    """
    there = model is not None and Path(model).exists()
    if not there and (named := published(model)):
        family, configs = named
        return Outline(model or family.name, family, configs, from_config(family.scheduler))
    path = bundled_model() if model == BUNDLED and not there else resolve(model, **hub)
    plans = plan_whole(path)
    configs = {part: plan.config for part, plan in plans.items()}
    return Outline(model, family_at(path), configs, load_scheduler(path), plans)
