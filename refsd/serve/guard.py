"""What every request passes before all else: who asks, from where, and with how large a body."""

from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from refsd.arguments import shown
from refsd.serve import origins, tokens
from refsd.serve.answers import problem
from refsd.serve.policy import NOTHING
from refsd.serve.refusals import Refused
from refsd.serve.settings import Settings
from refsd.serve.wire import Gone, In, Out, Room, last, length, read_body, replayed

# The Content-Type of bodies, by path. A page of another site can have a browser send forms and
# plain text without asking before, none of what stands here but the form.
JSON = ("application/json",)
TYPES = {"/v1/images/edits": ("multipart/form-data",),
         "/api/v1/read": ("image/png", "image/jpeg", "image/webp")}
OPEN = ("/health",)  # asked for without a token
# Of all answers that have no others.
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cross-Origin-Resource-Policy": "same-origin", "Content-Security-Policy": NOTHING,
           "Cache-Control": "no-store"}


class Guard:
    """An ASGI application before another one, which gets what passes, its body read whole."""

    def __init__(self, app: Any, settings: Settings):
        self.app, self.settings, self.room = app, settings, Room(settings.bodies)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            with suppress(Gone):
                await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope, receive, send):
        settings, headers = self.settings, Headers(scope=scope)
        origin = origins.allowed(headers, settings.origins)
        receive = In(receive)
        send = Out(send, HEADERS | origins.of_answer(origin, settings.origins), settings.stall)
        with self.room.share() as take:  # until the application is done with the request
            try:
                early = self._admit(scope, headers, origin)
                body = None if early else await read_body(
                    headers, receive, take, most=settings.body, stall=settings.stall,
                    whole=settings.whole)
            except Refused as refused:
                refusal = problem(refused, scope["path"])
            else:
                if early is not None:
                    await early(scope, receive, send)
                else:
                    await self.app(scope, replayed(body, receive), send)
                return
        await last(refusal, scope, receive, send, settings.stall)

    def _admit(self, scope, headers, origin) -> Response | None:
        """Nothing for who may ask; or an answer that ends it. Raises Refused."""
        settings, path = self.settings, scope["path"]
        origins.check_host(headers, scope.get("server"), settings.hosts)
        origins.check_site(scope["method"], path, headers, origin)
        if origin and scope["method"] == "OPTIONS":
            return origins.preflight()
        if settings.token and path not in OPEN:
            if (early := tokens.by_link(scope, settings.token)) is not None:
                return early
            tokens.check(scope, settings.token)
        if length(headers) != 0:
            check_type(path, headers.get("content-type", ""))
        return None


def check_type(path: str, given: str) -> None:
    """Raise Refused (415) for a body of a type that the path does not take."""
    wanted, kind = TYPES.get(path, JSON), given.partition(";")[0].strip().lower()
    if kind not in wanted:
        raise Refused(415, "content-type", f"the body is {shown(kind) if kind else 'of no type'}; "
                      f"send it with Content-Type: {' or '.join(wanted)}")
