"""Server-sent events, and waiting for a job as long as its client is there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
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
        async for name, value in job.events():
            yield name, shown(name, value)

    return streamed(told(), beat)


def streamed(pairs: AsyncIterator[tuple[str | None, Any]], beat: float = BEAT
             ) -> StreamingResponse:
    """text/event-stream of names (None for none) and values, which are sent as JSON.

    Where nothing happens for `beat` seconds there is a comment, so that a client that vanished
    is noticed. Then, and at the end, `pairs` is closed.
    """
    return StreamingResponse(_lines(pairs, beat), media_type="text/event-stream",
                             headers={"X-Accel-Buffering": "no"})


async def _lines(pairs, beat):
    # One event is always waited for: cancelling that ends `pairs`, wherever this is left.
    coming = asyncio.ensure_future(anext(pairs, None))
    try:
        while True:
            await asyncio.wait([coming], timeout=beat)
            if not coming.done():
                yield ": nothing new\n\n"
                continue
            pair = coming.result()
            if pair is None:
                return
            coming = asyncio.ensure_future(anext(pairs, None))
            name, value = pair
            data = value if isinstance(value, Done) else json_text(value)
            yield f"{f'event: {name}' + chr(10) if name else ''}data: {data}\n\n"
    finally:
        coming.cancel()


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
        for task in (gone, over):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _gone(request):
    """Come back when the client has closed its connection; its body is read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
