"""A job as all see it: the drawing thread changes it, coroutines and threads wait for that."""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from refsd.serve.asked import Asked

QUEUED, DRAWING, DONE, FAILED, CANCELLED = "queued", "drawing", "done", "failed", "cancelled"
ENDS = (DONE, FAILED, CANCELLED)


class Picture(NamedTuple):
    """A picture that is on the disk, under its name in the folder; `pixels` is their SHA-256."""

    name: str
    path: Path
    seed: int
    width: int
    height: int
    infotext: str
    pixels: str

    @property
    def png(self) -> bytes:
        """The file. Raises OSError where somebody took it away."""
        return self.path.read_bytes()


class Changes:
    """Wakes coroutines, of whatever loop, from whatever thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def tell(self) -> None:
        """Something is new."""
        with self._lock:
            waiting = list(self._waiting.items())
        for event, loop in waiting:
            with suppress(RuntimeError):  # a loop that was closed meanwhile
                loop.call_soon_threadsafe(event.set)

    @contextmanager
    def heard(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something is new, until the end of the block."""
        event = asyncio.Event()
        with self._lock:
            self._waiting[event] = asyncio.get_running_loop()
        try:
            yield event
        finally:
            with self._lock:
                del self._waiting[event]


class Job:
    """What was asked for, and how far it is.

    `position` counts the jobs before it, 0 for the one that is drawn. `index` is that of the
    picture that is drawn, of `count`; `step` of `steps` are its steps that are done, and `made`
    those of all pictures. `created`, `started` and `ended` are seconds since 1970, None before.
    `error` has a code and a message.
    """

    def __init__(self, asked: Asked):
        self.id = secrets.token_hex(8)
        self.asked: Asked | None = asked  # which holds decoded pictures: dropped at the end
        self.request, self.count = asked.said, asked.count
        self.state, self.position = QUEUED, 0
        self.index, self.step, self.steps, self.made = 0, 0, 0, 0
        self.pictures: list[Picture] = []
        self.warnings: list[str] = []
        self.error: dict[str, str] | None = None
        self.created, self.started, self.ended = time.time(), None, None
        self.changes = Changes()
        self.stop = self.skip = False  # wishes, heard at the end of a step
        self._over, self._lock = threading.Event(), threading.Lock()
        self._clock: dict[str, float] = {}
        self._seen, self._image, self._png = 0, None, None  # the newest preview

    @property
    def seconds(self) -> float | None:
        """Since it began to be drawn; None before."""
        begun = self._clock.get("started")
        return None if begun is None else self._clock.get("ended", time.monotonic()) - begun

    @property
    def remaining(self) -> float | None:
        """Seconds to come, if all steps take as long as those before; None before the first."""
        done, begun = self.index * self.steps + self.step, self._clock.get("steps")
        if self.state in ENDS:
            return 0.0
        if not done or begun is None:
            return None
        return (self._clock["step"] - begun) / done * (self.count * self.steps - done)

    @property
    def preview(self) -> bytes | None:
        """The newest preview as a PNG, made when it is first asked for; None at the end."""
        with self._lock:
            if self._png is None and self._image is not None:
                from refsd.cli.png import encode_png

                self._png = encode_png(self._image, {})
            return self._png

    def show(self, image: Any) -> None:
        """The newest preview, a PIL image; None for none."""
        with self._lock:
            self._image, self._png = image, None
            self._seen += image is not None

    def begin(self) -> None:
        """It is drawn now."""
        self.state, self.started = DRAWING, time.time()
        self._clock["started"] = time.monotonic()
        self.changes.tell()

    def begin_picture(self, index: int, steps: int) -> None:
        """The first step of a picture is next."""
        self.show(None)
        self.index, self.step, self.steps, self.skip = index, 0, steps, False
        self._clock.setdefault("steps", time.monotonic())
        self.changes.tell()

    def count_step(self) -> int:
        """One more step is done; gives how many are."""
        self.step, self.made = self.step + 1, self.made + 1
        self._clock["step"] = time.monotonic()
        return self.step

    def end(self, state: str, error: dict[str, str] | None = None) -> None:
        """It is over; what only drawing needs is dropped."""
        self.show(None)
        self.asked, self.error, self.ended, self.position = None, error, time.time(), 0
        self._clock["ended"] = time.monotonic()
        self.state = state  # the last: who sees it sees all else
        self._over.set()
        self.changes.tell()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the end in a thread; whether it came."""
        return self._over.wait(seconds)

    async def wait(self) -> None:
        """Wait for the end."""
        with self.changes.heard() as changed:
            while self.state not in ENDS:
                await changed.wait()
                changed.clear()

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        """What happens from here on, beginning with the present state; a name and a value.

        state: the job, whenever its state or position changes. step: {step, steps, index, seconds,
        remaining}. preview: {step, image}, of which image is a PNG's bytes. picture: a Picture.
        done, failed or cancelled: the job, and nothing after it. Who reads slowly misses steps and
        previews, no pictures.
        """
        with self.changes.heard() as changed:
            told: dict[str, Any] = {"pictures": 0}
            while True:
                changed.clear()
                state = self.state
                async for event in self._news(told, state):
                    yield event
                if state in ENDS:
                    yield state, self
                    return
                await changed.wait()

    async def _news(self, told, state):
        """What is not told yet, given the state as it was read before all else."""
        if state not in ENDS and told.get("state") != (state, self.position):
            told["state"] = state, self.position
            yield "state", self
        for picture in self.pictures[told["pictures"]:]:
            told["pictures"] += 1
            yield "picture", picture
        step = self.index, self.step, self.steps
        if state == DRAWING and self.steps and told.get("step") != step:
            told["step"] = step
            yield "step", {"step": self.step, "steps": self.steps, "index": self.index,
                           "seconds": self.seconds, "remaining": self.remaining}
        if told.get("preview", 0) != self._seen:
            told["preview"] = self._seen
            image = await asyncio.to_thread(lambda: self.preview)
            if image is not None:
                yield "preview", {"step": step[1], "image": image}


class Piece(NamedTuple):
    """More of the text of a choice; stopped: why it is the last of it, as a Token's."""

    index: int
    text: str
    stopped: str


class TextJob(Job):
    """A job that writes: `count` texts, of which `steps` are the tokens at most, in `pieces`."""

    def __init__(self, asked: Any):
        super().__init__(asked)
        self.pieces: list[Piece] = []
        self.prompt_tokens = 0

    def write(self, piece: Piece) -> None:
        """One more token is written."""
        self.count_step()
        self.pieces.append(piece)
        self.changes.tell()

    async def written(self) -> AsyncIterator[Piece]:
        """All pieces as they come, until the job is over."""
        told = 0
        with self.changes.heard() as changed:
            while True:
                changed.clear()
                over = self.state in ENDS
                for piece in self.pieces[told:]:
                    told += 1
                    yield piece
                if over:
                    return
                await changed.wait()
