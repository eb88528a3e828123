"""--variation-seed: the noise of a seed with some of another's, as A1111 has it."""

import argparse
import re
from dataclasses import replace
from typing import Any

from refsd.arguments import shown
from refsd.cli.arguments import Parser, integer, number
from refsd.errors import UsageError
from refsd.pipelines.request import MAX_SIDE, NUMBERS, check_integer, check_number
from refsd.rules import Rule, each, optional, or_empty, record
from refsd.rules import integer as whole
from refsd.rules import number as real


def add_options(parser: Parser) -> None:
    """The options of variations."""
    add = parser.add_argument_group("variations of a seed").add_argument
    add("--variation-seed", "--subseed", type=integer, metavar="N",
        help="whose noise is mixed in; below 0: a new one (the default). Of -b pictures the "
        "variation seed counts up, not the seed")
    add("--variation-strength", "--subseed-strength", type=number, metavar="X", default=0.0,
        help="0 to 1: how much of it (0)")
    add("--seed-resize-from", metavar="WxH",
        help="begin with the noise of a picture of this size in the middle: keeps its composition")


def chosen(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """What the recipe says of it: seed, strength, resize_from (width, height); {} is plain noise.

    Raises UsageError.
    """
    strength = check_number("--variation-strength", options.variation_strength, 0, 1)
    seed, size = options.variation_seed, options.seed_resize_from
    if not strength and seed is not None:
        raise UsageError("--variation-seed says whose noise is mixed in; say how much with "
                         "--variation-strength X too")
    if size is not None:
        sides = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", size)
        size = [int(side) for side in sides.groups()] if sides else []
        if not all(1 <= side <= MAX_SIDE for side in size) or not size:
            raise UsageError(f"--seed-resize-from is {shown(options.seed_resize_from)}; give a "
                             f"width and a height up to {MAX_SIDE}, such as 512x512")
    if not strength and size is None:
        return {}
    if strength and (seed is None or seed < 0):
        import secrets

        seed = secrets.randbits(32)
    if strength:
        check_integer("--variation-seed", seed, 0, 2**64 - count)
    return {"seed": seed if strength else 0, "strength": strength, "resize_from": size}


def seeds(options: argparse.Namespace, count: int) -> list[int]:
    """The seed of each of `count` pictures; UsageError where one would be too large."""
    if options.variation.get("strength"):
        return [check_integer("--seed", options.seed, 0, 2**64 - 1)] * count
    first = check_integer("--seed", options.seed, 0, 2**64 - count)
    return [first + i for i in range(count)]


def nth(recipe: Any, index: int) -> Any:
    """The recipe of the picture after `index` others: the seed counts up, or the variation's."""
    if recipe.variation.get("strength"):
        return replace(recipe, variation={**recipe.variation,
                                          "seed": recipe.variation["seed"] + index})
    return replace(recipe, seed=recipe.seed + index)


def settings(variation: dict[str, Any]) -> dict[str, Any]:
    """What A1111's line says of it."""
    found: dict[str, Any] = {}
    if variation.get("strength"):
        found = {"Variation seed": variation["seed"],
                 "Variation seed strength": f"{variation['strength']:g}"}
    if variation.get("resize_from"):
        found["Seed resize from"] = "{}x{}".format(*variation["resize_from"])
    return found


FIELDS = {"seed": NUMBERS["seed"], "strength": real(0, 1),
          "resize_from": optional(each(whole(1, MAX_SIDE), 2, 2))}
RULE: Rule = or_empty(record(FIELDS))


def first_latents(pipe: Any, recipe: Any, generator: Any) -> Any:
    """The noise to begin with, where the recipe has a variation; else None, for the pipeline's."""
    if not recipe.variation:
        return None
    from refsd.random.variation import varied_noise

    factor, size = pipe.vae_scale_factor, recipe.variation["resize_from"]
    shape = (1, pipe.vae.config.latent_channels, recipe.height // factor, recipe.width // factor)
    inner = None if size is None else (size[1] // factor, size[0] // factor)
    return varied_noise(shape, generator, variation_seed=recipe.variation["seed"],
                        strength=recipe.variation["strength"], resize_from=inner,
                        dtype=pipe.denoiser.dtype)
