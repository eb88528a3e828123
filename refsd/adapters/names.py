"""Which weight of a pipeline a name in an adapter's file means.

Files name modules as the network that they were trained on does: diffusers', or the latent
diffusion code's (whose names a family's Layout knows), with points or with underscores in their
place, after one of many prefixes. Underscores cannot be undone, so all names that a model's modules
can have are written so, and looked up.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from refsd.families import FAMILIES, others
from refsd.tree import flatten

# What stands before a module's name, by who writes it so: diffusers, its old attention processors,
# kohya (te1 is the first of two encoders, for some the only one), LyCORIS, PEFT, ComfyUI.
PREFIXES = {
    "unet": ("unet_", "", "lora_unet_", "lycoris_", "lycoris_unet_", "base_model_model_",
             "unet_base_model_model_", "diffusion_model_", "model_diffusion_model_"),
    "text_encoder": ("text_encoder_", "lora_te_", "lora_te1_", "lycoris_te_", "lycoris_te1_",
                     "text_encoder_base_model_model_", "clip_l_transformer_", "clip_l_",
                     "text_encoders_clip_l_transformer_", "text_encoders_clip_l_"),
    "text_encoder_2": ("text_encoder_2_", "lora_te2_", "lycoris_te2_",
                       "text_encoder_2_base_model_model_", "clip_g_transformer_", "clip_g_",
                       "text_encoders_clip_g_transformer_", "text_encoders_clip_g_"),
}
# No picture depends on it where the model has none: such text encoders give their states.
HARMLESS = re.compile(r"(.*_)?text_projection")
# Names of old attention processors, which stand for those of layers.
ALIASES = ((re.compile(r"_to_out_0$"), "_to_out"), (re.compile(r"_([qkv])_proj$"), r"_to_\1"),
           (re.compile(r"_out_proj$"), "_to_out"))


class Target(NamedTuple):
    """A module of a network: "unet", "down_blocks.0.attentions.0.proj_in"."""

    network: str
    module: str


def targets(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, Target]:
    """Every name that adapters may have for the modules with weights of these networks' trees."""
    found: dict[str, Target] = {}
    for network, tree in trees.items():
        for module, spelled in _modules(network, tree):
            for prefix in PREFIXES[network]:
                found.setdefault(prefix + spelled, Target(network, module))
    return found


def written(name: str) -> str:
    """A module's name as `targets` has it."""
    return name.replace(".", "_").replace("_processor_", "_")


def foreign(name: str) -> str | None:
    """What a name tells of a file that is not for these models."""
    return next((what for prefix, what in others.ADAPTERS.items()
                 if written(name).startswith(prefix)), None)


def _modules(network: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(module, a name of it) for all names without prefixes, those of diffusers first."""
    weights = [name for name in flatten(tree) if name.endswith(".weight")]
    modules = {name: name.removesuffix(".weight") for name in weights}
    for module in modules.values():
        spelled = written(module)
        yield module, spelled
        yield module, spelled.removeprefix("text_model_")
    for locate in [family.layouts[network].locate for family in FAMILIES
                   if network in family.layouts]:
        for name, location in (locate(tree) if locate else {}).items():
            if name in modules and location.parts == 1:
                yield modules[name], written(location.name.removesuffix(".weight"))
    for module in modules.values():
        for pattern, other in ALIASES:
            if pattern.search(written(module)):
                yield module, pattern.sub(other, written(module))
