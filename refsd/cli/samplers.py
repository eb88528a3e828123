"""Sampler names, those of other tools included, and the scheduler class and options of each."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd import schedulers
from refsd.errors import ModelError, UsageError


class Sampler(NamedTuple):
    """A scheduler class, the options that make it this sampler, and A1111's two names for it."""

    scheduler: str
    options: dict[str, Any]
    label: str
    schedule: str = ""


DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2}
OWN = {  # the samplers of a class that are not just called as its file is
    "pndm": {"pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True}, "PLMS")},
    "euler": {"euler": Sampler("EulerDiscreteScheduler", {"use_karras_sigmas": False}, "Euler")},
    "euler_ancestral": {"euler_a": Sampler("EulerAncestralDiscreteScheduler", {}, "Euler a")},
    "kdpm2": {"dpm2": Sampler("KDPM2DiscreteScheduler", {}, "DPM2")},
    "kdpm2_ancestral": {"dpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", {}, "DPM2 a")},
    # These are for pictures going back to noise, and for EDM's models, which name them themselves.
    "ddim_inverse": {}, "edm_euler": {}, "edm_dpm_solver": {},
    "dpm_solver": {
        "dpm++2m": Sampler("DPMSolverMultistepScheduler", {"use_karras_sigmas": False, **DPM},
                           "DPM++ 2M"),
        "dpm++2m_karras": Sampler("DPMSolverMultistepScheduler",
                                  {"use_karras_sigmas": True, **DPM}, "DPM++ 2M", "Karras"),
    },
}
SAMPLERS: dict[str, Sampler] = {}
for _class, _file in schedulers.FILES.items():
    _label = _class.removesuffix("Scheduler").removesuffix("Discrete")
    SAMPLERS |= OWN.get(_file, {_file: Sampler(_class, {}, _label)})
ALIASES = {"plms": "pndm", "eulerancestral": "euler_a", "keuler": "euler", "keulera": "euler_a",
           "keulerancestral": "euler_a", "kheun": "heun", "klms": "lms", "kdpm2": "dpm2",
           "dpm2ancestral": "dpm2_a", "kdpm2a": "dpm2_a", "kdpm2ancestral": "dpm2_a",
           "kdpm++2m": "dpm++2m", "kdpm++2mka": "dpm++2m_karras",
           "dpm++2mka": "dpm++2m_karras"}


def find_sampler(name: str) -> str:
    """The key in SAMPLERS of a name in anyone's spelling: "DPM++ 2M Karras", "k_dpmpp_2m".

    Raises UsageError with a suggestion.
    """
    plain = _plain(name)
    classes = {key: sampler.scheduler for key, sampler in SAMPLERS.items() if not sampler.schedule}
    names = {_plain(key): key for key in SAMPLERS} | ALIASES | {
        _plain(name): key for key, cls in classes.items()
        for name in (cls, cls.removesuffix("Scheduler"))}
    if plain in names:
        return names[plain]
    near = difflib.get_close_matches(plain, names, 1)
    hint = f"did you mean {names[near[0]]}? Give" if near else "give"
    raise UsageError(f"--sampler: got {name[:40]!r}; {hint} one of {', '.join(SAMPLERS)}")


def of_model(name: str | None, config: Mapping[str, Any]) -> Any:
    """The scheduler of a sampler with a model's options; None is the sampler the model names.

    Raises ModelError for what refsd does not have, naming the samplers that would do.
    """
    try:
        if name is None:
            return schedulers.from_config(config)
        sampler = SAMPLERS[name]
        cls = schedulers.SCHEDULERS[sampler.scheduler]
        known = {key: value for key, value in sampler.options.items() if key in cls.DEFAULTS}
        dropped = set(getattr(config, "defaulted", ())) - set(known)
        return cls.from_config({**config, **known, "_use_default_values": list(dropped)})
    except ModelError as problem:
        able = schedulers.would_do(config)
        names = [key for key, sampler in SAMPLERS.items() if sampler.scheduler in able]
        hint = f"--sampler {' or '.join(names)} would do" if names else "no other sampler does"
        raise ModelError(f"{problem}; {hint}") from None


def own_or(name: str | None, config: Mapping[str, Any]) -> Any:
    """The model's own sampler; the named one with its options where refsd does not have that."""
    try:
        return of_model(None, config)
    except ModelError:
        if name is None:
            raise
        return of_model(find_sampler(name), config)


def _plain(name: str) -> str:
    """Lower case without spaces, underscores and hyphens; "pp" is "++"."""
    return "".join(c for c in name.lower() if c not in " _-").replace("pp", "++")


def label(config: Mapping[str, Any]) -> tuple[str, str]:
    """A1111's sampler and schedule name of a resolved scheduler config; the class's own if none."""
    class_name = config["_class_name"]
    karras = bool(config.get("use_karras_sigmas"))
    for sampler in SAMPLERS.values():
        if sampler.scheduler == class_name and bool(sampler.schedule) <= karras:
            name = sampler.label
            break
    else:
        name = class_name
    return name, "Karras" if karras else ""
