"""A request for pictures, checked: as the options of `refsd draw` that would draw the same."""

import argparse
import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from refsd.arguments import nearest, shown
from refsd.cli import adapters, draw, hires, recipe, sampler_names
from refsd.cli.pictures import Picture, as_picture
from refsd.cli.requests import checked, named
from refsd.errors import UsageError
from refsd.families.inputs import INPUTS
from refsd.pipelines.request import MAX_SIDE, NUMBERS, check_choice, check_side
from refsd.rules import Rule, integer, number
from refsd.serve.models import Model


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, how many may wait, and how long what is finished is known."""

    queue: int = 16
    batch: int = 8
    steps: int = 150
    pixels: int = 4 << 20  # of a picture
    least: int = 64  # of a side, in pixels
    side: int = 2048
    prompt: int = 10_000  # characters
    loras: int = 16  # in one request
    kept: float = 600.0  # seconds
    history: int = 100  # finished jobs


PICTURES = ("init_image", "mask")
TAKEN = {"image": ("init_image",), "mask": PICTURES}  # by models that draw from no text alone
TEXTS = ("prompt", "negative_prompt", "model", "sampler", "schedule", "rng", "compat",
         "seed_resize_from", "hires_upscaler", *PICTURES)
REALS = ("cfg_scale", "guidance_rescale", "eta", "variation_strength", "strength", "img_cfg_scale",
         "hires_scale", "hires_denoising")  # which a recipe writes as such
CHOICES = {"rng": recipe.RNGS, "schedule": tuple(sampler_names.SCHEDULES),
           "hires_upscaler": tuple(hires.NAMES)}
# Fields whose option has another name.
OPTIONS = {"init_image": "init_img", "count": "batch_count"}
FIELD_OF = {option.replace("_", "-"): name for name, option in OPTIONS.items()}
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")


def rules(limits: Limits) -> dict[str, Rule]:
    """Of the fields that are numbers."""
    side = integer(limits.least, limits.side)
    return {
        **{name: NUMBERS[name] for name in ("cfg_scale", "guidance_rescale", "eta", "clip_skip")},
        "seed": integer(-1, 2**64 - 1), "variation_seed": integer(-1, 2**64 - 1),
        "variation_strength": number(0, 1), "width": side, "height": side,
        "steps": integer(1, limits.steps), "count": integer(1, limits.batch),
        "strength": number(0, 1), "img_cfg_scale": number(1, 1000),
        "mask_padding": integer(0, MAX_SIDE), "hires_scale": number(1, hires.LARGEST),
        "hires_steps": integer(1, limits.steps), "hires_denoising": number(0, 1),
        "preview": integer(0, 1000),
    }


FIELDS = (*TEXTS, "loras", *rules(Limits()))


class Asked(NamedTuple):
    """What is to be drawn: the model's id, the prompt without tags, the options of `refsd draw`.

    preview: after how many steps each the picture so far is to be seen, 0 for never. said: the
    request's fields without its pictures. warnings: what is odd about the pictures.
    """

    model: str
    prompt: str
    options: argparse.Namespace
    preview: int
    said: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many pictures."""
        return self.options.batch_count


@cache
def defaults() -> argparse.Namespace:
    """The options of `refsd draw` without any; nobody changes them."""
    return draw.parser().parse_args([])


def read(said: Mapping[str, Any], models: Mapping[str, Model], loras: Mapping[str, str],
         limits: Limits, base: argparse.Namespace | None = None) -> Asked:
    """The request of these fields (FIELDS), with `base` for what no request says.

    models and loras by the names that a request may give, the first model the default. Raises
    UsageError, which names the field.
    """
    if not isinstance(said, Mapping):
        raise UsageError(f"the request is {shown(said)}; give an object of fields")
    try:
        return _read(said, models, loras, limits, base or defaults())
    except UsageError as problem:
        raise UsageError(in_fields(str(problem))) from None


def in_fields(message: str) -> str:
    """An error of the command line, its options called as the fields are."""
    return OPTION.sub(lambda found: FIELD_OF.get(found[1], found[1].replace("-", "_")), message)


def _read(said, models, loras, limits, base):
    found = named(said, FIELDS)
    listed = found.pop("loras", [])
    for name in ("prompt", "negative_prompt"):
        if isinstance(found.get(name), str) and len(found[name]) > limits.prompt:
            raise UsageError(f"{name} has {len(found[name]):,} characters; give at most "
                             f"{limits.prompt:,}")
    found = {name: float(value) if name in REALS else value
             for name, value in checked(found, rules(limits)).items()}
    for name, choices in CHOICES.items():
        if name in found:
            check_choice(name, found[name], choices)
    if "prompt" not in found:
        raise UsageError("there is no prompt; give one")
    model = _model(found.pop("model", None), models)
    prompt, tagged = adapters.of_tags(found.pop("prompt"),
                                      lambda name, tag: _lora(name, loras, f"prompt: {tag[:100]}"))
    chosen = [*_loras(listed, loras, limits), *tagged]
    paths = [one["path"] for one in chosen]
    if twice := [name for name, path in loras.items() if paths.count(path) > 1]:
        raise UsageError(f"loras: {twice[0]} is given twice; give it once")
    pictures = {name: read_picture(name, found.pop(name)) for name in PICTURES if name in found}
    _require_taken(model, pictures)
    preview = found.pop("preview", 1)
    if len(chosen) > limits.loras:
        raise UsageError(f"loras: {len(chosen)} are asked for; give at most {limits.loras}")

    values = {OPTIONS.get(name, name): value for name, value in {**found, **pictures}.items()}
    options = argparse.Namespace(**{
        **vars(base), **values, "words": None, "prompt": prompt, "model": model.path,
        "lora": [], "lora_dir": None, "adapters": chosen, "prompts": None, "preview": None})
    draw.check(options)
    _check_size(options, model, limits)
    kept = {name: value for name, value in said.items() if name not in PICTURES}
    return Asked(model.id, prompt, options, preview, kept)


def _require_taken(model, pictures):
    """Refuse a request without the pictures that its model reads; only one for texts does with any.
    """
    wanted = TAKEN.get(model.takes, pictures)
    if {*pictures} != {*wanted}:
        raise UsageError(f"model {model.id} is {INPUTS[model.takes][0]}; give "
                         f"{' and '.join(wanted)}, and no other picture")


def _model(name, models):
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise UsageError(f"model is {shown(name)}, which this server was not started with; "
                         + nearest(name, models, f"give one of {', '.join(models)}"))
    return models[name]


def _loras(listed, loras, limits):
    """The path and the weights of each of the list."""
    if not isinstance(listed, list) or len(listed) > limits.loras:
        raise UsageError(f"loras is {shown(listed)}; give a list of at most {limits.loras}, such "
                         'as [{"name": "NAME", "weight": 0.8}]')
    found = []
    for at, one in enumerate(listed):
        where = f"loras[{at}]"
        if not isinstance(one, dict) or not isinstance(one.get("name"), str) \
                or set(one) - {"name", "weight"}:
            raise UsageError(f'{where} is {shown(one)}; give {{"name": "NAME", "weight": 0.8}}')
        weight = checked({"weight": one.get("weight", 1)},
                         {"weight": number(-adapters.LARGEST, adapters.LARGEST)})["weight"]
        found.append({"path": _lora(one["name"], loras, where),
                      **dict.fromkeys(("unet", "text_encoder"), float(weight))})
    return found


def _lora(name, loras, where):
    """The file of a name, which is only ever looked up."""
    if name not in loras:
        raise UsageError(f"{where}: this server has no LoRA {shown(name)}; " + nearest(
            name, loras, "GET /api/v1/about lists them" if loras else "leave it out"))
    return loras[name]


def read_picture(name: str, text: Any) -> Picture:
    """The picture of base64 or a data: URL; nothing is fetched from anywhere. UsageError."""
    if not isinstance(text, str):
        raise UsageError(f"{name} is {shown(text)}; give a text")
    head, comma, data = text.partition(",") if text.startswith("data:") else ("", "", text)
    if head and not (comma and head.endswith(";base64")):
        raise UsageError(f"{name} is {shown(text[:60])}; give a data: URL in base64")
    try:
        content = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(f"{name} is {shown(text[:60])}; give a PNG, JPEG or WebP in base64, or "
                         "as a data: URL; no other URL is read") from None
    return as_picture(name, content)


def _check_size(options, model, limits):
    """Refuse a picture that is too large, of whatever its size follows from."""
    factor, where = model.multiple, "the model's own size"
    own = (model.width, model.height)
    for name in ("width", "height"):
        if getattr(options, name) is not None:
            check_side(name, getattr(options, name), factor)
    if options.pictures is not None:
        where = "init_image"
        own = tuple(max(side // factor * factor, factor)
                    for side in options.pictures.images["init_img"].size)
    size = options.width or own[0], options.height or own[1]
    if options.width and options.height:
        where = "width and height"
    if options.hires_scale is not None:
        where, size = "hires_scale", tuple(int(side * options.hires_scale) for side in size)
    width, height = size
    if not all(limits.least <= side <= limits.side for side in size) \
            or width * height > limits.pixels:
        raise UsageError(f"{where}: a picture of {width} x {height}; give sides from "
                         f"{limits.least} to {limits.side} and at most {limits.pixels:,} pixels")
