"""The samplers of Stable Diffusion under diffusers' names, one file each; NumPy only.

    scheduler = refsd.schedulers.from_config(json.loads(text_of_scheduler_config))
    scheduler.set_timesteps(20)
    for t in scheduler.timesteps:
        eps = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(eps, t, x).prev_sample

Timesteps, sigmas and alphas_cumprod have the bits of diffusers 0.42.1 on torch 2.13.0;
docs/schedules.md says what that takes and where the two part.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from refsd.arguments import nearest, shown
from refsd.errors import ModelError, UsageError
from refsd.schedulers.config import Config
from refsd.schedulers.ddim import DDIMScheduler
from refsd.schedulers.ddpm import DDPMScheduler
from refsd.schedulers.dpm_solver import DPMSolverMultistepScheduler
from refsd.schedulers.euler import EulerDiscreteScheduler
from refsd.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from refsd.schedulers.lcm import LCMScheduler
from refsd.schedulers.pndm import PNDMScheduler
from refsd.schedulers.scheduler import Scheduler, Step

SCHEDULERS: dict[str, type[Scheduler]] = {
    cls.__name__: cls
    for cls in (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        LCMScheduler,
        PNDMScheduler,
    )
}


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a scheduler_config.json describes; its `_class_name` says which.

    Raises ModelError for a class or an option value that refsd does not have.
    """
    name = config.get("_class_name") if isinstance(config, Mapping) else None
    if not isinstance(name, str) or name not in SCHEDULERS:
        hint = nearest(name, SCHEDULERS)
        raise ModelError(f"scheduler config: _class_name is {shown(name)}; {hint and hint + ' '}"
                         f"refsd has {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_config(config)


def would_do(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config can be read as, whichever class it is of."""
    return [name for name, cls in SCHEDULERS.items() if _reads(cls, config)]


def _reads(cls, config):
    try:
        with warnings.catch_warnings(action="ignore"):
            cls.from_config(config)
    except (ModelError, UsageError):
        return False
    return True


__all__ = [*SCHEDULERS, "SCHEDULERS", "Config", "Scheduler", "Step", "from_config",
           "would_do"]
