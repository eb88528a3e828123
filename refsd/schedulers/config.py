"""Scheduler options: one table of defaults a class, resolved once and checked, then read-only.

The names and defaults are diffusers 0.42.1's. An option value that refsd does not implement is
refused by name; it is never ignored.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from refsd.arguments import refuse_unknown, shown
from refsd.errors import UsageError
from refsd.rules import as_kind, boolean, each, integer, number, only, optional

# The training noise, the same five options in every class.
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
}
# How a predicted x0 is kept in range, in the classes that do it.
THRESHOLDING = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
CLIPPING = {"clip_sample": True, "clip_sample_range": 1.0, **THRESHOLDING}
# What the options may be that are not true or false; a class may allow other words.
RULES = {
    "beta_schedule": only("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": only("epsilon", "sample", "v_prediction"),
    "timestep_spacing": only("leading", "trailing", "linspace"),
    "final_sigmas_type": only("zero", "sigma_min"),
    "num_train_timesteps": integer(1, 1_000_000),
    "beta_start": number(0, 1),
    "beta_end": number(0, 1),
    "trained_betas": optional(each(number(0, 1))),
    "dynamic_thresholding_ratio": number(0, 1),
    "clip_sample_range": number(0, math.inf),
    "sample_max_value": number(0, math.inf),
    "steps_offset": integer(0, 1_000_000),
    "original_inference_steps": integer(1, 1_000_000),
    "flow_shift": number(0, 1_000_000),
    "timestep_scaling": number(0, 1_000_000),
    "noise_sampler_seed": optional(integer(0, 2**63 - 1)),
    "sigma_data": number(1e-10, 1e10),
    "sigma_schedule": only("karras", "exponential"),
    "rho": number(1e-3, 1e3),
    "sigma_min": optional(number(1e-10, 1e10)),
    "sigma_max": optional(number(1e-10, 1e10)),
    "lambda_min_clipped": number(-math.inf, math.inf),
    "disable_corrector": each(integer(0, 1_000_000)),
    "shift": number(1e-6, 1e6),
    "base_shift": optional(number(-100, 100)),
    "max_shift": optional(number(-100, 100)),
    "base_image_seq_len": integer(1, 10**9),
    "max_image_seq_len": integer(1, 10**9),
    "shift_terminal": optional(number(0, 0.999)),
    "time_shift_type": only("exponential", "linear"),
}

# Numbers that diffusers' samplers read in some runs only, where null stops them.
NULL_IS_DEFAULT = {"steps_offset", "clip_sample_range", "dynamic_thresholding_ratio",
                   "sample_max_value", "flow_shift", "timestep_scaling", "disable_corrector",
                   "sigma_min", "sigma_max", "base_image_seq_len", "max_image_seq_len"}


class Config(dict):
    """Every resolved option of a scheduler, read-only, as keys and as attributes.

    `defaulted` names the options that nobody gave. `Other.from_config(config)` drops those and
    takes its own defaults for them, as diffusers does with its `_use_default_values`.
    """

    def __init__(self, values: Mapping[str, Any], defaulted: Iterable[str] = ()) -> None:
        super().__init__(values)
        object.__setattr__(self, "defaulted", frozenset(defaulted))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this scheduler config has no option {name!r}") from None

    def plain(self) -> dict[str, Any]:
        """The options as JSON can hold them; infinite ones are defaults, and left out."""
        return {key: value for key, value in self.items()
                if not (isinstance(value, float) and math.isinf(value))}

    def __reduce__(self):
        return Config, (dict(self), tuple(sorted(self.defaulted)))

    def _refuse(self, *args, **kwargs) -> NoReturn:
        raise UsageError(
            "a scheduler's config is read-only: make a new scheduler with "
            "Scheduler.from_config(config, name=value)"
        )

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse


def resolve(name, defaults, choices, options) -> Config:
    """The options of class `name`: what was given, checked, over its defaults.

    Raises UsageError for an option that the class does not have or a value that it does not take.
    """
    refuse_unknown(name, options, defaults, "option")
    options = {key: as_kind(value, 0.0 if defaults[key] is None else defaults[key])
             for key, value in options.items() if value is not None or key not in NULL_IS_DEFAULT}
    values = {"_class_name": name, **defaults, **options}
    rules = RULES | {key: only(*allowed) for key, allowed in choices.items()}
    for key, value in options.items():
        if wanted := rules.get(key, boolean)(value):
            raise UsageError(f"{name}: {key} is {shown(value)}; give {wanted}")

    if values.get("trained_betas") is not None:
        values["trained_betas"] = [float(beta) for beta in values["trained_betas"]]
        if len(values["trained_betas"]) != values["num_train_timesteps"]:
            raise UsageError(
                f"{name}: trained_betas has {len(values['trained_betas'])} values; give "
                f"num_train_timesteps of them, {values['num_train_timesteps']}"
            )
    return Config(values, [key for key in defaults if key not in options])
