"""/api/v1: what the page asks for, and whoever wants to know all that refsd knows."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from refsd.cli import compat, draw, pictures_in, sampler_names
from refsd.cli.pictures import as_picture
from refsd.errors import UsageError
from refsd.serve.answers import answer
from refsd.serve.asked import in_fields
from refsd.serve.bodies import read_json
from refsd.serve.gallery import Entry, Gallery
from refsd.serve.jobs import Job, Picture, TextJob
from refsd.serve.recall import Has, recall
from refsd.serve.stream import events
from refsd.serve.studio import Studio
from refsd.version import __version__

PAGE = 24  # pictures listed at once, unless more are asked for
MOST = 100
HERE = "/api/v1"


def routes(studio: Studio, gallery: Gallery, *, body: int) -> list[Route]:
    """The routes of the API. body: as many bytes as a request may have."""
    api = _Native(studio, gallery, body)
    table: tuple[tuple[str, str, Callable], ...] = (
        ("GET", "/about", api.about), ("GET", "/jobs", api.jobs), ("POST", "/jobs", api.submit),
        ("GET", "/jobs/{id}", api.job), ("DELETE", "/jobs/{id}", api.cancel),
        ("GET", "/jobs/{id}/events", api.events), ("GET", "/pictures", api.pictures),
        ("GET", "/pictures/{name}", api.picture), ("GET", "/pictures/{name}/recipe", api.recipe),
        ("POST", "/read", api.read))
    paths = dict.fromkeys(path for _, path, _ in table)
    return [Route(HERE + path, _by_method({method: act for method, at, act in table if at == path}),
                  methods=[method for method, at, _ in table if at == path]) for path in paths]


def _by_method(acts):
    """One endpoint for the methods of a path, so that another method is answered with 405."""
    async def endpoint(request: Request) -> Response:
        return await acts["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


class _Native:
    """Coroutines, one for each route; what reads files or decodes pictures runs in threads."""

    def __init__(self, studio, gallery, body):
        self.studio, self.gallery = studio, gallery
        self.has = Has(studio.models, studio.loras, studio.base)
        self.said = about(studio, body)

    async def about(self, request: Request) -> Response:
        return answer(self.said)

    async def jobs(self, request: Request) -> Response:
        return answer({"jobs": [plain(job) for job in self.studio.jobs()
                                if not isinstance(job, TextJob)]})  # which draw nothing

    async def submit(self, request: Request) -> Response:
        asked = await asyncio.to_thread(self.studio.read, await read_json(request))
        job = self.studio.submit(asked)
        return answer(plain(job), 201, location=f"{HERE}/jobs/{job.id}")

    async def job(self, request: Request) -> Response:
        return answer(plain(self.studio.get(request.path_params["id"])))

    async def cancel(self, request: Request) -> Response:
        return answer(plain(self.studio.cancel(request.path_params["id"])))

    async def events(self, request: Request) -> Response:
        job = self.studio.get(request.path_params["id"])
        return events(job, lambda name, value: told(job, name, value))

    async def pictures(self, request: Request) -> Response:
        limit, before = request.query_params.get("limit", str(PAGE)), \
            request.query_params.get("before")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= MOST:
            raise UsageError(f"limit is {limit[:40]!r}; give an integer from 1 to {MOST}")
        found, more = await asyncio.to_thread(self.gallery.page, int(limit), before)
        return answer({"pictures": [shown(entry, entry.prompt) for entry in found], "more": more})

    async def picture(self, request: Request) -> Response:
        entry, data = await self._file(request)
        # a name may be another picture's one day, but not with these pixels
        kept = entry.pixels and request.query_params.get("v") == version_of(entry.pixels)
        return Response(data, media_type="image/png", headers={
            "Cache-Control": "private, max-age=31536000, immutable" if kept else "no-cache"})

    async def recipe(self, request: Request) -> Response:
        entry, data = await self._file(request)
        found = await asyncio.to_thread(lambda: recall(as_picture(entry.name, data), self.has))
        return answer(found._asdict())

    async def _file(self, request):
        return await asyncio.to_thread(self.gallery.read, request.path_params["name"])

    async def read(self, request: Request) -> Response:
        data = await request.body()
        found = await asyncio.to_thread(lambda: recall(as_picture("the picture", data), self.has))
        return answer(found._asdict())


def about(studio: Studio, body: int) -> dict[str, Any]:
    """What this server has, what it takes where a request says nothing, and its limits."""
    limits, base, models = studio.limits, studio.base, list(studio.models.values())
    scales = [draw.CFG_SCALE if model.path else draw.BUNDLED_CFG_SCALE for model in models]
    if base.cfg_scale is not None:
        scales = [base.cfg_scale] * len(models)
    return {
        "version": __version__, "model": models[0].id,
        "models": [{"id": model.id, "name": model.name, "width": model.width,
                    "height": model.height, "multiple": model.multiple, "cfg_scale": scale,
                    "edits": model.takes == "image"}
                   for model, scale in zip(models, scales)],
        "loras": list(studio.loras), "samplers": list(sampler_names.SAMPLERS),
        "schedules": list(sampler_names.SCHEDULES),
        "defaults": {"steps": base.steps, "cfg_scale": scales[0], "count": 1,
                     "strength": pictures_in.STRENGTH, "compat": base.compat,
                     "rng": compat.rng(base)},
        "limits": {"queue": limits.queue, "batch": limits.batch, "steps": limits.steps,
                   "least": limits.least, "side": limits.side, "pixels": limits.pixels,
                   "prompt": limits.prompt, "loras": limits.loras, "kept": limits.kept,
                   "body": body}}


def plain(job: Job) -> dict[str, Any]:
    """A job as JSON."""
    return {name: getattr(job, name) for name in (
        "id", "state", "position", "index", "count", "step", "steps", "seconds", "remaining",
        "error", "request", "created", "started", "ended")} | {
        "warnings": [in_fields(line) for line in job.warnings],
        "pictures": [shown(picture, job.request["prompt"]) for picture in [*job.pictures]]}


def shown(picture: Picture | Entry, prompt: str) -> dict[str, Any]:
    """A picture as JSON."""
    version = f"?v={version_of(picture.pixels)}" if picture.pixels else ""
    return {"name": picture.name, "url": f"{HERE}/pictures/{quote(picture.name)}{version}",
            "seed": picture.seed, "prompt": prompt, "width": picture.width,
            "height": picture.height}


def version_of(pixels: str) -> str:
    """What is in a picture's address so that it can be kept for ever."""
    return pixels[:16]


def told(job: Job, name: str, value: Any) -> Any:
    """The value of one of a job's events, as JSON."""
    if isinstance(value, Job):
        return plain(value)
    if name == "picture":
        return shown(value, job.request["prompt"])
    if name == "preview":
        image = base64.b64encode(value["image"]).decode()
        return {**value, "image": f"data:image/png;base64,{image}"}
    return value
