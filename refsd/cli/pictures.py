"""Picture files: read with suspicion, and no further than what is asked of them."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from refsd.cli.chunks import SIGNATURE, decode, read_chunks
from refsd.errors import UsageError

MAX_FILE = 64 << 20
MAX_SIDE = 4096  # of a picture whose pixels are decoded
FORMATS = ("PNG", "JPEG", "WEBP")
# What Pillow's parsers raise for bytes that nobody should trust.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError,
           OverflowError, struct.error, zlib.error)


@dataclass(frozen=True)
class Picture:
    """A picture file: its format and size, its texts by keyword, and what is wrong with it."""

    path: str
    format: str
    width: int
    height: int
    texts: dict[str, str]
    damage: list[str]
    data: bytes = field(repr=False)

    @cached_property
    def pixels(self) -> Any:
        """(H, W, 3) uint8, decoded when it is asked for.

        Raises UsageError where there are more than 4096 x 4096 or the file is damaged.
        """
        self._require_size()
        import numpy as np

        with _opened(self.path, self.data, self.format) as image:
            return np.asarray(image.convert("RGB"))

    def upright(self) -> Any:
        """PIL's image in its own mode, turned as its EXIF says. Raises as `pixels` does."""
        self._require_size()
        from PIL import ImageOps

        with _opened(self.path, self.data, self.format) as image:
            image.load()
            return ImageOps.exif_transpose(image)

    def _require_size(self):
        if not 1 <= self.width <= MAX_SIDE or not 1 <= self.height <= MAX_SIDE:
            raise UsageError(f"{self.path}: a picture of {self.width} x {self.height}; at most "
                             f"{MAX_SIDE} x {MAX_SIDE} pixels are read")


def read_picture(path: str, formats: tuple[str, ...] = FORMATS) -> Picture:
    """A file of at most 64 MiB; no pixel is decoded.

    Raises UsageError for what is no such picture, ResourceError for a file that cannot be read.
    """
    from refsd.weights.files import read_bytes  # refsd.weights imports NumPy

    return as_picture(path, read_bytes(path, limit=MAX_FILE, error=UsageError), formats)


def as_picture(path: str, data: bytes, formats: tuple[str, ...] = FORMATS) -> Picture:
    """The picture that bytes are; `path` is what errors call it. Raises UsageError for others."""
    kind = _format(data)
    if kind not in formats:
        what = "PNG" if formats == ("PNG",) else "PNG, JPEG or WebP"
        raise UsageError(f"{path}: not a {what} picture. Give one")
    return _png(path, data) if kind == "PNG" else _other(path, data, kind)


def _format(data: bytes) -> str:
    """Of the content: names of files are often wrong."""
    if data[:8] == SIGNATURE and len(data) >= 33 and data[12:16] == b"IHDR":
        return "PNG"
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _png(path: str, data: bytes) -> Picture:
    width, height = struct.unpack(">II", data[16:24])
    texts, exif, damage = read_chunks(data)
    profile = texts.get("Raw profile type exif") or texts.get("Raw profile type APP1")
    if not exif and profile is not None:  # ImageMagick's: a name, a length, and hexadecimal digits
        try:
            exif = bytes.fromhex("".join(profile.split()[2:]))
        except ValueError:
            damage.append("its EXIF cannot be read")
    return Picture(path, "PNG", width, height, {**_exif(exif, damage), **texts}, damage, data)


def _other(path: str, data: bytes, kind: str) -> Picture:
    damage: list[str] = []
    with _opened(path, data, kind) as image:
        texts = _exif(image.info.get("exif", b""), damage)
        width, height = image.size
        for key in ("comment", "xmp"):
            value = image.info.get(key)
            if value:
                texts[key] = decode(value) if isinstance(value, bytes) else str(value)
    return Picture(path, kind, width, height, texts, damage, data)


def _exif(block: bytes, damage: list[str]) -> dict[str, str]:
    if not block:
        return {}
    from PIL import Image

    from refsd.cli.exif import read_exif

    exif = Image.Exif()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            exif.load(block)
            return read_exif(exif)
    except DAMAGED:
        damage.append("its EXIF cannot be read")
        return {}
    finally:
        damage += [f"its EXIF: {warning.message}" for warning in caught]


@contextmanager
def _opened(path: str, data: bytes, kind: str) -> Iterator[Any]:
    """Pillow's image within the block; what is wrong with the file is one UsageError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd chunks, which do not concern us
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                yield image
    except (*DAMAGED, Image.DecompressionBombError) as error:
        name = {"WEBP": "WebP"}.get(kind, kind)
        if isinstance(error, UnidentifiedImageError):  # its words are of an object of Python's
            error = "its beginning is missing"
        raise UsageError(f"{path}: a damaged {name}: {error}. Fetch or save it again") from None
