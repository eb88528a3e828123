"""Bytes that lie in a file as base64 text, read like those of a file."""

import binascii
import io
from typing import Any, BinaryIO

from refsd.errors import damaged

STEP = 1 << 16  # characters that are decoded at once, a multiple of 4


class Base64File(io.RawIOBase):
    """The bytes of `length` characters of base64 from `start` on, in the order they stand in.

    Reading raises ModelError where they are no base64.
    """

    def __init__(self, file: BinaryIO, start: int, length: int):
        self._file, self._left = file, length
        self._ready = memoryview(b"")
        file.seek(start)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As many bytes as are ready, 0 at the end."""
        if not self._ready and self._left:
            self._ready = memoryview(self._decoded())
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _decoded(self) -> bytes:
        text = b""
        wanted = min(STEP, self._left)
        while len(text) < wanted and (part := self._file.read(wanted - len(text))):
            text += part
        self._left -= wanted
        try:
            return binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error as error:
            raise damaged(f"{self._file.name}: no base64: {error}") from None


def decoded_size(file: BinaryIO, start: int, length: int) -> int:
    """How many bytes base64 of so many characters is: its last two may be padding."""
    file.seek(start + max(0, length - 2))
    return length // 4 * 3 - (file.read(min(2, length)) or b"").count(b"=")
