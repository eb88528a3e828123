"""PNG files: pictures with two texts in them, written whole, and read with suspicion."""

import io
from collections.abc import Mapping
from typing import Any

from refsd.cli.pictures import Picture, read_picture


def encode_png(pixels: Any, texts: Mapping[str, str]) -> bytes:
    """The bytes of a PNG.   pixels (H, W, 3) uint8 or a PIL image, texts by keyword

    Texts are tEXt, or iTXt where they are not ASCII: there everybody reads the same letters.
    """
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        (chunks.add_text if text.isascii() else chunks.add_itxt)(keyword, text)
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def read_png(path: str) -> Picture:
    """A PNG of at most 4096 x 4096 pixels and 64 MiB, decoded.

    The size is read from the header and checked before any pixel is decoded. Raises UsageError for
    what is no such file, ResourceError for one that cannot be read.
    """
    picture = read_picture(path, ("PNG",))
    _ = picture.pixels  # what is wrong with them is to be said here
    return picture
