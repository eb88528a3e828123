"""The texts in a PNG's chunks, read as the programs that write them write them.

PNG says that tEXt and zTXt are Latin-1. stable-diffusion.cpp and others put UTF-8 there, and a text
that is valid UTF-8 and not ASCII is hardly ever anything else.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_BYTES = 8 << 20  # of one compressed text, unpacked


class Texts(NamedTuple):
    """Texts by keyword, the EXIF block if there is one, and what was wrong, in words."""

    texts: dict[str, str]
    exif: bytes
    damage: list[str]


def read_chunks(data: bytes) -> Texts:
    """All texts of a PNG, those after the pixels too, as far as the file goes.

    A keyword that comes again keeps its last text, as in Pillow; the earlier ones are kept as
    "KEYWORD (1)", "KEYWORD (2)".
    """
    by_keyword, exif, damage = {}, b"", []
    for kind, body in _chunks(data, damage):
        if kind == b"eXIf":
            exif = body
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            try:
                keyword, text = _text(kind, body)
            except (ValueError, zlib.error) as error:
                damage.append(f"a text cannot be read: {error}")
                continue
            by_keyword.setdefault(keyword, []).append(text)
    texts = {}
    for keyword, versions in by_keyword.items():
        texts[keyword] = versions[-1]
        others = [text for text in dict.fromkeys(versions) if text != versions[-1]]
        texts.update({f"{keyword} ({i})": text for i, text in enumerate(others, 1)})
    return Texts(texts, exif, damage)


def decode(text: bytes) -> str:
    """Bytes of a declared or guessed encoding: UTF-8 where they are valid UTF-8, else Latin-1."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _chunks(data: bytes, damage: list[str]) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each whole chunk up to IEND; says in `damage` why it ended before."""
    start = len(SIGNATURE)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            break
        body = data[start + 8:end - 4]
        if zlib.crc32(data[start + 4:end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            damage.append("a checksum is wrong")
        yield kind, body
        if kind == b"IEND":
            return
        start = end
    damage.append("it ends too early")


def _text(kind: bytes, body: bytes) -> tuple[str, str]:
    """Keyword and text; ValueError or zlib.error for what is none."""
    keyword, zero, text_bytes = body.partition(b"\0")
    if not zero:
        raise ValueError("it has no keyword")
    if kind == b"zTXt":
        text_bytes = _unpack(text_bytes[1:])
    elif kind == b"iTXt":
        packed = text_bytes[:1] == b"\1"
        _, _, text_bytes = text_bytes[2:].partition(b"\0")  # the language
        _, _, text_bytes = text_bytes.partition(b"\0")  # the keyword in that language
        text_bytes = _unpack(text_bytes) if packed else text_bytes
    return keyword.decode("latin-1"), decode(text_bytes)


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, TEXT_BYTES)
    if unpacker.unconsumed_tail:
        raise ValueError(f"it is larger than {TEXT_BYTES >> 20} MiB")
    return unpacked
