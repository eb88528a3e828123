"""--compat: whose prompts, noise and rounding a picture is drawn with (refsd.dialects)."""

import argparse
from typing import Any

from refsd.cli.arguments import Parser
from refsd.dialects import DIALECTS
from refsd.dialects.names import find, spelled
from refsd.errors import UsageError
from refsd.rules import that

EMPHASES = {"no-norm": "No norm", "ignore": "Ignore", "none": "None"}  # as A1111 writes them


def add_options(parser: Parser) -> None:
    """The option, which also decides whose noise is drawn where --rng does not say."""
    add = parser.add_argument_group("as another tool draws").add_argument
    add("--compat", metavar="NAME[,OPTION=VALUE]", default="diffusers",
        help=f"read prompts, draw noise and round as {', '.join(DIALECTS)} (diffusers); a1111 "
        "takes ensd=N, emphasis=no-norm, pad=yes, old-editing=yes, "
        "comfy step-noise=cuda")
    parser.set_defaults(rng=None)


def check(options: argparse.Namespace) -> None:
    """UsageError where there is no such dialect."""
    options.compat = spelled(find(options.compat))


def rng(options: argparse.Namespace) -> str:
    """Whose noise: that asked for, else the tool's own."""
    return options.rng or find(options.compat).rng


def settings(compat: str) -> dict[str, Any]:
    """What A1111's line says of it."""
    dialect = find(compat)
    if dialect.name != "a1111":
        return {}
    return {**({"Emphasis": EMPHASES[dialect.emphasis]} if dialect.emphasis in EMPHASES else {}),
            **({"ENSD": dialect.step_seed} if dialect.step_seed else {}),
            **({"Pad conds": True} if dialect.pad else {}),
            **({"Use old prompt editing timelines": True} if dialect.old_editing else {})}


def _known(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(find(value))
    except UsageError:
        return False


RULE = that(_known, f"one of {', '.join(DIALECTS)}, with their options")
