"""/v1: the images API of OpenAI, for its clients and those of servers that are like it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from refsd.arguments import shown
from refsd.serve.answers import answer, problem
from refsd.serve.bodies import read_json
from refsd.serve.jobs import Job
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
from refsd.serve.refusals import Refused
from refsd.serve.stream import ended, streamed
from refsd.serve.studio import Studio

HERE = "/v1"
FILES, FIELDS = 17, 100  # of a form


def routes(studio: Studio) -> list[Route]:
    """The routes of the API."""
    api = _OpenAI(studio)
    return [Route(f"{HERE}/models", api.models), Route(f"{HERE}/models/{{id:path}}", api.model),
            Route(f"{HERE}/images/generations", api.generate, methods=["POST"]),
            Route(f"{HERE}/images/edits", api.edit, methods=["POST"])]


class _OpenAI:
    """Coroutines, one for each route; what reads files or decodes pictures runs in threads."""

    def __init__(self, studio):
        self.studio, self.started = studio, int(time.time())

    async def models(self, request: Request) -> Response:
        """The models that the server was started with."""
        return answer({"object": "list", "data": [self._model(id) for id in self.studio.models]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        id = request.path_params["id"]
        if id not in self.studio.models:
            raise Refused(404, "model_not_found", f"there is no model {shown(id)}; GET {HERE}"
                          "/models lists those of this server")
        return answer(self._model(id))

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

    async def _draw(self, request, body, kind):
        images = read_images(body, self.studio.models, self.studio.limits)
        job = self.studio.submit(await asyncio.to_thread(self.studio.read, images.said))
        if images.stream:
            return streamed(self._events(job, kind, images))
        await ended(job, request, self.studio.cancel)
        base = str(request.base_url) if images.url else None
        return answer(await asyncio.to_thread(say_done, job, images.warnings, base))

    async def _events(self, job: Job, kind: str, images: Images) -> AsyncIterator[tuple[str, Any]]:
        """What a stream says: previews, pictures, or an error; who leaves it cancels the job."""
        sent = 0
        try:
            async for name, value in job.events():
                if name == "preview" and is_due(value["step"], job.steps, sent, images.partial):
                    yield _named(partial_event(kind, job, value["image"], sent))
                    sent += 1
                elif name == "picture":
                    yield _named(await asyncio.to_thread(completed_event, kind, job, value,
                                                         images.warnings))
                    sent = 0
            require_done(job)
        except Exception as error:  # the answer has begun: its status can say nothing more
            yield "error", json.loads(problem(error, HERE + "/").body)
        finally:
            self.studio.cancel(job.id)


def _named(event):
    return event["type"], event
