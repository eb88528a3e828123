"""The pictures that refsd drew into a folder, newest first, and nothing else that lies there."""

import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from refsd.cli.infotext import parse_infotext
from refsd.cli.pictures import MAX_FILE, as_picture
from refsd.cli.recipe import KEYWORD, parse_recipe
from refsd.errors import UsageError
from refsd.serve.refusals import Refused

MAX_HEAD = 4 << 20  # what a file has before its pixels: its texts
KNOWN = 100_000  # pictures of which it is remembered what they say
# Neither a link nor a pipe that nobody writes into, whatever took a file's place since it was seen.
FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) \
    | getattr(os, "O_BINARY", 0)


class Entry(NamedTuple):
    """What a picture says of itself; `seed` is None and `pixels` empty where that is damaged."""

    name: str
    seed: int | None
    prompt: str
    width: int
    height: int
    pixels: str


class Gallery:
    """The PNGs with a recipe of refsd that lie in a folder, which others may change at any time."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._known: dict[str, tuple[tuple[int, int], Entry | None]] = {}
        self._lock = threading.Lock()

    def page(self, limit: int, before: str | None = None) -> tuple[list[Entry], bool]:
        """The newest pictures, or those older than the one called `before`; whether there are more.

        Refused (404) for a `before` that was never listed.
        """
        with self._lock:
            if len(self._known) > KNOWN:
                self._known.clear()
            files = sorted(self._files(), reverse=True)
            if before is not None:
                files = [file for file in files if file[:2] < self._place(before, files)]
            entries = (self._entry(*file) for file in files)
            found = list(islice(filter(None, entries), limit + 1))
        return found[:limit], len(found) > limit

    def read(self, name: str) -> tuple[Entry, bytes]:
        """A picture and its file. A name is looked up in the folder's listing, never made a path.

        Refused (404) for what is not there, or is none of refsd's pictures.
        """
        if _may_be(name) and name in self._listing():
            try:
                with self._open(name) as file:
                    data = file.read(MAX_FILE + 1)
            except OSError:  # gone since, or a link
                data = b""
            entry = _described(name, data)
            if entry is not None and len(data) <= MAX_FILE:
                return entry, data
        raise _unknown(name)

    def _listing(self):
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []

    def _files(self) -> Iterator[tuple[int, str, int]]:
        """When each PNG was written, its name and its size."""
        try:
            with os.scandir(self.folder) as files:
                for file in files:
                    if not _may_be(file.name) or not file.is_file(follow_symlinks=False):
                        continue
                    about = file.stat(follow_symlinks=False)
                    if about.st_size <= MAX_FILE:
                        yield about.st_mtime_ns, file.name, about.st_size
        except FileNotFoundError:  # the folder, or a file since it was listed
            return

    def _place(self, name, files):
        """Of a picture in the order of time, also of one that has been taken away."""
        there = next((file[:2] for file in files if file[1] == name), None)
        if there is None and name not in self._known:
            raise _unknown(name)
        return there or (self._known[name][0][0], name)

    def _entry(self, written, name, size):
        stamp = written, size
        if self._known.get(name, (None,))[0] != stamp:
            try:
                with self._open(name) as file:
                    self._known[name] = stamp, _described(name, _head(file))
            except OSError:
                return None
        return self._known[name][1]

    def _open(self, name) -> BinaryIO:
        return open(self.folder / name, "rb", opener=lambda path, _: os.open(path, FLAGS))


def _may_be(name):
    """Not a file that is being written, nor one whose name JSON and addresses cannot say."""
    return name.endswith(".png") and not name.startswith(".") and name.isprintable()


def _unknown(name):
    return Refused(404, "picture", f"there is no picture {name[:100]!r} (any more); "
                   "GET /api/v1/pictures lists them")


def _head(file: BinaryIO) -> bytes:
    """A PNG up to its pixels."""
    head = file.read(8)
    while len(head) <= MAX_HEAD:
        start = file.read(8)
        length = int.from_bytes(start[:4])
        if len(start) < 8 or start[4:] == b"IDAT" or length > MAX_HEAD:
            break
        head += start + file.read(length + 4)
    return head


def _described(name: str, data: bytes) -> Entry | None:
    """What a PNG says, as far as it is given; None for one that is not of refsd."""
    try:
        picture = as_picture(name, data, ("PNG",))
    except UsageError:
        return None
    if KEYWORD not in picture.texts:
        return None
    sides = picture.width, picture.height
    try:
        recipe = parse_recipe(picture.texts[KEYWORD], name)
    except UsageError:  # it is a picture all the same
        prompt = parse_infotext(picture.texts.get("parameters", "")).prompt
        return Entry(name, None, prompt, *sides, "")
    return Entry(name, recipe.seed, recipe.prompt, *sides, recipe.pixels)
