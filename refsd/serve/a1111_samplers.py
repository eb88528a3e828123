"""A1111's samplers and schedules: which sampler of refsd a body means, and the lists of both."""

from collections.abc import Mapping
from typing import Any

from refsd.arguments import shown
from refsd.cli import sampler_names
from refsd.cli.sampler_names import AUTOMATIC, SAMPLERS, SCHEDULES
from refsd.errors import UsageError
from refsd.serve.a1111_bodies import as_said

FIELDS = ("sampler_name", "sampler_index", "scheduler", "eta")
EVEN = ("uniform", "normal")
OWN = ("", "automatic")
STEPPED = ("ddim", "pndm", "unipc")  # through training steps: A1111 looks at no schedule with them


def read(body: Mapping[str, Any], eta_ddim: float, flows: bool, notes: list[str]
         ) -> dict[str, Any]:
    """The sampler with the schedule that A1111 takes, and its eta; {} is the model's own.

    flows: the model is one of flow matching, which has a schedule of its own. notes takes a line
    for what has no effect. UsageError names a field.
    """
    name, schedule = (_text(body, key) for key in (
        "sampler_name" if body.get("sampler_name") else "sampler_index", "scheduler"))
    schedule = schedule.lower()
    if not name:
        if schedule not in (*OWN, *EVEN):
            raise UsageError(f"scheduler is {shown(body['scheduler'])}, which is of a sampler; "
                             "give sampler_name too")
        return {}
    try:
        found = sampler_names.find_sampler(name)
        if found in SAMPLERS:  # else its name says a schedule, which goes before
            found = _scheduled(found, schedule, body, flows, notes)
    except UsageError as problem:
        raise UsageError(str(problem).replace("--sampler", "sampler_name")) from None
    return {"sampler": found, **_eta(body, found, eta_ddim)}


def _scheduled(found, schedule, body, flows, notes):
    if schedule in OWN:
        return found if flows else sampler_names.automatic(found)
    if schedule in EVEN:
        return found
    if found in STEPPED:
        notes.append(f"scheduler: {SAMPLERS[found].label} has none, in A1111 neither")
        return found
    if schedule not in SCHEDULES:
        raise UsageError(f"scheduler is {shown(body['scheduler'])}, which refsd does not have; "
                         f"give {', '.join(one['label'] for one in schedules())}")
    return sampler_names.chosen(found, schedule)


def _eta(body, sampler, eta_ddim):
    """DDIM's own; of samplers that draw noise it is 1 here, and all others have none."""
    eta = as_said(body.get("eta", eta_ddim if sampler == "ddim" else 1))
    if sampler == "ddim":
        return {"eta": eta}
    if SAMPLERS[sampler].noise and eta != 1:
        raise UsageError(f"eta is {shown(eta)}: {sampler} adds all of its noise; leave it out, or "
                         "give 1")
    return {}


def _text(body, name):
    value = body.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"{name} is {shown(value)}; give a text")
    return value.strip()


def samplers() -> list[dict[str, Any]]:
    """As GET samplers answers: name, aliases, and the schedule that Automatic stands for."""
    return [{"name": sampler.label, "aliases": [name, *filter(None, [sampler.comfyui])],
             "options": {"scheduler": AUTOMATIC[name]} if name in AUTOMATIC else {}}
            for name, sampler in SAMPLERS.items()]


def schedules() -> list[dict[str, Any]]:
    """As GET schedulers answers."""
    return [{"name": name, "label": name.capitalize(), "aliases": None,
             "default_rho": 7.0 if name == "karras" else -1, "need_inner_model": name in EVEN}
            for name in ("automatic", *EVEN, *SCHEDULES)]
