"""What an adapter's file holds: its tensors by the module that they change, whoever wrote them.

PEFT and diffusers write lora_A and lora_B, older diffusers lora.down, or to_q_lora.down in the
attention's processor, transformers once lora_linear_layer, kohya lora_down; the rest is LyCORIS'.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refsd.adapters import peft_config
from refsd.adapters.kinds import IA3, KINDS, OTHERS, Change, Kind, Shape, kind_of, magnitude_axis
from refsd.adapters.names import HARMLESS, Target, foreign, written
from refsd.errors import ModelError

_LORA = re.compile(r"(.+?)(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(down|up|mid|A|B)(?:\.\w+)?"
                   r"\.(weight|bias)")
_PARTS = {"A": "lora_down", "B": "lora_up", "down": "lora_down", "up": "lora_up", "mid": "lora_mid"}
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.\w+)*")
_NAMES = {"w_norm": "diff", "b_norm": "diff_b", "weight": "ia3"}
_OTHER = re.compile(
    r"(.+?)\.(alpha|scale|dora_scale|diff|diff_b|w_norm|b_norm|weight|on_input|hada_w[12]_[ab]|"
    rf"hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|(?:{'|'.join(OTHERS)})(?:\.weight)?)")
EXTRAS = ("alpha", "scale", "dora_scale", "magnitude", "lora_bias", "diff_b")


def split(key: str) -> tuple[str, str] | None:
    """A tensor's name as its module's and its own, as kinds have it; None for no adapter's."""
    if match := _LORA.fullmatch(key):
        module, part, leaf = match.groups()
        if leaf == "bias":
            return (module, "lora_bias") if _PARTS[part] == "lora_up" else None
        return module, _PARTS[part]
    if match := _MAGNITUDE.fullmatch(key):
        return match[1], "magnitude"
    if match := _OTHER.fullmatch(key):
        name = match[2] if match[2] in _NAMES else match[2].removesuffix(".weight")
        return match[1], _NAMES.get(name, name)
    return None


@dataclass(frozen=True)
class Part:
    """What a file has for one module: the kind, its tensors' keys by name, the rank (0: none)."""

    target: Target
    module: str
    kind: Kind | None
    tensors: Mapping[str, str]
    rank: int

    @property
    def name(self) -> str:
        """The kind's, for who reads it."""
        decomposed = {"dora_scale", "magnitude"} & self.tensors.keys()
        biases = "full" if "diff_b" in self.tensors else "(IA)3"
        return (biases if self.kind is None else self.kind.name) + (" DoRA" if decomposed else "")


@dataclass(frozen=True)
class Plan:
    """The parts of a file, the keys that have no place in the model, and PEFT's configs in it."""

    parts: list[Part]
    unknown: list[str]
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The tensors that are read."""
        return [key for part in self.parts for key in part.tensors.values()]


def plan(shapes: Mapping[str, Shape], known: Mapping[str, Target],
         weights: Mapping[Target, Mapping[str, Shape]], *, metadata: Mapping[str, str],
         where: str) -> Plan:
    """Which tensor is for what, all checked but their values; no tensor is needed for it.

    known: `targets` of the model; weights: the shapes of each module's "weight" and "bias".
    ModelError for tensors that do not belong together or do not fit the model's.
    """
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for key in shapes:
        found = split(key)
        if found is None or written(found[0]) not in known:
            if found is None or HARMLESS.fullmatch(written(found[0])) is None:
                unknown.append(key)
        elif modules.setdefault(found[0], {}).setdefault(found[1], key) != key:
            raise ModelError(f"{where}: {_shown([key])} is there twice, in two spellings. Take "
                             "one out")
    parts, seen = [], {}
    for module, tensors in modules.items():
        target = known[written(module)]
        if target in seen:
            raise ModelError(f"{where}: {module[:120]} and {seen[target][:120]} are the same "
                             "module. Take one out")
        seen[target] = module
        parts.append(_part(target, module, tensors, shapes, weights[target], where))
    return Plan(parts, unknown, peft_config.configs(metadata, where))


def _part(target, module, tensors, shapes, weights, where):
    where = f"{where}: {module[:120]}"
    own = {name: shapes[key] for name, key in tensors.items() if name not in EXTRAS}
    kind, rank = kind_of(own), 0
    if kind is not None:
        rank = kind.check(own, weights["weight"], where)
    elif set(own) == set(IA3):
        axis = weights["weight"][0 if math.prod(own["ia3"]) == weights["weight"][0] else 1:][:1]
        if (math.prod(own["ia3"]),) != tuple(axis) or math.prod(own["on_input"]) != 1:
            raise ModelError(f"{where}: its (IA)3 has {own['ia3']} for a weight of "
                             f"{weights['weight']}. Give an adapter for this family of models")
    elif own or "diff_b" not in tensors:
        raise ModelError(f"{where}: {_why(own)}")
    for name in EXTRAS[:2]:
        if name in tensors and math.prod(shapes[tensors[name]]) != 1:
            raise ModelError(f"{where}: its {name} has shape {shapes[tensors[name]]}, expected one "
                             "number. Fetch the file again")
    for name, inside in (("dora_scale", False), ("magnitude", True)):
        if name in tensors and (kind is None or magnitude_axis(
                shapes[tensors[name]] or (1,), weights["weight"], inside) is None):
            raise ModelError(f"{where}: its {name} has shape {shapes[tensors[name]]}, of neither "
                             f"side of {weights['weight']}. Fetch the file again")
    for name in ("lora_bias", "diff_b"):
        if name in tensors and shapes[tensors[name]] != weights.get("bias"):
            raise ModelError(f"{where}: its bias has shape {shapes[tensors[name]]}, the model's is "
                             f"{weights.get('bias', 'not there')}. Give an adapter for this "
                             "family of models")
    return Part(target, module, kind, tensors, rank)


def _why(own: Iterable[str]) -> str:
    """What is wrong with tensors that no kind has."""
    own = set(own)
    if other := next((OTHERS[name] for name in sorted(own) if name in OTHERS), None):
        return f"it is {other}, which refsd does not compute. Give a LoRA, LoHa or LoKr"
    if own == {"ia3"}:
        return "a weight of a model, not of an adapter. Give it with -m, or as vae and the like"
    near = min((kind for kind in KINDS if own & set(kind.tensors)), default=None,
               key=lambda kind: len(own ^ set(kind.tensors)))
    if near is None:
        return f"{', '.join(sorted(own)) or 'its alpha'} alone is no adapter. Fetch the file again"
    missing = ", ".join(sorted(set(near.tensors) - own)) or "nothing"
    more = ", ".join(sorted(own - set(near.tensors)))
    return (f"{near.name} lacks {missing}" + (f" and has {more} too" if more else "")
            + ". Fetch the file again")


def require_known(plan: Plan, where: str) -> None:
    """ModelError for tensors that have no place in the model: the first few, and how many."""
    if not plan.unknown and plan.parts:
        return
    kinds = {found for key in plan.unknown if (found := foreign(key)) is not None}
    made = f"; such names are of {', '.join(sorted(kinds))}" if kinds else ""
    if not plan.parts:
        raise ModelError(f"{where}: nothing in it is an adapter of this model's: "
                         f"{_shown(plan.unknown) or 'it is empty'}{made}. Give an adapter for "
                         "this family of models")
    count = len(plan.unknown) + sum(len(part.tensors) for part in plan.parts)
    raise ModelError(f"{where}: {len(plan.unknown)} of its {count} tensors have no place in this "
                     f"model: {_shown(plan.unknown)}{made}. strict=False (--lora-partial) leaves "
                     "them out")


def _shown(keys: list[str]) -> str:
    names = ", ".join(ascii(key)[1:-1][:120] for key in keys[:3])
    return names + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def scale_of(part: Part, tensors: Mapping[str, np.ndarray],
             config: Mapping[str, Any] | None) -> float:
    """alpha / rank; 1 where there is no alpha, or no rank that it could be of.

    As A1111 has it, a `scale` in the file comes first; PEFT's config is asked last.
    """
    if "scale" in part.tensors:
        return float(tensors[part.tensors["scale"]].item())
    if "alpha" in part.tensors and part.rank:
        return float(tensors[part.tensors["alpha"]].item()) / part.rank
    return peft_config.scale(config, part.target.module, part.rank) if config and part.rank else 1.0


def changes(plan: Plan, tensors: Mapping[str, np.ndarray]) -> dict[tuple[str, str], Change]:
    """(network, name of a weight) -> what the file adds to it."""
    found = {}
    full = kind_of(["diff"])
    for part in plan.parts:
        own = {name: tensors[key] for name, key in part.tensors.items()}
        scale = scale_of(part, tensors, plan.configs.get(part.target.network))
        network, module = part.target
        body = {name: own[name] for name in own if name not in EXTRAS}
        if body:
            found[network, f"{module}.weight"] = Change(
                part.kind, body, scale, own.get("magnitude", own.get("dora_scale")),
                "magnitude" in own)
        for name, factor in (("lora_bias", scale), ("diff_b", 1.0)):
            if name in own:
                found[network, f"{module}.bias"] = Change(full, {"diff": own[name]}, factor)
    return found
