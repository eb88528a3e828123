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


MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
SDE = DPM | {"algorithm_type": "sde-dpmsolver++"}
OWN = {  # the samplers of a class that are not just called as its file is
    "pndm": {"pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True}, "PLMS")},
    "euler_ancestral": {"euler_a": Sampler("EulerAncestralDiscreteScheduler", {}, "Euler a")},
    "kdpm2": {"dpm2": Sampler("KDPM2DiscreteScheduler", {}, "DPM2")},
    "kdpm2_ancestral": {"dpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", {}, "DPM2 a")},
    # These are for pictures going back to noise, and for EDM's models, which name them themselves.
    "ddim_inverse": {}, "edm_euler": {}, "edm_dpm_solver": {},
    "dpm_solver": {
        "dpm++2m": Sampler(MULTI, DPM, "DPM++ 2M"),
        "dpm++2m_sde": Sampler(MULTI, SDE, "DPM++ 2M SDE"),
        "dpm++2m_sde_heun": Sampler(MULTI, SDE | {"solver_type": "heun"}, "DPM++ 2M SDE Heun"),
    },
    "dpm_solver_singlestep": {"dpm++2s": Sampler(SINGLE, DPM, "DPM++ 2S")},
    "deis": {"deis": Sampler("DEISMultistepScheduler",
                             {"algorithm_type": "deis", "solver_type": "logrho"}, "DEIS")},
    "unipc": {
        "unipc": Sampler("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"},
                         "UniPC"),
        "unipc_bh2": Sampler("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"},
                             "UniPC bh2"),
    },
}
SCHEDULES = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas",
             "beta": "use_beta_sigmas"}
ENDINGS = {**{name: name for name in SCHEDULES}, "ka": "karras"}


class Samplers(dict):
    """The samplers by name; "_karras", "_exponential" and "_beta" behind one chooses its sigmas."""

    def __missing__(self, key: str) -> Sampler:
        name, _, schedule = key.rpartition("_")
        sampler, option = self.get(name), SCHEDULES.get(schedule)
        if sampler is None or option not in schedulers.SCHEDULERS[sampler.scheduler].DEFAULTS:
            raise KeyError(key)
        return sampler._replace(options=sampler.options | {option: True},
                                schedule=schedule.capitalize())


SAMPLERS = Samplers()
for _class, _file in schedulers.FILES.items():
    _label = _class.removesuffix("Scheduler").removesuffix("Discrete")
    SAMPLERS |= OWN.get(_file, {_file: Sampler(_class, {}, _label)})
for _name in ("dpm++2m_karras", "dpm++2m_sde_karras"):  # so well known that they are listed
    SAMPLERS[_name] = SAMPLERS[_name]
ALIASES = {"plms": "pndm", "eulerancestral": "euler_a", "dpm2ancestral": "dpm2_a",
           "dpm++2msdegpu": "dpm++2m_sde", "dpm++2msdeheungpu": "dpm++2m_sde_heun",
           "dpmsolver++": "dpm++2m"}
DIFFERENT = {  # well-known samplers that are not what they are taken for; in _plain's spelling
    "dpm++2sa": "adds noise in two calls of the model a step; dpm++2s adds none",
    "dpm++2sancestral": "adds noise in two calls of the model a step; dpm++2s adds none",
    "dpm++sde": "calls the model twice a step; dpm++2m_sde once",
    "dpm++3msde": "is of third order; that of diffusers has another sign in one term and "
                  "converges at first (docs/schedules.md): take dpm++2m_sde",
}


def find_sampler(name: str) -> str:
    """The key in SAMPLERS of a name in anyone's spelling: "DPM++ 2M Karras", "k_dpmpp_2m".

    Raises UsageError with a suggestion, or what is known of a sampler that refsd does not have.
    """
    plain, names = _plain(name), _names()
    schedule = next((end for end in ENDINGS if plain.endswith(end) and plain not in names), "")
    plain = plain.removesuffix(schedule)
    for spelling in (plain, plain.removeprefix("k")):
        if spelling in DIFFERENT:
            raise UsageError(f"--sampler: {name[:40]!r} {DIFFERENT[spelling]}")
        if spelling in names:
            return _with_schedule(names[spelling], ENDINGS.get(schedule))
    near = difflib.get_close_matches(_plain(name), names, 1)
    hint = f"did you mean {names[near[0]]}? Give" if near else "give"
    raise UsageError(f"--sampler: got {name[:40]!r}; {hint} one of {', '.join(SAMPLERS)}")


def _names():
    """Every spelling of a name, as _plain has it; a class's is that of its first sampler."""
    names = {}
    for key, sampler in SAMPLERS.items():
        names[_plain(key)] = key
        names.setdefault(_plain(sampler.scheduler), key)
        names.setdefault(_plain(sampler.scheduler.removesuffix("Scheduler")), key)
    return names | ALIASES


def _with_schedule(key, schedule):
    if schedule is None:
        return key
    option = SCHEDULES[schedule]
    if option not in schedulers.SCHEDULERS[SAMPLERS[key].scheduler].DEFAULTS:
        raise UsageError(f"--sampler: {key} has no {option}; leave {schedule} out, or take a "
                         "sampler that has it, such as euler")
    return f"{key}_{schedule}"


def of_model(name: str | None, config: Mapping[str, Any]) -> Any:
    """The scheduler of a sampler with a model's options; None is the sampler the model names.

    Raises ModelError for what refsd does not have, naming the samplers that would do.
    """
    try:
        if name is None:
            return schedulers.from_config(config)
        sampler = SAMPLERS[name]
        cls = schedulers.SCHEDULERS[sampler.scheduler]
        options = dict.fromkeys(SCHEDULES.values(), False) | sampler.options
        known = {key: value for key, value in options.items() if key in cls.DEFAULTS}
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
    schedule = next((name for name, option in SCHEDULES.items() if config.get(option)), "")
    for sampler in SAMPLERS.values():
        if sampler.scheduler == config["_class_name"] and not sampler.schedule and all(
                config.get(key, value) == value for key, value in sampler.options.items()):
            return sampler.label, schedule.capitalize()
    return config["_class_name"], schedule.capitalize()
