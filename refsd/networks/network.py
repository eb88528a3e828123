"""What a network is: how it is called and filed, its options, and the shapes of its tensors.

An option that would change numbers in a way that refsd does not compute is refused by name, never
ignored. The defaults are those of the class that wrote the config: of diffusers 0.42.1 and of
transformers 5.23.0.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from refsd import rules
from refsd.errors import ModelError
from refsd.rules import Rule, integer

MAX_LEVELS = 8
MAX_WIDTH = 16_384

Shape = tuple[int, ...]
# An option's default and its rule, by its name.
Options = Mapping[str, tuple[Any, Rule]]


def _fits(config: Mapping[str, Any], where: str) -> None:
    """No option of most networks says anything about another."""


def _together(part: str, configs: Mapping[str, Mapping], elsewhere: Collection[str],
              where: str) -> None:
    """Most networks are read by others, which ask for what they give."""


@dataclass(frozen=True)
class Network:
    """A network's name in messages, its classes, how its files begin, and tensors that it has.

    options: those of the class. shapes(config): the tree of every tensor's shape, of a config in
    which every option is there; computes: module:class of the objects that compute it, with `of`
    and `calls` where it is a part of models; fits(config, where): ModelError where one option of it
    contradicts another; together(part, configs, elsewhere, where): where its config does not fit
    those of the other parts of a model, of which some may lie elsewhere. today(name): the name of a
    tensor, also of one that old files have under another; None for one to leave out. whole_first:
    whether a whole file is taken before an index of shards, as transformers does. beyond_float16:
    whether its numbers pass float16's largest, so that it computes in float32 where float16 is
    asked for, of tensors that are held in float16.
    """

    word: str
    classes: tuple[str, ...]
    stems: tuple[str, ...]
    landmarks: tuple[str, ...]
    options: Options
    shapes: Callable[[Mapping[str, Any]], dict[str, Any]]
    computes: str
    fits: Callable[[Mapping[str, Any], str], None] = _fits
    together: Callable[[str, Mapping[str, Mapping], Collection[str], str], None] = _together
    today: Callable[[str], str | None] = str
    whole_first: bool = False
    beyond_float16: bool = False


each = partial(rules.each, least=1, most=MAX_LEVELS)  # a value for each level


def only(*allowed: Any) -> Rule:
    """One of these values; the first is what diffusers defaults to."""
    one = rules.only(*allowed)
    return lambda value: one(value) and f"{one(value)}: refsd computes no other"


def one_or_each(rule: Rule) -> Rule:
    """A value for all levels, or one for each."""
    return lambda value: (each(rule) if isinstance(value, (list, tuple)) else rule)(value)


width, count = integer(1, MAX_WIDTH), integer(1, 64)


def silu(value: Any) -> str:
    """SiLU under its two names; diffusers does not mind capitals."""
    return only("silu", "swish")(value.lower() if isinstance(value, str) else value)


def per_level(value: Any, levels: int) -> tuple:
    """A value for each level, of a list of them or of one for all."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels


def check_levels(config: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    """ModelError for an option of these with a list of another length than there are levels."""
    levels = len(config["block_out_channels"])
    for name in names:
        value = config.get(name)
        if isinstance(value, (list, tuple)) and len(value) != levels:
            raise ModelError(f"{where}: {name} has {len(value)} entries, expected {levels}, as "
                             "block_out_channels has")


def check_divides(config: Mapping[str, Any], name: str, whole: int, part: int, where: str) -> None:
    """ModelError where an option does not divide a width."""
    if whole % part:
        raise ModelError(f"{where}: {name} is {part}, expected a divisor of the width {whole}")


def check_groups(config: Mapping[str, Any], where: str) -> None:
    """ModelError where norm_num_groups does not divide every width."""
    check_divides(config, "norm_num_groups", math.gcd(*config["block_out_channels"]),
                  config["norm_num_groups"], where)
