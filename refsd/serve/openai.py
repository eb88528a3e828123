"""/v1: pictures and texts as OpenAI's API has them, for its clients and those of its likes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from refsd.arguments import shown
from refsd.serve.answers import answer, problem
from refsd.serve.bodies import read_json
from refsd.serve.jobs import Job, TextJob
from refsd.serve.openai_images import (
    Images,
    completed_event,
    is_due,
    partial_event,
    read_form,
    read_images,
    require_done,
    say_done,
)
from refsd.serve.openai_texts import Texts, chunk, counted, read_texts, say_texts
from refsd.serve.refusals import Refused
from refsd.serve.stream import Done, ended, streamed
from refsd.serve.studio import Studio

HERE = "/v1"
FILES, FIELDS = 17, 100  # of a form


def routes(studio: Studio) -> list[Route]:
    """The routes of the API."""
    api = _OpenAI(studio)
    return [Route(f"{HERE}/models", api.models), Route(f"{HERE}/models/{{id:path}}", api.model),
            Route(f"{HERE}/images/generations", api.generate, methods=["POST"]),
            Route(f"{HERE}/images/edits", api.edit, methods=["POST"]),
            Route(f"{HERE}/completions", api.complete, methods=["POST"])]


class _OpenAI:
    """Coroutines, one for each route; what reads files or decodes pictures runs in threads."""

    def __init__(self, studio):
        self.studio, self.started = studio, int(time.time())

    async def models(self, request: Request) -> Response:
        """The models that the server was started with."""
        return answer({"object": "list", "data": [self._model(id) for id in self._ids()]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        id = request.path_params["id"]
        if id not in self._ids():
            raise Refused(404, "model_not_found", f"there is no model {shown(id)}; GET {HERE}"
                          "/models lists those of this server")
        return answer(self._model(id))

    def _ids(self):
        return [*self.studio.models, *self.studio.writers]

    def _model(self, id):
        return {"id": id, "object": "model", "created": self.started, "owned_by": "refsd"}

    async def generate(self, request: Request) -> Response:
        """Pictures of a text."""
        return await self._draw(request, await read_json(request), "image_generation")

    async def edit(self, request: Request) -> Response:
        """Pictures of a text and a picture, drawn where a mask is transparent."""
        async with request.form(max_files=FILES, max_fields=FIELDS) as form:
            parts = [(name, await value.read() if isinstance(value, UploadFile) else value)
                     for name, value in form.multi_items()]
        body = await asyncio.to_thread(read_form, parts)
        return await self._draw(request, body, "image_edit")

    async def complete(self, request: Request) -> Response:
        """Texts that continue a text."""
        texts = read_texts(await read_json(request), self.studio.writers, self.studio.limits)
        job = self.studio.submit(texts.asked)
        if texts.stream:
            return streamed(self._said(job, _pieces(job, texts)))
        await ended(job, request, self.studio.cancel)
        return answer(say_texts(job, texts))

    async def _draw(self, request, body, kind):
        images = read_images(body, self.studio.models, self.studio.limits)
        job = self.studio.submit(await asyncio.to_thread(self.studio.read, images.said))
        if images.stream:
            return streamed(self._said(job, _events(job, kind, images)))
        await ended(job, request, self.studio.cancel)
        base = str(request.base_url) if images.url else None
        return answer(await asyncio.to_thread(say_done, job, images.warnings, base))

    async def _said(self, job, events):
        """The events of a stream, or the error that it ends with; who leaves it cancels the job."""
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        except Exception as error:  # the answer has begun: its status can say nothing more
            yield "error", json.loads(problem(error, HERE + "/").body)
        finally:
            self.studio.cancel(job.id)


async def _events(job: Job, kind: str, images: Images) -> AsyncIterator[tuple[str, Any]]:
    """Previews and pictures as they come. Raises what the job's failure is."""
    sent = 0
    async for name, value in job.events():
        if name == "preview" and is_due(value["step"], job.steps, sent, images.partial):
            event = partial_event(kind, job, value["image"], sent)
            sent += 1
        elif name == "picture":
            event = await asyncio.to_thread(completed_event, kind, job, value, images.warnings)
            sent = 0
        else:
            continue
        yield event["type"], event
    require_done(job)


async def _pieces(job: TextJob, texts: Texts) -> AsyncIterator[tuple[None, Any]]:
    """Texts as they are written. Raises what the job's failure is."""
    begun = set() if texts.echo else {*range(job.count)}
    async for index, piece, stopped in job.written():
        if index not in begun:
            begun.add(index)
            piece = texts.asked.prompt + piece
        if piece or stopped:
            yield None, chunk(job, texts, index, piece, stopped)
    require_done(job)
    if texts.usage:
        yield None, counted(job, texts)
    yield None, Done("[DONE]")
