"""PNG files: pictures with two texts in them, written whole, and read with suspicion."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd.errors import ResourceError, UsageError

MAX_FILE = 64 << 20
MAX_SIDE = 4096
TEXT_BYTES = 1 << 20  # of one text chunk; Pillow itself refuses more, and 64 MB in all


class Picture(NamedTuple):
    """A PNG file: its size, its texts by keyword, and its pixels (H, W, 3) uint8."""

    width: int
    height: int
    texts: dict[str, str]
    pixels: Any


def encode_png(pixels: Any, texts: Mapping[str, str]) -> bytes:
    """The bytes of a PNG.   pixels (H, W, 3) uint8, texts by keyword"""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        chunks.add_text(keyword, text)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def read_png(path: str) -> Picture:
    """A PNG of at most 4096 x 4096 pixels and 64 MiB.

    The size is read from the header and checked before any pixel is decoded. Raises UsageError for
    what is no such file, ResourceError for one that cannot be read.
    """
    data = _read(path)
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33 or data[12:16] != b"IHDR":
        raise UsageError(f"{path}: not a PNG picture. Only PNG files can be read")
    width, height = struct.unpack(">II", data[16:24])
    if not 1 <= width <= MAX_SIDE or not 1 <= height <= MAX_SIDE:
        raise UsageError(f"{path}: a picture of {width} x {height}; at most {MAX_SIDE} x "
                         f"{MAX_SIDE} pixels are read")
    import numpy as np
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            warnings.simplefilter("ignore")  # of odd chunks, which do not concern us
            pixels = np.asarray(image.convert("RGB"))
            texts = {key: str(text) for key, text in image.text.items()}
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error,
            Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: a damaged PNG: {error}. Fetch or save it again") from None
    return Picture(width, height, texts, pixels)


def _read(path: str) -> bytes:
    """The bytes of an ordinary file, opened without waiting for anybody."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
                             | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            if not os.path.isfile(descriptor):
                raise UsageError(f"{path}: not an ordinary file")
            if size > MAX_FILE:
                raise UsageError(f"{path}: {size:,} bytes; at most {MAX_FILE:,} are read")
            return file.read(MAX_FILE)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a folder; give a PNG file") from None
    except UsageError:
        raise
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"{path!r}: not a file name") from None
