"""--init-img and --mask: pictures that a picture is drawn from."""

import argparse
import logging
from pathlib import Path
from typing import Any, NamedTuple

from refsd.cli.arguments import Parser, integer, number
from refsd.errors import ModelError, UsageError
from refsd.pipelines.request import MAX_SIDE, check_integer, check_number, check_side
from refsd.rules import Rule, optional, or_empty, record, that
from refsd.rules import integer as whole
from refsd.rules import number as real

logger = logging.getLogger(__name__)

STRENGTH = 0.75  # sd-cli's and A1111's; diffusers has 0.8, and 1 with a mask
IMAGE_SCALE = 1.5  # diffusers' and A1111's
FILES = ("init_img", "mask")


class Pictures(NamedTuple):
    """PIL's images by what they are for, upright, and what the recipe says of them."""

    images: dict[str, Any]
    recorded: dict[str, Any]


def add_options(parser: Parser) -> None:
    """The options of drawing from a picture."""
    add = parser.add_argument_group("from a picture").add_argument
    add("-i", "--init-img", metavar="PATH",
        help="a PNG, JPEG or WebP to begin with; its size, rounded down to multiples of 8, is the "
        "picture's unless -W and -H say another")
    add("--strength", type=number, metavar="X",
        help="0 to 1: how much of the steps are made, and so how far from --init-img "
        f"({STRENGTH:g}; the Python API has diffusers' 0.8, and 1 with a mask)")
    add("--mask", metavar="PATH", help="draw only where this picture is white, keep the rest")
    add("--mask-padding", metavar="N", type=integer,
        help="draw the part around what --mask paints alone, with N pixels more on each side, and "
        "put it back into --init-img (A1111's Only masked)")
    add("--img-cfg-scale", type=number, metavar="X",
        help=f"how near to --init-img an InstructPix2Pix model stays ({IMAGE_SCALE:g})")


def check(options: argparse.Namespace) -> Pictures | None:
    """The pictures, read; UsageError for what is none, and for options that go with none."""
    asked = {name: getattr(options, name) for name in
             ("init_img", "mask", "strength", "mask_padding", "img_cfg_scale")}
    if asked["init_img"] is None:
        for name in asked:
            if asked[name] is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for drawing from a picture; give "
                                 "--init-img PICTURE too")
        return None
    unused = {"--variation-strength, --seed-resize-from": bool(options.variation),
              "--guidance-rescale": options.guidance_rescale}
    for name, given in unused.items():
        if given:
            raise UsageError(f"{name}: not for drawing from a picture; leave it out")
    strength = STRENGTH if asked["strength"] is None else asked["strength"]
    check_number("--strength", strength, 0, 1)
    scale = asked["img_cfg_scale"]
    if scale is not None:
        check_number("--img-cfg-scale", scale, 1, 1000)
    return read({name: asked[name] for name in FILES if asked[name] is not None},
                {"strength": strength, "img_cfg_scale": scale,
                 "part": _part(asked["mask"], asked["mask_padding"])})


def _part(mask, padding):
    """What the recipe says of a part that is drawn alone; its sizes come with the pictures."""
    if padding is None:
        return None
    if mask is None:
        raise UsageError("--mask-padding is for what a mask paints; give --mask PICTURE too")
    return {"padding": check_integer("--mask-padding", padding, 0, MAX_SIDE)}


def read(files: dict[str, Any], numbers: dict[str, Any]) -> Pictures:
    """The pictures of these files, paths or what read_picture gives of one.

    UsageError for what cannot be drawn from.
    """
    import hashlib

    from refsd.cli.pictures import read_picture

    found, recorded, paths = {}, {"mask": None, **numbers}, {}
    for name, file in files.items():
        picture = read_picture(file) if isinstance(file, str) else file
        path = paths[name] = picture.path
        image = picture.upright()
        for damage in picture.damage:  # of what can be drawn from all the same
            logger.warning("%s: %s", path, damage)
        if image.mode in ("CMYK", "LAB", "HSV", "I", "F"):
            raise UsageError(f"{path}: its pixels are {image.mode}, which a profile would have to "
                             "turn into RGB; save it as RGB")
        if image.has_transparency_data:
            logger.warning("%s: its transparency is not looked at; its colours are taken", path)
            image = image.convert("RGBA").convert("RGB")
        found[name] = image
        recorded[name] = {"file": Path(path).name,
                          "sha256": hashlib.sha256(picture.data).hexdigest()}
    if recorded.get("part"):
        width, height = found["init_img"].size
        if found["mask"].size != (width, height):
            raise UsageError(f"{paths['mask']}: {found['mask'].width} x {found['mask'].height}, "
                             f"{paths['init_img']} is {width} x {height}; --mask-padding needs two "
                             "of one size")
        recorded["part"] = {**recorded["part"], "width": width, "height": height}
    return Pictures(found, recorded)


def of_recipe(recorded: dict[str, Any], options: argparse.Namespace, where: str) -> Pictures | None:
    """A recipe's pictures: those of the options, or of their names beside the picture `where`.

    Raises UsageError where one is missing, or another than the recipe's.
    """
    if not recorded:
        return None
    paths = {}
    for name in FILES:
        option, known, given = f"--{name.replace('_', '-')}", recorded[name], getattr(options, name)
        if known is None:
            continue
        path = Path(where).parent / known["file"]
        if given is None and not path.is_file():
            raise UsageError(f"{where}: drawn from {known['file']!r} (SHA-256 "
                             f"{known['sha256'][:16]}...), which is not beside it. Say with "
                             f"{option} where it is")
        paths[name] = str(path) if given is None else given
    found = read(paths, {name: recorded[name] for name in ("strength", "img_cfg_scale", "part")})
    for name, path in paths.items():
        if found.recorded[name]["sha256"] != recorded[name]["sha256"]:
            raise UsageError(f"{path}: not the file that the picture was drawn from, SHA-256 "
                             f"{recorded[name]['sha256'][:16]}...; say with "
                             f"--{name.replace('_', '-')} where that is")
    return found


def loader(pictures: dict[str, Any], family: Any) -> Any:
    """The class that loads what these pictures are drawn with, as a recipe has them."""
    from refsd.pipelines.auto import class_of

    if not pictures:
        return class_of(family, "text")

    class FromPicture(class_of(family, task_of(pictures))):
        inputs = ("latents", "mask" if pictures["mask"] else "image")

    return FromPicture


def task_of(pictures: dict[str, Any]) -> str:
    """What a family's class is for that draws with a recipe's pictures."""
    return "mask" if pictures["mask"] else "image"


def size(pipe: Any, options: argparse.Namespace, pictures: Pictures | None) -> tuple[int, int]:
    """Width and height: what is asked for, else the first picture's, else the model's own.

    UsageError for a side that is no multiple of the model's: the pipelines round a picture's.
    """
    for name in ("width", "height"):
        if getattr(options, name) is not None:
            check_side(name, getattr(options, name), pipe.multiple)
    own, factor = (pipe.default_size,) * 2, pipe.multiple
    if pictures is not None:
        own = tuple(max(side // factor * factor, factor) for side in
                    pictures.images["init_img"].size)
    return options.width or own[0], options.height or own[1]


def settle(pipe: Any, pictures: Pictures | None, asked: argparse.Namespace) -> dict[str, Any]:
    """What the recipe says of the pictures, of the options those that the model has a use for."""
    if pictures is None:
        return {}
    edits = pipe.denoiser.in_channels == 2 * pipe.vae.config.latent_channels
    scale = pictures.recorded["img_cfg_scale"]
    if edits and asked.strength is not None:
        raise UsageError("--strength: not for InstructPix2Pix models, which begin with noise; "
                         "leave it out")
    if edits and asked.clip_skip is not None:
        raise UsageError("--clip-skip: not for InstructPix2Pix models; leave it out")
    if not edits and scale is not None:
        raise ModelError("--img-cfg-scale: this is no InstructPix2Pix model, which alone has two "
                         "scales; leave it out, or give --strength")
    return {**pictures.recorded, "strength": None if edits else pictures.recorded["strength"],
            "img_cfg_scale": (IMAGE_SCALE if scale is None else scale) if edits else None}


def calls(pipe: Any, pictures: dict[str, Any], steps: int) -> int:
    """How many steps the picture takes; UsageError where the strength leaves none."""
    from refsd.pipelines import stages, starts

    if pictures and pictures["strength"] is not None:
        return len(starts.begin(pipe, pictures["strength"], steps, mu=pipe.own_mu))
    return len(stages.make_schedule(pipe.scheduler, steps, mu=pipe.own_mu))


def draw(pipe: Any, recipe: Any, images: dict[str, Any], **common: Any) -> Any:
    """The latents of a recipe with pictures, as the pipeline of its kind draws them.

    common: what the calls of all pipelines take.
    """
    from refsd.families import of_parts
    from refsd.pipelines.auto import class_of
    from refsd.pipelines.pix2pix import StableDiffusionInstructPix2PixPipeline

    asked, image = recipe.pictures, images["init_img"]
    own = class_of(of_parts(pipe.parts), task_of(asked))
    sides = (recipe.width, recipe.height)
    if asked["mask"] is not None:
        return own.from_pipe(pipe)(
            recipe.prompt, image=image, mask_image=images["mask"], width=sides[0],
            height=sides[1],
            padding_mask_crop=asked["part"] and asked["part"]["padding"],
            strength=asked["strength"], clip_skip=recipe.clip_skip, **common)
    image = image if image.size == sides else _rgb(image).resize(sides, 1)  # Lanczos
    if asked["img_cfg_scale"] is not None:
        made = StableDiffusionInstructPix2PixPipeline.from_pipe(pipe)
        return made(recipe.prompt, image, image_guidance_scale=asked["img_cfg_scale"], **common)
    made = own.from_pipe(pipe)
    if made.resizes:
        common |= dict(zip(("width", "height"), sides))
    return made(recipe.prompt, image=image, strength=asked["strength"],
                clip_skip=recipe.clip_skip, **common)


def put_back(recipe: Any, found: Pictures | None, pixels: Any) -> Any:
    """The whole picture of the part that was drawn, where one was.   (H, W, 3) uint8"""
    part = recipe.pictures.get("part")
    if part is None:
        return pixels
    import numpy as np
    from PIL import Image

    from refsd.pipelines.images import crop_region, overlay

    image, mask = found.images["init_img"], found.images["mask"]
    crop = crop_region(mask, width=recipe.width, height=recipe.height, padding=part["padding"])
    return np.asarray(overlay(mask, image, Image.fromarray(pixels), crop))


def _rgb(image: Any) -> Any:
    from refsd.pipelines.images import rgb

    return rgb(image)


def settings(pictures: dict[str, Any]) -> dict[str, Any]:
    """What A1111's line says of it."""
    named = {"Denoising strength": "strength", "Image CFG scale": "img_cfg_scale"}
    found = {name: f"{pictures[key]:g}" for name, key in named.items()
             if pictures and pictures[key] is not None}
    if pictures.get("part"):
        found |= {"Inpaint area": "Only masked", "Masked area padding": pictures["part"]["padding"]}
    return found


FILE = that(lambda value: isinstance(value, dict) and value.keys() == {"file", "sha256"}
            and all(isinstance(text, str) and text for text in value.values())
            and Path(value["file"]).name == value["file"], "an object of file and sha256")
SIDES = {"padding": whole(0, MAX_SIDE), "width": whole(1, MAX_SIDE), "height": whole(1, MAX_SIDE)}
FIELDS = {"init_img": FILE, "mask": optional(FILE), "strength": optional(real(0, 1)),
          "img_cfg_scale": optional(real(1, 1000)), "part": optional(record(SIDES))}
RULE: Rule = or_empty(record(FIELDS))
