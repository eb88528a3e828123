"""Server-sent events, and waiting for a job as long as its client is there."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from refsd.serve.answers import json_text
from refsd.serve.jobs import Job
from refsd.serve.refusals import Refused

BEAT = 15.0  # seconds


class Done(str):
    """A text that is sent as it is, not as JSON, such as OpenAI's [DONE]."""


def events(job: Job, shown: Callable[[str, Any], Any], beat: float = BEAT) -> StreamingResponse:
    """The job's events from here on, the value of each as `shown(name, value)` gives it."""
    async def told():
        async with aclosing(job.events()) as happening:
            async for name, value in happening:
                yield name, shown(name, value)

    return streamed(told(), beat)


def streamed(pairs: AsyncGenerator[tuple[str | None, Any], None], beat: float = BEAT
             ) -> StreamingResponse:
    """text/event-stream of names (None for none) and values, which are sent as JSON.

    Where nothing happens for `beat` seconds there is a comment, so that a client that vanished
    is noticed. Then, and at the end, `pairs` is closed.
    """
    return _Stream(pairs, beat)


class _Stream(StreamingResponse):
    """Starlette leaves closing a generator to the collector of garbage; a job waits for none."""

    media_type = "text/event-stream"

    def __init__(self, pairs, beat):
        super().__init__(self._lines(), headers={"X-Accel-Buffering": "no"})
        self._pairs, self._beat = pairs, beat
        self._coming = None  # the next pair, which is always waited for

    async def __call__(self, scope, receive, send):
        self._wait_for_next()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._coming.cancel()
            await asyncio.wait([self._coming])
            await self._pairs.aclose()

    def _wait_for_next(self):
        self._coming = asyncio.ensure_future(anext(self._pairs, None))

    async def _lines(self):
        while True:
            await asyncio.wait([self._coming], timeout=self._beat)
            if not self._coming.done():
                yield ": nothing new\n\n"
                continue
            pair = self._coming.result()
            if pair is None:
                return
            self._wait_for_next()
            name, value = pair
            head = f"event: {name}\n" if name else ""
            yield f"{head}data: {value if isinstance(value, Done) else json_text(value)}\n\n"


async def ended(job: Job, request: Request, cancel: Callable[[str], Any]) -> None:
    """Wait for the job's end. Where the client goes away before, cancel it, and raise Refused."""
    gone = asyncio.ensure_future(_gone(request))
    over = asyncio.ensure_future(job.wait())
    try:
        await asyncio.wait([gone, over], return_when=asyncio.FIRST_COMPLETED)
        if not over.done():
            raise Refused(499, "gone", "the client went away; the job is cancelled")
    finally:
        if not over.done():
            cancel(job.id)
        gone.cancel(), over.cancel()
        await asyncio.wait([gone, over])


async def _gone(request):
    """Come back when the client has closed its connection; its body is read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
