"""A1111's settings that have a meaning here: of GET and POST options and override_settings."""

from collections.abc import Mapping
from typing import Any

from refsd.arguments import nearest, shown
from refsd.cli.foreign import EMPHASES, RNGS
from refsd.errors import UsageError
from refsd.rules import Rule, boolean, integer, number, only
from refsd.serve.models import Model

RULES: dict[str, Rule] = {
    "CLIP_stop_at_last_layers": integer(1, 64),
    "emphasis": only("Original", *EMPHASES),
    "eta_ddim": number(0, 1),
    "eta_noise_seed_delta": integer(0, 2**63 - 1),
    "pad_cond_uncond": boolean,
    "randn_source": only("GPU", "CPU", "NV"),
    "show_progress_every_n_steps": integer(-1, 1000),
    "use_old_scheduling": boolean,
}
DEFAULTS: dict[str, Any] = {
    "CLIP_stop_at_last_layers": 1, "emphasis": "Original", "eta_ddim": 0.0,
    "eta_noise_seed_delta": 0, "pad_cond_uncond": False, "randn_source": "GPU",
    "show_progress_every_n_steps": 1, "use_old_scheduling": False,
}
# What A1111 can change and refsd cannot: what it is here, first, and what says the same.
FIXED: dict[str, tuple[Any, ...]] = {
    "eta_ancestral": (1.0, None),
    "forge_additional_modules": ([], None),
    "initial_noise_multiplier": (1.0, None),
    "live_previews_enable": (True, None),
    "samples_format": ("png", None),
    "sd_checkpoint_hash": ("", None),
    "sd_vae": ("Automatic", "None", "", None),
}
CHECKPOINT = "sd_model_checkpoint"
NAMES = (CHECKPOINT, *RULES, *FIXED)


def read(said: Any, models: Mapping[str, Model], where: str) -> dict[str, Any]:
    """The settings that an object says, checked; None is what is not said.

    Raises UsageError for one that refsd does not have, or has otherwise.
    """
    if not isinstance(said, Mapping):
        raise UsageError(f"{where} is {shown(said)}; give an object of settings")
    found = {}
    for name, value in said.items():
        if name not in NAMES:
            hint = nearest(name, NAMES)
            raise UsageError(f"{where}: refsd has no setting {shown(name)}; {hint and hint + ' '}"
                             f"it has {', '.join(NAMES)}")
        if name in FIXED:
            if wanted := only(*FIXED[name])(value):
                raise UsageError(f"{where}: {name} is {shown(value)}, which refsd cannot change; "
                                 f"leave it out, or give {wanted}")
        elif value is not None:
            found[name] = _model(value, models, where) if name == CHECKPOINT else value
            if name in RULES and (wanted := RULES[name](value)):
                raise UsageError(f"{where}: {name} is {shown(value)}; give {wanted}")
    return found


def _model(name, models, where):
    """The id of a model by its title in A1111's way: "NAME.safetensors [hash]" is NAME too."""
    for plain in (name, str(name).partition(" [")[0]):
        for id in (plain, str(plain).removesuffix(".safetensors").removesuffix(".gguf")):
            if id in models:
                return id
    raise UsageError(f"{where}: {CHECKPOINT} is {shown(name)}, which this server was not started "
                     "with; " + nearest(name, models, f"give one of {', '.join(models)}"))


class Settings:
    """What POST options has set; it holds until the server ends."""

    def __init__(self, models: Mapping[str, Model]):
        self.models = models
        self.values = {CHECKPOINT: next(iter(models)), **DEFAULTS}

    def change(self, said: Any, where: str = "options") -> None:
        """Set what an object says, or nothing of it. Raises UsageError."""
        self.values = {**self.values, **read(said, self.models, where)}

    def shown(self) -> dict[str, Any]:
        """All settings, as GET options answers."""
        return {**{name: value[0] for name, value in FIXED.items()}, **self.values}


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of refsd.serve.asked that settings decide."""
    options = {"emphasis": EMPHASES.get(values["emphasis"]),
               "ensd": values["eta_noise_seed_delta"] or None,
               "pad": "yes" if values["pad_cond_uncond"] else None,
               "old-editing": "yes" if values["use_old_scheduling"] else None}
    return {"model": values[CHECKPOINT], "rng": RNGS[values["randn_source"]],
            "clip_skip": values["CLIP_stop_at_last_layers"] - 1 or None,
            "preview": max(values["show_progress_every_n_steps"], 0),
            "compat": ",".join(["a1111", *(f"{name}={value}" for name, value in options.items()
                                           if value)])}
