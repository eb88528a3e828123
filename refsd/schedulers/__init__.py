"""The samplers of Stable Diffusion under diffusers' names, one file each; NumPy only.

    >>> scheduler = from_config({"_class_name": "DDIMScheduler", "num_train_timesteps": 1000})
    >>> scheduler.set_timesteps(4)
    >>> scheduler.timesteps
    array([750, 500, 250,   0])
    >>> import numpy as np
    >>> x, model = np.ones((1, 4, 8, 8), "float32"), lambda x, t: 0 * x  # predicts the noise
    >>> for t in scheduler.timesteps:
    ...     eps = model(scheduler.scale_model_input(x, t), t)
    ...     x = scheduler.step(eps, t, x).prev_sample

Timesteps, sigmas and alphas_cumprod have the bits of diffusers 0.42.1 on torch 2.13.0;
docs/schedules.md says what that takes and where the two part.
"""

import importlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from refsd.arguments import nearest, shown
from refsd.errors import ModelError, UsageError

FILES = {  # the file of each class, in the order in which they are listed
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "kdpm2",
    "KDPM2AncestralDiscreteScheduler": "kdpm2_ancestral",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverSDEScheduler": "dpm_solver_sde",
    "DPMSolverMultistepScheduler": "dpm_solver",
    "DPMSolverSinglestepScheduler": "dpm_solver_singlestep",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "DDIMInverseScheduler": "ddim_inverse",
    "EDMEulerScheduler": "edm_euler",
    "EDMDPMSolverMultistepScheduler": "edm_dpm_solver",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler",
    "FlowMatchHeunDiscreteScheduler": "flow_match_heun",
}
SHARED = {"Config": "config", "DiffusionScheduler": "diffusion", "Scheduler": "scheduler",
          "Step": "scheduler"}


class Classes(Mapping):
    """The samplers' classes by name; a file is imported when its class is used."""

    def __getitem__(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{FILES[name]}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(FILES)

    def __len__(self) -> int:
        return len(FILES)


SCHEDULERS = Classes()


def __getattr__(name):
    module = (FILES | SHARED).get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def from_config(config: Mapping[str, Any]) -> Any:
    """The scheduler that a scheduler_config.json describes; its `_class_name` says which.

    Raises ModelError for a class or an option value that refsd does not have.
    """
    name = config.get("_class_name") if isinstance(config, Mapping) else None
    if not isinstance(name, str) or name not in SCHEDULERS:
        hint = nearest(name, SCHEDULERS)
        raise ModelError(f"scheduler config: _class_name is {shown(name)}; {hint and hint + ' '}"
                         f"refsd has {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_config(config)


def predicts_flow(config: Mapping[str, Any]) -> bool:
    """Whether the model whose config this is was trained by flow matching."""
    return (str(config.get("_class_name")).startswith("FlowMatch")
            or config.get("prediction_type") == "flow_prediction")


def would_do(config: Mapping[str, Any]) -> list[str]:
    """The classes that a model whose config this is could be drawn with instead."""
    flows = predicts_flow(config)
    return [name for name, cls in SCHEDULERS.items() if _reads(cls, config) and (
        name.startswith("FlowMatch") if flows else cls.draws_with_any)]


def _reads(cls, config):
    try:
        with warnings.catch_warnings(action="ignore"):
            cls.from_config(config)
    except (ModelError, UsageError):
        return False
    return True


__all__ = [*FILES, *SHARED, "SCHEDULERS", "from_config", "predicts_flow", "would_do"]
