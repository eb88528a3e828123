"""Which pictures a terminal shows: asked of it, never assumed.

Three questions go out at once, and the last, which every terminal answers, ends the waiting:

    kitty's     a picture of one pixel to be checked, not shown: OK where the protocol is spoken
    XTVERSION   the terminal's name, for those known to take iTerm2's inline pictures
    DA1         what it is compatible with: 4 among the numbers is sixel
"""

import os
import re
import select
import struct
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from refsd.cli import graphics

QUESTIONS = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[>q\x1b[c"
SECONDS = 1.0  # for an answer; only a terminal that gives none makes anybody wait so long
ANSWERED = re.compile(rb"\x1b\[\?([\d;]*)c")
INLINE = ("iTerm", "WezTerm")  # how the names begin of terminals with iTerm2's protocol
MUTE = ("", "dumb", "linux")  # values of TERM: no pictures, and one may show the questions


class Screen:
    """A terminal on which pictures are drawn, each over the last one until `leave`."""

    def __init__(self, stream: Any, encode: Callable, cell: tuple[int, int] | None = None):
        self.stream, self.encode, self.cell = stream, encode, cell
        self.place = None  # columns, rows of the picture that is above the cursor

    def show(self, image: Any) -> None:
        """Draw; the cursor stays at the beginning of the line below the picture."""
        place = fitting(image.size, os.get_terminal_size(self.stream.fileno()))
        up = place[1] if place == self.place else 0
        make_room = f"\x1b[{up}A" if up else "\n" * place[1] + f"\x1b[{place[1]}A"
        self.stream.write(f"\r{make_room}\x1b7{self.encode(image, *place, self.cell)}\x1b8"
                          f"\x1b[{place[1]}B\r")
        self.stream.flush()
        self.place = place

    def leave(self) -> None:
        """The next picture comes below whatever has been written meanwhile."""
        self.place = None


def fitting(size: tuple[int, int], terminal: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of a picture: 16 rows or what fits; a character is twice as high as wide."""
    most = terminal[0] or 80, terminal[1] or 24  # 0: it does not say
    rows = max(1, min(16, most[1] - 3))
    columns = max(1, round(2 * rows * size[0] / size[1]))
    if columns > most[0]:
        columns, rows = most[0], max(1, round(most[0] * size[1] / size[0] / 2))
    return columns, rows


def screen(stream: Any, env: Mapping[str, str] = os.environ) -> Screen | None:
    """The stream's terminal, if it is one and shows pictures, or at least colours."""
    if stream is None or not stream.isatty() or env.get("TERM", "") in MUTE:
        return None
    answer = ask(stream)
    encode = protocol(answer, env)
    if encode is not None:
        return Screen(stream, encode, cell_pixels(stream))
    try:
        "\u2580".encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return None
    if env.get("NO_COLOR"):
        return None
    true = env.get("COLORTERM", "") in ("truecolor", "24bit")
    return Screen(stream, partial(graphics.blocks, true=true))


def protocol(answer: bytes, env: Mapping[str, str]) -> Callable | None:
    """The best of the protocols that a terminal says it speaks; None for none."""
    if b"\x1b_Gi=31;OK" in answer:
        return graphics.kitty
    named = re.search(rb"\x1bP>\|([^\x1b]*)", answer)
    name = named[1].decode("ascii", "replace") if named else ""
    if not named and "TMUX" not in env and "STY" not in env:  # their terminal is another's window
        name = env.get("TERM_PROGRAM") or env.get("LC_TERMINAL") or ""
    if name.startswith(INLINE):
        return graphics.iterm2
    compatible = ANSWERED.search(answer)
    return graphics.sixel if compatible and b"4" in compatible[1].split(b";")[1:] else None


def ask(stream: Any) -> bytes:
    """The terminal's answers, empty where it gives none or belongs to another job now."""
    try:
        import termios
        import tty

        fd = os.open(os.ttyname(stream.fileno()), os.O_RDWR | os.O_NOCTTY)
    except (ImportError, OSError):
        return b""
    try:
        if os.tcgetpgrp(fd) != os.getpgrp():  # in the background: to ask would stop us
            return b""
        before = termios.tcgetattr(fd)
        try:
            tty.setcbreak(fd, termios.TCSADRAIN)  # no echo, no waiting for a line; Ctrl-C works
            os.write(fd, QUESTIONS.encode())
            return _read(fd)
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
    except (OSError, termios.error):
        return b""
    finally:
        os.close(fd)


def _read(fd: int) -> bytes:
    answer, until = b"", time.monotonic() + SECONDS
    while not ANSWERED.search(answer) and (left := until - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            answer += os.read(fd, 4096)
    return answer


def cell_pixels(stream: Any) -> tuple[int, int] | None:
    """Width and height of a character in pixels; None where the terminal does not say."""
    try:
        import fcntl
        import termios

        rows, columns, wide, high = struct.unpack("HHHH", fcntl.ioctl(
            stream.fileno(), termios.TIOCGWINSZ, bytes(8)))
    except (ImportError, OSError):
        return None
    return (wide // columns, high // rows) if min(rows, columns, wide, high) > 0 else None
