"""What every request passes before all else: who asks, from where, and with how large a body."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from refsd.serve import origins, tokens
from refsd.serve.answers import problem
from refsd.serve.policy import NOTHING
from refsd.serve.refusals import Refused

# The Content-Type of bodies; of paths that are not named, the first.
JSON = ("application/json",)
TYPES = {"/v1/images/edits": ("multipart/form-data",),
         "/api/v1/read": ("image/png", "image/jpeg", "image/webp")}
OPEN = ("/health",)  # asked for without a token
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cross-Origin-Resource-Policy": "same-origin", "Content-Security-Policy": NOTHING,
           "Cache-Control": "no-store"}  # where an answer has no other


@dataclass(frozen=True)
class Settings:
    """Who may ask: names beside loopback's in a Host header, other sites' origins, a token.

    A host is NAME, for any port, or NAME:PORT. body is in bytes; stall is in seconds, how long a
    client may neither send of its body nor take of its answer; whole, how long a body may take.
    """

    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    token: str | None = None
    body: int = 32 << 20
    stall: float = 30.0
    whole: float = 300.0


class Guard:
    """An ASGI application before another one, which gets what passes: whole bodies alone."""

    def __init__(self, app: Any, settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope, receive, send):
        headers = Headers(scope=scope)
        allowed = origins.allowed(headers, self.settings.origins)
        send = _Out(send, self.settings, allowed)
        try:
            early = self._admit(scope, headers, allowed)
            body = None if early else await self._body(headers, receive)
        except Refused as refused:
            early = problem(refused, scope["path"])
            if has_body(headers):
                early.headers["Connection"] = "close"  # what was not read is no next request
        except Gone:
            return
        if early is not None:
            await early(scope, receive, send)
        else:
            await self.app(scope, _replayed(body, receive), send)

    def _admit(self, scope, headers, allowed) -> Response | None:
        """Nothing for who may ask; or an answer that ends it. Raises Refused."""
        origins.check_host(headers, scope.get("server"), self.settings.hosts)
        origins.check_site(scope["method"], scope["path"], headers, allowed)
        if allowed and scope["method"] == "OPTIONS":
            return origins.preflight()
        if self.settings.token and scope["path"] not in OPEN:
            if (early := tokens.by_link(scope, self.settings.token)) is not None:
                return early
            tokens.check(scope, self.settings.token)
        check_type(scope["path"], headers)
        return None

    async def _body(self, headers, receive):
        """The parts of the body. Raises Refused where they are too many or too slow, and Gone."""
        parts, size, end = deque(), 0, time.monotonic() + self.settings.whole
        if not has_body(headers):
            return parts
        self._require_small(int(headers.get("content-length", 0)))
        more = True
        while more:
            left = min(self.settings.stall, end - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                raise Refused(408, "body.slow", "the body did not come; send it faster") from None
            if message["type"] == "http.disconnect":
                raise Gone
            size += len(message.get("body", b""))
            self._require_small(size)
            parts.append(message)
            more = message.get("more_body", False)
        return parts

    def _require_small(self, size):
        if size > self.settings.body:
            raise Refused(413, "body.large", f"the body has more than {self.settings.body:,} "
                          "bytes; send less")


class Gone(Exception):
    """The client went away."""


def has_body(headers: Headers) -> bool:
    """Whether a request says that it has one."""
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


def check_type(path: str, headers: Headers) -> None:
    """Raise Refused (415) for a body of a type that a page of another site might send unasked."""
    wanted = TYPES.get(path, JSON)
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if has_body(headers) and given not in wanted:
        raise Refused(415, "content-type", f"the body is {given or 'of no Content-Type'}; send "
                      f"{' or '.join(wanted)}")


def _replayed(parts, receive):
    """What the application receives: the body, then what comes."""
    async def replay():
        return parts.popleft() if parts else await receive()

    return replay


class _Out:
    """send, with the headers that all answers have, and an end to waiting for who takes nothing."""

    def __init__(self, send, settings, allowed):
        self.send, self.settings, self.allowed = send, settings, allowed

    async def __call__(self, message):
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self.settings.origins:
                headers.add_vary_header("Origin")
            if self.allowed:
                headers["Access-Control-Allow-Origin"] = self.allowed
        await asyncio.wait_for(self.send(message), self.settings.stall)
