"""Sampler names, those of other tools included, and the scheduler class and options of each.

A name may end in how the sigmas of a run are chosen: "euler_karras", "DPM++ 2M Exponential". With
a model of flow matching a name is the same method along that model's paths.
"""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd import schedulers
from refsd.errors import ModelError, UsageError


class Sampler(NamedTuple):
    """A scheduler class, the options that make it this sampler, and its names in other tools.

    `label` is A1111's name, unless `in_a1111` is false; `schedule` its "Schedule type". `order` is
    that of the convergence, `noise` whether it draws some in its steps.
    """

    scheduler: str
    options: dict[str, Any]
    label: str
    comfyui: str = ""
    sd_cpp: str = ""
    order: int | None = None
    noise: bool = False
    in_a1111: bool = True
    schedule: str = ""


MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
SDE = DPM | {"algorithm_type": "sde-dpmsolver++"}
BH1 = {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}
BH2 = {"solver_type": "bh2"}
# What a name may end in, for classes with the option.
SCHEDULES = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas",
             "beta": "use_beta_sigmas"}
ENDINGS = {**{name: name for name in SCHEDULES}, "ka": "karras"}
# The sigmas of A1111's "Automatic", from its version 1.9 on, where they are not evenly spaced.
AUTOMATIC = {"dpm++2m": "karras", "dpm++sde": "karras", "dpm2": "karras", "dpm2_a": "karras",
             "dpm++2m_sde": "exponential", "dpm++2m_sde_heun": "exponential"}
# The classes that are the same methods with models of flow matching.
FLOW = {"EulerDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
        "HeunDiscreteScheduler": "FlowMatchHeunDiscreteScheduler"}


class Samplers(dict):
    """The samplers by name; "_karras", "_exponential" and "_beta" behind one chooses its sigmas."""

    def __missing__(self, key: str) -> Sampler:
        name, _, schedule = key.rpartition("_")
        sampler = self.get(name)
        if sampler is None or schedule not in schedules_of(name):
            raise KeyError(key)
        return sampler._replace(options=sampler.options | {SCHEDULES[schedule]: True},
                                schedule=schedule.capitalize())


SAMPLERS = Samplers({
    "ddim": Sampler("DDIMScheduler", {}, "DDIM", "ddim", "", 1),
    "ddpm": Sampler("DDPMScheduler", {}, "DDPM", "ddpm", "", 1, True, in_a1111=False),
    "pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True}, "PLMS", "", "", 2),
    "euler": Sampler("EulerDiscreteScheduler", {}, "Euler", "euler", "euler", 1),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", {}, "Euler a", "euler_ancestral",
                       "euler_a", 1, True),
    "heun": Sampler("HeunDiscreteScheduler", {}, "Heun", "heun", "heun", 2),
    "dpm2": Sampler("KDPM2DiscreteScheduler", {}, "DPM2", "dpm_2", "dpm2", 2),
    "dpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", {}, "DPM2 a", "dpm_2_ancestral", "", 2,
                      True),
    "lms": Sampler("LMSDiscreteScheduler", {}, "LMS", "lms", "lms", 4),
    "dpm++2m": Sampler(MULTI, DPM, "DPM++ 2M", "dpmpp_2m", "dpm++2m", 2),
    "dpm++2m_sde": Sampler(MULTI, SDE, "DPM++ 2M SDE", "dpmpp_2m_sde", "dpm++2m_sde", 2, True),
    "dpm++2m_sde_heun": Sampler(MULTI, SDE | {"solver_type": "heun"}, "DPM++ 2M SDE Heun",
                                "dpmpp_2m_sde_heun", "", 2, True),
    "dpm++sde": Sampler("DPMSolverSDEScheduler", {}, "DPM++ SDE", "dpmpp_sde", "", 2, True),
    "dpm++2s": Sampler(SINGLE, DPM, "DPM++ 2S", order=2, in_a1111=False),
    "deis": Sampler("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"},
                    "DEIS", "deis", "", 2, in_a1111=False),
    "unipc": Sampler("UniPCMultistepScheduler", BH2 | {"solver_order": 2}, "UniPC", "uni_pc", "",
                     3),
    "unipc_bh2": Sampler("UniPCMultistepScheduler", BH2 | {"solver_order": 3}, "UniPC bh2",
                         "uni_pc_bh2", "", 4, in_a1111=False),
    "unipc_bh1": Sampler("UniPCMultistepScheduler", BH1 | {"solver_order": 3}, "UniPC bh1", "", "",
                         4, in_a1111=False),
    "lcm": Sampler("LCMScheduler", {}, "LCM", "lcm", "lcm", None, True),
    "tcd": Sampler("TCDScheduler", {}, "TCD", "", "tcd", None, True, in_a1111=False),
})
ALIASES = {"plms": "pndm", "eulerancestral": "euler_a", "dpm2ancestral": "dpm2_a",
           "dpm++2msdegpu": "dpm++2m_sde", "dpm++2msdeheungpu": "dpm++2m_sde_heun",
           "dpmsolver++": "dpm++2m", "dpm++sdegpu": "dpm++sde"}
DIFFERENT = {  # well-known samplers that are not what they are taken for; in _plain's spelling
    "dpm++2sa": "adds noise in two calls of the model a step; dpm++2s adds none",
    "dpm++2sancestral": "adds noise in two calls of the model a step; dpm++2s adds none",
    "ddimtrailing": "is ddim with timestep_spacing trailing, an option of DDIMScheduler in Python; "
                    "ddim has the model's own spacing",
    "dpm++3msde": "is of third order; that of diffusers has another sign in one term and "
                  "converges at first (docs/schedules.md): take dpm++2m_sde",
}


def schedules_of(name: str) -> list[str]:
    """The words of SCHEDULES that the sampler's class has."""
    known = schedulers.SCHEDULERS[SAMPLERS[name].scheduler].DEFAULTS
    return [word for word, option in SCHEDULES.items() if option in known]


def find_sampler(name: str) -> str:
    """A name in anyone's spelling, "DPM++ 2M Karras", "k_dpmpp_2m", as SAMPLERS has it.

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
    names |= {f"{_plain(key)}{word}": f"{key}_{word}" for key in SAMPLERS
              for word in schedules_of(key)}
    near = difflib.get_close_matches(_plain(name), names, 1)
    hint = f"did you mean {names[near[0]]}? Give" if near else "give"
    raise UsageError(f"--sampler: got {name[:40]!r}; {hint} one of {', '.join(SAMPLERS)}")


def chosen(name: str | None, schedule: str | None) -> str | None:
    """What --sampler and --schedule say together; None is the model's own sampler."""
    if name is None and schedule is not None:
        raise UsageError(f"--schedule {schedule} is of a sampler; give --sampler with it")
    found = None if name is None else find_sampler(name)
    if schedule is not None and found not in SAMPLERS:
        raise UsageError(f"--schedule {schedule}: --sampler says {found} already; give one of them")
    return _with_schedule(found, schedule)


def automatic(name: str) -> str:
    """The sampler with the schedule that A1111's "Automatic" stands for; its own stays.

    >>> automatic("dpm++2m"), automatic("dpm++2m_exponential"), automatic("euler")
    ('dpm++2m_karras', 'dpm++2m_exponential', 'euler')
    """
    return _with_schedule(name, AUTOMATIC.get(name))


def _names():
    """Every spelling of a name, as _plain has it; a class's is that of its first sampler."""
    names = {}
    for key, sampler in SAMPLERS.items():
        names[_plain(key)] = key
        for kind in filter(None, (sampler.scheduler, FLOW.get(sampler.scheduler))):
            names.setdefault(_plain(kind), key)
            names.setdefault(_plain(kind.removesuffix("Scheduler")), key)
    return names | ALIASES


def _with_schedule(key, schedule):
    if schedule is None:
        return key
    if schedule not in schedules_of(key):
        raise UsageError(f"--sampler: {key} has no {SCHEDULES[schedule]}; leave {schedule} out, or "
                         "take a sampler that has it, such as euler")
    return f"{key}_{schedule}"


def scheduler_of(name: str) -> tuple[str, dict[str, Any]]:
    """The class of a name that find_sampler gives, and its options: sigmas as the name says."""
    sampler = SAMPLERS[name]
    known = schedulers.SCHEDULERS[sampler.scheduler].DEFAULTS
    options = dict.fromkeys((*SCHEDULES.values(), "use_lu_lambdas"), False) | sampler.options
    return sampler.scheduler, {key: value for key, value in options.items() if key in known}


def flow_class(name: str) -> str:
    """The class of a sampler with models of flow matching; empty if it has none for them."""
    kind, options = SAMPLERS[name].scheduler, SAMPLERS[name].options
    cls = schedulers.SCHEDULERS[kind]
    solves = "use_flow_sigmas" in cls.DEFAULTS and "use_flow_sigmas" not in cls.CHOICES
    solves &= "final_sigmas_type" not in options  # a run's smallest, of flow sigmas, is large
    return FLOW.get(kind, kind if solves else "")


def _flow_scheduler_of(name, config):
    """scheduler_of for a model of flow matching, whose own shift it keeps."""
    kind, options = flow_class(name), scheduler_of(name)[1]
    if not kind:
        raise ModelError(f"{name} is not for models of flow matching, of which this is one; take "
                         "one that is")
    own = schedulers.SCHEDULERS[kind].DEFAULTS
    if lacking := [key for key, value in options.items() if value is True and key not in own]:
        raise ModelError(f"{kind} has no {lacking[0]}; leave it out")
    shift = config.get("shift", config.get("flow_shift", 1.0))
    options |= {"shift": shift, "flow_shift": shift, "use_flow_sigmas": True,
                "prediction_type": "flow_prediction"}
    return kind, {key: value for key, value in options.items() if key in own}


def of_model(name: str | None, config: Mapping[str, Any]) -> Any:
    """The scheduler of a sampler with a model's options; None is the sampler the model names.

    Raises ModelError for what refsd does not have, naming the samplers that would do.
    """
    try:
        if name is None:
            return schedulers.from_config(config)
        flows = schedulers.predicts_flow(config)
        kind, options = _flow_scheduler_of(name, config) if flows else scheduler_of(name)
        dropped = set(getattr(config, "defaulted", ())) - set(options)
        return schedulers.SCHEDULERS[kind].from_config(
            {**config, **options, "_use_default_values": list(dropped)})
    except ModelError as problem:
        able = schedulers.would_do(config)
        names = [key for key, sampler in SAMPLERS.items() if sampler.scheduler in able
                 or FLOW.get(sampler.scheduler) in able]
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


def of_config(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The sampler's and the schedule's name of a resolved scheduler config; None for none."""
    known = getattr(schedulers.SCHEDULERS.get(config["_class_name"]), "DEFAULTS", ())
    schedule = next((word for word, option in SCHEDULES.items()
                     if option in known and config.get(option)), None)
    for name, sampler in SAMPLERS.items():
        if FLOW.get(sampler.scheduler) == config["_class_name"]:
            return name, schedule
        if sampler.scheduler == config["_class_name"] and all(
                config.get(key, value) == value for key, value in sampler.options.items()):
            return name, schedule
    return None, schedule


def label(config: Mapping[str, Any]) -> tuple[str, str]:
    """A1111's sampler and schedule name of a resolved scheduler config; the class's own if none.

    Evenly spaced sigmas are named only where A1111 would take others for no schedule.
    """
    name, schedule = of_config(config)
    label = config["_class_name"] if name is None else SAMPLERS[name].label
    return label, (schedule or ("uniform" if name in AUTOMATIC else "")).capitalize()
