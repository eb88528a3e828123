"""--control-net and --control-image: pictures that ControlNets read while a picture is drawn."""

import argparse
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from refsd.cli import pictures_in
from refsd.cli.arguments import Parser, number
from refsd.errors import UsageError
from refsd.pipelines.request import check_number
from refsd.rules import Rule, boolean, each, matching, or_empty, record, text
from refsd.rules import number as real

STRENGTH = 0.9  # sd-cli's; diffusers has 1, A1111 too
LARGEST = 100
HEX = re.compile("[0-9a-f]{64}")
NAMED = record({"file": text(255), "sha256": matching(HEX, "64 hexadecimal digits")})
NETS = each(record({"net": NAMED, "image": pictures_in.FILE, "strength": real(-LARGEST, LARGEST),
                    "start": real(0, 1), "end": real(0, 1)}), 1, 16)
RULE: Rule = or_empty(record({"nets": NETS, "guess_mode": boolean}))


def add_options(parser: Parser) -> None:
    """The options of ControlNets."""
    add = parser.add_argument_group("with ControlNets").add_argument
    several = {"action": "append", "default": []}
    add("--control-net", metavar="PATH", **several,
        help="a ControlNet: a folder, a .safetensors file, a model id; may be repeated, and so may "
        "what follows")
    add("--control-image", metavar="PATH", **several,
        help="what it reads, such as edges: a PNG, JPEG or WebP of the picture's size, which is "
        "this one's unless -W and -H say another")
    add("--control-strength", type=number, metavar="X", **several,
        help=f"how much of it is added ({STRENGTH:g}; the Python API has diffusers' 1)")
    add("--control-start", type=number, metavar="X", **several,
        help="0 to 1: from which part of the steps on (0)")
    add("--control-end", type=number, metavar="X", **several, help="up to which part (1)")
    add("--control-guess", action="store_true",
        help="leave the negative prompt's half alone, and add less to the first layers: diffusers' "
        "guess_mode")


class Control:
    """The ControlNets of a run: what is asked of each, their pictures, and the networks."""

    def __init__(self, places: list[str], images: list[pictures_in.Pictures],
                 numbers: list[dict[str, float]], guess_mode: bool):
        self.places, self.images = places, [one.images["control"] for one in images]
        self.guess_mode, self.nets = guess_mode, []
        self._recorded = [{"image": one.recorded["control"], **own}
                          for one, own in zip(images, numbers)]

    def load(self, pipe: Any, options: argparse.Namespace) -> None:
        """Load the networks for a pipeline."""
        from refsd.pipelines.control import check_nets
        from refsd.pipelines.controlnet import ControlNet

        pipe.require("ControlNet")
        nets = {place: ControlNet.from_pretrained(
            place, backend=pipe.backend, dtype=options.dtype, weights=options.weights,
            exact=options.exact, download=options.download) for place in dict.fromkeys(self.places)}
        self.nets = check_nets(pipe, [nets[place] for place in self.places])

    def recorded(self) -> dict[str, Any]:
        """What the recipe says of all this."""
        hashes = {place: digest(place) for place in dict.fromkeys(self.places)}
        nets = [{"net": {"file": _name(place), "sha256": hashes[place]}, **own}
                for place, own in zip(self.places, self._recorded)]
        return {"nets": nets, "guess_mode": self.guess_mode}

    def put_on(self, pipe: Any, recipe: Any) -> None:
        """Have the pipeline's drawings read the pictures, in the size of a recipe."""
        from refsd.pipelines import control

        numbers = ([one[key] for one in recipe.control["nets"]]
                   for key in ("strength", "start", "end"))
        wishes = control.check_wishes(self.nets, *numbers, recipe.control["guess_mode"])
        images = self.images if len(self.nets) > 1 else self.images[0]
        pictures = control.pictures(self.nets, images, pipe.vae_scale_factor,
                                    name="--control-image", height=recipe.height,
                                    width=recipe.width)
        pipe.controlled = control.Asked(self.nets, pictures, wishes, images=images)


def check(options: argparse.Namespace) -> Control | None:
    """What is asked for, its pictures read; UsageError for what does not fit together."""
    places, images = options.control_net, options.control_image
    given = {name: getattr(options, f"control_{name}") for name in ("strength", "start", "end")}
    if not places:
        for name in ("image", *given, "guess"):
            if getattr(options, f"control_{name}"):
                raise UsageError(f"--control-{name} is for ControlNets; give --control-net PATH "
                                 "too")
        return None
    if len(images) != len(places):
        raise UsageError(f"{len(places)} --control-net and {len(images)} --control-image; give "
                         "each a picture")
    if options.mask_padding is not None:
        raise UsageError("--mask-padding draws a part of the picture, and --control-image is of "
                         "all of it; leave one out")
    columns = []
    for (name, values), usual, low, high in zip(given.items(), (STRENGTH, 0.0, 1.0),
                                                (-LARGEST, 0, 0), (LARGEST, 1, 1)):
        if len(values) not in (0, 1, len(places)):
            raise UsageError(f"--control-{name} is given {len(values)} times for {len(places)} "
                             "ControlNets; give it once, or once for each")
        values = (values or [usual]) * (len(places) if len(values) < 2 else 1)
        columns.append([check_number(f"--control-{name}", value, low, high) for value in values])
    numbers = [dict(zip(given, row)) for row in zip(*columns)]
    for one in numbers:
        if one["start"] >= one["end"]:
            raise UsageError(f"--control-start is {one['start']:g} and --control-end "
                             f"{one['end']:g}; give a start before the end")
    read = [pictures_in.read({"control": path}, {}) for path in images]
    return Control(places, read, numbers, options.control_guess)


def of_recipe(recorded: dict[str, Any], options: argparse.Namespace, where: str) -> Control | None:
    """A recipe's ControlNets, at the places that the options give in the recipe's order.

    Their pictures are those of the options, or of their names beside the picture `where`. Raises
    UsageError where one is missing, or another than the recipe's.
    """
    if not recorded:
        return None
    nets = recorded["nets"]
    told = ", ".join(one["net"]["file"] for one in nets)
    if len(options.control_net) != len(nets) or options.control_image and (
            len(options.control_image) != len(nets)):
        raise UsageError(f"{where}: drawn with the ControlNets {told}. Say with --control-net "
                         "where each is, in this order, and with --control-image where the "
                         "pictures are, if not beside it")
    images = options.control_image or [str(Path(where).parent / one["image"]["file"])
                                       for one in nets]
    read = [pictures_in.read({"control": path}, {}) for path in images]
    for one, picture, place, path in zip(nets, read, options.control_net, images):
        if picture.recorded["control"]["sha256"] != one["image"]["sha256"]:
            raise UsageError(f"{path}: not the file that the picture was drawn with, SHA-256 "
                             f"{one['image']['sha256'][:16]}...; say with --control-image where "
                             "that is")
        if digest(place, download=options.download) != one["net"]["sha256"]:
            raise UsageError(f"{place}: not the ControlNet that the picture was drawn with, "
                             f"{one['net']['file']} of SHA-256 {one['net']['sha256'][:16]}...; say "
                             "with --control-net where that is")
    numbers = [{key: one[key] for key in ("strength", "start", "end")} for one in nets]
    return Control(options.control_net, read, numbers, recorded["guess_mode"])


def digest(place: str, *, download: bool = False) -> str:
    """The SHA-256 of a ControlNet's file; of several that of their SHA-256s, a line each."""
    from refsd.pipelines.identity import part_files, sha256
    from refsd.weights import resolve

    folder = resolve(place, download=download, parts=("controlnet",))
    found = [sha256(path) for path in part_files(folder, "controlnet", None)]
    if len(found) == 1:
        return found[0]
    return hashlib.sha256("".join(f"{one}\n" for one in found).encode()).hexdigest()


def _name(place: str) -> str:
    return os.path.basename(os.path.normpath(place)) if os.path.exists(place) else place


def size(control: Control | None, pipe: Any, options: argparse.Namespace,
         otherwise: tuple[int, int]) -> tuple[int, int]:
    """Width and height: what is asked for or begun with, else the first control picture's."""
    if control is None or options.init_img is not None:
        return otherwise
    factor = pipe.vae_scale_factor
    own = [max(side // factor * factor, factor) for side in control.images[0].size]
    return options.width or own[0], options.height or own[1]


def settings(control: dict[str, Any]) -> dict[str, str]:
    """What A1111's line says of it."""
    mode = "ControlNet is more important" if control.get("guess_mode") else "Balanced"
    return {f"ControlNet {i}": ", ".join((
        "Module: none", f"Model: {Path(one['net']['file']).stem} [{one['net']['sha256'][:8]}]",
        f"Weight: {one['strength']:g}", f"Guidance Start: {one['start']:g}",
        f"Guidance End: {one['end']:g}", f"Control Mode: {mode}"))
        for i, one in enumerate(control.get("nets", []))}


def in_words(control: dict[str, Any]) -> str:
    """For reading."""
    return ", ".join(f"{one['net']['file']} {one['strength']:g} of {one['image']['file']}" + (
        f" ({one['start']:g} to {one['end']:g})" if (one["start"], one["end"]) != (0, 1) else "")
        for one in control["nets"])
