"""The texts in EXIF, where JPEG and WebP files have what PNG files say in chunks."""

import re
from typing import Any

from refsd.cli.chunks import decode

TAGS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software",
        0x9C9B: "XPTitle", 0x9C9C: "XPComment", 0x9C9E: "XPKeywords", 0x9C9F: "XPSubject"}
IFD, IFD_TAGS = 0x8769, {0x927C: "MakerNote", 0x9286: "UserComment"}
# ComfyUI puts two JSON texts into tags that happen to be free: `prompt:{...}`, `workflow:{...}`.
_NAMED = re.compile(r"(prompt|workflow):\s*(?=[{\[])", re.IGNORECASE)


def read_exif(exif: Any) -> dict[str, str]:
    """The texts by the name of their tag.   exif: Pillow's, or an empty one"""
    little = exif.endian == "<"
    values = {name: exif.get(tag) for tag, name in TAGS.items()}
    inner = exif.get_ifd(IFD)
    values |= {name: inner.get(tag, exif.get(tag)) for tag, name in IFD_TAGS.items()}
    texts = {}
    for name, value in values.items():
        text = _text(name, value, little)
        named = _NAMED.match(text)
        if named:
            texts[named[1].lower()] = text[named.end():]
        elif text:
            texts[name] = text
    return texts


def decode_comment(value: bytes, little: bool) -> str:
    """A UserComment: eight bytes that name the encoding, and the text.

    UNICODE is UTF-16 in the byte order that the text itself shows; only where it shows none, in
    that of the file: A1111 writes the larger byte first into files of either order.
    """
    prefix, text = value[:8].upper(), value[8:]
    if prefix == b"UNICODE\0":
        return _utf16(text, little)
    if prefix == b"JIS\0\0\0\0\0":
        for encoding in ("iso2022_jp_ext", "shift_jis", "euc_jp"):
            try:
                return text.decode(encoding)
            except UnicodeDecodeError:
                continue
        return decode(text)
    if prefix == b"ASCII\0\0\0":
        return decode(text)
    if prefix == bytes(8):
        value = text
    return _utf16(value, little) if _zeros(value) else decode(value)


def _text(name: str, value: Any, little: bool) -> str:
    if isinstance(value, tuple):  # of bytes, one number each
        value = bytes(number & 255 for number in value if isinstance(number, int))
    if isinstance(value, str):  # Pillow took it for Latin-1
        value = value.encode("latin-1", "replace")
    if not isinstance(value, bytes):
        return ""
    if name.startswith("XP"):
        text = value.decode("utf-16-le", "replace")
    elif name == "UserComment":
        text = decode_comment(value, little)
    else:
        text = decode(value)
    return text.strip("\0").strip()


def _utf16(text: bytes, little: bool) -> str:
    """UTF-16 by its mark, else by where the zeros of its Latin letters lie; UTF-8 if by neither."""
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", "replace")
    first, second = text[::2].count(0), text[1::2].count(0)
    if not _zeros(text.rstrip(b"\0")) and first == second:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            pass
    if first != second:
        little = second > first
    return text.decode("utf-16-le" if little else "utf-16-be", "replace")


def _zeros(text: bytes) -> bool:
    """Whether every fourth byte or more is zero, as in UTF-16 of mostly Latin letters."""
    return text.count(0) * 4 > len(text)
