"""/sdapi/v1: the API of AUTOMATIC1111's Stable Diffusion web UI, for the programs that speak it."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from refsd.arguments import shown
from refsd.errors import UsageError
from refsd.serve import a1111_answers, a1111_fields, a1111_samplers
from refsd.serve.a1111_settings import Settings
from refsd.serve.answers import answer, failure
from refsd.serve.bodies import read_json
from refsd.serve.jobs import Job
from refsd.serve.stream import ended
from refsd.serve.studio import Studio

HERE = "/sdapi/v1"
# All is known from the start on, so that there is nothing to read anew.
KNOWN = ("refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings")


def routes(studio: Studio) -> list[Route]:
    """The routes of the API."""
    api = _A1111(studio)
    lists = {**a1111_answers.LISTS, "samplers": a1111_samplers.samplers(),
             "schedulers": a1111_samplers.schedules(), "sd-models": a1111_answers.models(studio),
             "loras": a1111_answers.loras(studio)}
    posts = {"txt2img": api.txt2img, "img2img": api.img2img, "png-info": api.png_info,
             "interrupt": api.interrupt, "skip": api.skip, **dict.fromkeys(KNOWN, api.known)}
    return [Route("/internal/ping", _of({})),
            Route(f"{HERE}/options", api.options, methods=["GET", "POST"]),
            *(Route(f"{HERE}/{name}", _of(value)) for name, value in lists.items()),
            *(Route(f"{HERE}/{name}", act, methods=["POST"]) for name, act in posts.items()),
            Route(f"{HERE}/progress", api.progress), Route(f"{HERE}/memory", api.memory),
            Route(f"{HERE}/embeddings", api.embeddings)]


def _of(value: Any) -> Any:
    """The endpoint of what is always the same."""
    async def endpoint(request: Request) -> Response:
        return answer(value)

    return endpoint


class _A1111:
    """Coroutines, one for each route; what reads files or decodes pictures runs in threads."""

    def __init__(self, studio):
        self.studio, self.settings = studio, Settings(studio.models)
        self.waited: set[Job] = set()  # for by this API's clients

    async def txt2img(self, request: Request) -> Response:
        """Pictures of a text."""
        return await self._draw(request, "txt2img")

    async def img2img(self, request: Request) -> Response:
        """Pictures of a text and a picture."""
        return await self._draw(request, "img2img")

    async def _draw(self, request, kind):
        body = await read_json(request)
        wanted, asked = await asyncio.to_thread(self._read, kind, body)
        job = self.studio.submit(asked)
        self.settings.change(wanted.kept)
        self.waited.add(job)
        del asked  # the job drops it at its end
        try:
            await ended(job, request, self.studio.cancel)
        finally:
            self.waited.discard(job)
        if job.error is not None:
            message = a1111_fields.in_fields(job.error["message"])
            return failure({**job.error, "message": message}, request.url.path)
        return answer(await asyncio.to_thread(a1111_answers.drawn, job, kind, body, wanted))

    def _read(self, kind: str, body: Mapping[str, Any]) -> Any:
        """The body, and what is asked of the studio; UsageError in A1111's words."""
        wanted = a1111_fields.read(kind, body, self.settings.values, self.studio.models)
        try:
            return wanted, self.studio.read(wanted.fields)
        except UsageError as problem:
            raise UsageError(a1111_fields.in_fields(str(problem))) from None

    async def progress(self, request: Request) -> Response:
        """How far the job is that is drawn, whoever asked for it, with a preview if wanted."""
        job, without = self.studio.current, request.query_params.get("skip_current_image", "")
        image = None
        if job is not None and without.lower() not in ("true", "1"):
            image = await asyncio.to_thread(lambda: job.preview)
        return answer(a1111_answers.progress(job, image))

    async def interrupt(self, request: Request) -> Response:
        """End the job that is drawn after this step; what it has drawn is answered.

        Clients say so as they leave, when their job may be over already: those of the page and of
        other APIs are not meant.
        """
        job = self.studio.current
        if job in self.waited:
            self.studio.cancel(job.id)
        return answer({})

    async def skip(self, request: Request) -> Response:
        """Go on with the next picture after this step."""
        if self.studio.current in self.waited:
            self.studio.skip()
        return answer(None)

    async def known(self, request: Request) -> Response:
        """Nothing to do."""
        return answer(None)

    async def options(self, request: Request) -> Response:
        """The settings, or a change of them."""
        if request.method != "POST":
            return answer(self.settings.shown())
        self.settings.change(await read_json(request))
        return answer(None)

    async def png_info(self, request: Request) -> Response:
        """What a picture's texts say."""
        body = await read_json(request)
        if body.keys() != {"image"}:
            raise UsageError(f"png-info is given {shown([*body])}; give image alone")
        return answer(await asyncio.to_thread(a1111_answers.png_info, body["image"]))

    async def memory(self, request: Request) -> Response:
        """What this process has of the machine's memory."""
        return answer(a1111_answers.memory())

    async def embeddings(self, request: Request) -> Response:
        """Words of embeddings; their folder is looked into each time, as the prompts do."""
        return answer(await asyncio.to_thread(a1111_answers.embeddings, self.studio))
