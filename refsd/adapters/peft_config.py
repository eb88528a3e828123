"""PEFT's config of an adapter, where diffusers wrote it into the file: what it says of scale."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from refsd.errors import ModelError
from refsd.rules import boolean, check, matching, number, optional, that

METADATA = "lora_adapter_metadata"
NUMBER, RANK = number(-1e30, 1e30), number(1, 1e9)
# PEFT takes patterns for regular expressions; diffusers writes names of modules, perhaps after "^".
NAME = matching(re.compile(r"\^?[\w.]{1,500}"), "a module's name")


def _by_module(rule):
    return optional(that(lambda value: isinstance(value, dict) and not any(
        NAME(key) or rule(item) for key, item in value.items()),
        "an object of numbers by the names of modules"))


RULES = {"r": RANK, "lora_alpha": NUMBER, "use_rslora": optional(boolean),
         "rank_pattern": _by_module(RANK), "alpha_pattern": _by_module(NUMBER)}


def configs(metadata: Mapping[str, str], where: str) -> dict[str, dict[str, Any]]:
    """The config of each network, of which RULES' keys are checked; {} where the file has none."""
    if METADATA not in metadata:
        return {}
    where = f"{where}: its {METADATA}"
    try:
        found = json.loads(metadata[METADATA])
    except (ValueError, RecursionError):
        raise ModelError(f"{where} is no JSON. Fetch the file again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{where} is no JSON object. Fetch the file again")
    networks: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        network, _, name = key.partition(".")
        if name in RULES:
            networks.setdefault(network, {})[name] = value
    for network, config in networks.items():
        check(config, RULES, f"{where}, {network[:40]}", optional=RULES)
    return networks


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, each perhaps the module's own; alpha / sqrt(r) with rslora. 1 without an alpha."""
    if "lora_alpha" not in config:
        return 1.0
    alpha = _of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
    rank = _of_module(config.get("rank_pattern"), module, config.get("r", rank))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(patterns, module, otherwise):
    """Of the first pattern that ends the module's name, as PEFT looks for it, or is it, with a ^

    transformers has taken the level `text_model` away since.
    """
    for pattern, value in (patterns or {}).items():
        name = pattern.removeprefix("^")
        if module in (name, f"text_model.{name}") or (
                not pattern.startswith("^") and module.endswith(f".{name}")):
            return value
    return otherwise
