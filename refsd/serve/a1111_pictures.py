"""The picture of img2img and its mask, as A1111 means them."""

import base64
import io
from collections.abc import Mapping
from typing import Any

from refsd.errors import UsageError
from refsd.rules import integer, that
from refsd.serve import asked
from refsd.serve.a1111_bodies import as_said, field, require
from refsd.serve.models import Model

FIXED = {"initial_noise_multiplier": ((None, 1), "refsd takes the noise as it is"),
         "latent_mask": ((None,), "give mask")}
BLUR = "refsd blurs no masks: the edge is where the mask has it"
MASK = {"mask_blur": ((None, 0, 4), BLUR), "mask_blur_x": ((None, 0, 4), BLUR),
        "mask_blur_y": ((None, 0, 4), BLUR),
        "mask_round": ((None, True), "refsd draws a pixel or keeps it"),
        "inpainting_fill": ((None, 0, 1), "refsd draws over what the picture has there")}
FIELDS = ("init_images", "include_init_images", "resize_mode", "image_cfg_scale", "mask",
          "inpaint_full_res", "inpaint_full_res_padding", "inpainting_mask_invert", *FIXED, *MASK)
flag = that(lambda value: value in (0, 1), "True or False")  # 1 and 0 are, too


def read(body: Mapping[str, Any], model: Model, notes: list[str]) -> dict[str, Any]:
    """The fields of refsd.serve.asked; notes takes a line for what has no effect.

    Raises UsageError, which names a field.
    """
    require(body, FIXED)
    images = body.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        many = len(images) if isinstance(images, list) else 0
        raise UsageError(f"init_images: {many} pictures; give a list of one")
    found = {"init_image": images[0]}
    _require_size(body, images[0])
    numbers = {name: as_said(body[name]) for name in ("denoising_strength", "image_cfg_scale")
               if name in body}
    if model.takes == "image":
        if "denoising_strength" in numbers:
            notes.append(f"denoising_strength: {model.id} begins with noise alone")
        if "image_cfg_scale" in numbers:
            found["img_cfg_scale"] = numbers["image_cfg_scale"]
    elif "denoising_strength" in numbers:
        found["strength"] = numbers["denoising_strength"]
    return {**found, **_mask(body, notes)} if "mask" in body else found


def _require_size(body, image):
    """A1111's other ways of resizing are the same where there is nothing to resize."""
    mode = field(body, "resize_mode", 0, integer(0, 3))
    if mode == 0:
        return
    picture = asked.read_picture("init_images[0]", image)
    sides = tuple(body.get(name, own) for name, own in (("width", picture.width),
                                                        ("height", picture.height)))
    if mode == 3 or sides != (picture.width, picture.height):
        raise UsageError(f"resize_mode is {mode}, and init_images[0] is {picture.width} x "
                         f"{picture.height}; give 0, which resizes, or a picture of the size that "
                         "is asked for")


def _mask(body, notes):
    require(body, MASK)
    if any(body.get("mask_blur", body.get(f"mask_blur_{axis}", 4)) for axis in "xy"):
        notes.append(f"mask_blur: {BLUR}")
    if body.get("inpainting_fill", 0) == 0:
        notes.append("inpainting_fill: 0 is as 1, drawn over what the picture has there")
    inverted = field(body, "inpainting_mask_invert", False, flag)
    found = {"mask": painted(body["mask"], bool(inverted))}
    padding = field(body, "inpaint_full_res_padding", 0, integer(0, 4096))
    return {**found, "mask_padding": padding} if field(body, "inpaint_full_res", True, flag) \
        else found


def painted(mask: str, inverted: bool) -> str:
    """The mask, white where it is to be drawn: of one with clear parts those that are not clear.

    A mask that is so already stays as it is, byte for byte.
    """
    from PIL import ImageOps

    image = asked.read_picture("mask", mask).upright()
    clear = image.mode == "RGBA" and image.getextrema()[3] != (255, 255)
    if not clear and not inverted:
        return mask
    grey = image.getchannel("A").point([255 * (value > 128) for value in range(256)]) if clear \
        else image.convert("L")
    file = io.BytesIO()
    (ImageOps.invert(grey) if inverted else grey).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
