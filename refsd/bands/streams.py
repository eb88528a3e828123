"""Streams of bands: arrays (N, C, h, W) that follow each other from above to below."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from refsd import functional as F


class Rows:
    """Bands as a stream of rows."""

    def __init__(self, bands: Iterator[Any]):
        self.bands, self.rest = bands, None

    def take(self, count: int) -> Any:
        """The next `count` rows, at least one."""
        parts = []
        while count:
            band = next(self.bands) if self.rest is None else self.rest
            have = min(count, band.shape[2])
            parts.append(part(band, 0, have))
            self.rest = part(band, have, band.shape[2]) if have < band.shape[2] else None
            count -= have
        return parts[0] if len(parts) == 1 else F.concat(parts, axis=2)


class Window:
    """A stream of rows seen through a window that moves down."""

    def __init__(self, bands: Iterator[Any]):
        self.rows, self.held, self.first = Rows(bands), [], 0  # its rows begin with `first`

    def see(self, low: int, high: int, following: int) -> Any:
        """Rows low .. high - 1. The next window begins with `following`: others are let go of."""
        missing = high - self.first - sum(band.shape[2] for band in self.held)
        seen = self.held + ([self.rows.take(missing)] if missing > 0 else [])
        seen = seen[0] if len(seen) == 1 else F.concat(seen, axis=2)
        first, end = self.first, self.first + seen.shape[2]
        self.first, self.held = min(following, end), []
        if following < end:  # a copy: a view would hold all of the rows
            self.held = [F.concat([part(seen, following - first, end - first)], axis=2)]
        return part(seen, low - first, high - first)


def part(band, start, stop):
    """Rows start .. stop - 1, of the whole the band itself"""
    return band if stop - start == band.shape[2] else F.slice(band, axis=2, start=start, stop=stop)


def pieces(bands, tall, drop):
    """What is kept, in bands of `tall` rows; with `drop` it is let go of as it is read."""
    waiting = bands if drop else deque(bands)
    while waiting:
        band = waiting.popleft()
        for i in range(0, band.shape[2], tall):
            yield part(band, i, min(i + tall, band.shape[2]))


def shared(bands, count):
    """As many iterators over them. (itertools.tee holds 57 bands longer than they are needed.)"""
    if count == 1:
        return [bands]
    waiting = [deque() for _ in range(count)]

    def reader(mine):
        while True:
            if not mine:
                band = next(bands, None)
                if band is None:
                    return
                for each in waiting:
                    each.append(band)
                del band
            yield mine.popleft()

    return [reader(mine) for mine in waiting]


def keeping(bands, kept):
    """The bands, which are put on a list as they come."""
    return map(lambda band: kept.append(band) or band, bands)
