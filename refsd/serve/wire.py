"""Bodies as they come and answers as they go: bounded in bytes and in time."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from refsd.serve.refusals import Refused

RETRY_SECONDS = 5  # when there is no room for a body
PIECE = 64 << 10  # bytes; what is larger is sent so, and who takes nothing of it is noticed


class Gone(Exception):
    """The client went away, or takes nothing of its answer."""


def length(headers: Headers) -> int | None:
    """The bytes of a request's body; None where they are not counted beforehand.

    Raises Refused (400) where what is said is no number.
    """
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise Refused(400, "length", "Content-Length is no number of bytes; send one")
    return int(text)


class In:
    """An ASGI receive that knows whether there is `more` of the body to come."""

    def __init__(self, receive: Callable):
        self.receive, self.more = receive, True

    async def __call__(self) -> Any:
        message = await self.receive()
        self.more = message.get("more_body", False)
        return message


class Room:
    """For the bytes of all bodies that are held at the same time: `most`. Of one event loop."""

    def __init__(self, most: int):
        self.most, self.held = most, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that takes so many bytes more, which are given back after the block.

        It raises Refused (503) where there is no room for them.
        """
        taken = 0

        def take(count):
            nonlocal taken
            if self.held + count > self.most:
                raise Refused(503, "bodies", f"the bodies of requests that are being answered "
                              f"take {self.held:,} bytes of {self.most:,}. Try again in "
                              f"{RETRY_SECONDS} seconds", retry_after=str(RETRY_SECONDS))
            self.held += count
            taken += count

        try:
            yield take
        finally:
            self.held -= taken


async def read_body(headers: Headers, receive: In, take: Callable[[int], None], *, most: int,
                    stall: float, whole: float) -> bytes:
    """A request's body, whose bytes are taken before they are held: all if it is said how many.

    Raises Refused where more than `most` bytes are said to come, or do come (413), and where none
    come for `stall` seconds or not all of them in `whole` (408); what `take` raises; Gone where
    they never will.
    """
    said = length(headers)
    _require_small(said or 0, most)
    take(said or 0)
    body, end = bytearray(), time.monotonic() + whole
    while said != 0 and receive.more:
        try:
            async with asyncio.timeout(min(stall, end - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise Refused(408, "body.slow", "the body does not come; send it faster") from None
        if message["type"] == "http.disconnect":
            raise Gone
        piece = message.get("body", b"")
        _require_small(len(body) + len(piece), most)
        take(len(piece) if said is None else 0)
        body += piece
    return bytes(body)


def _require_small(size, most):
    if size > most:
        raise Refused(413, "body.large", f"the body has more than {most:,} bytes; send at most "
                      "these")


def replayed(body: bytes, receive: Callable) -> Callable:
    """What an application receives: the body that was read, then what comes."""
    parts = [body]

    async def replay():
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return replay


class Out:
    """An ASGI send that adds headers where there are none of their names, and waits no longer
    than `stall` seconds for a client to take what it is sent. Raises Gone.
    """

    def __init__(self, send: Callable, headers: Mapping[str, str], stall: float):
        self.send, self.headers, self.stall = send, headers, stall

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in self.headers.items():
                headers.setdefault(name, value)
        body = memoryview(message.get("body", b""))
        while len(body) > PIECE:
            await self._send({**message, "body": bytes(body[:PIECE]), "more_body": True})
            body = body[PIECE:]
        await self._send({**message, "body": bytes(body)} if body else message)

    async def _send(self, message):
        try:
            async with asyncio.timeout(self.stall):
                await self.send(message)
            await asyncio.sleep(0)  # a send need not wait: others have their turn all the same
        except TimeoutError:
            raise Gone from None


async def last(response: Response, scope: Any, receive: In, send: Callable, linger: float) -> None:
    """The last answer of a connection, whose client may be sending a body that nobody wants.

    What comes in `linger` seconds is dropped: a connection that is closed over it is reset, and
    takes the answer along.
    """
    async def unfinished(message):
        await send({**message, "more_body": True} if message["type"] == "http.response.body"
                   else message)

    response.headers["Connection"] = "close"
    await response(scope, receive, unfinished)
    with suppress(TimeoutError):
        async with asyncio.timeout(linger):
            while receive.more:
                await receive()
    await send({"type": "http.response.body"})
