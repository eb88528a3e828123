"""The application: the page, health and metrics, the APIs' routes, and one way to say errors."""

from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Match, Route, Router

from refsd.serve import policy
from refsd.serve.answers import answer, problem
from refsd.serve.guard import Guard
from refsd.serve.metrics import Metrics
from refsd.serve.refusals import Refused
from refsd.serve.settings import Settings


def make_app(routes: Sequence[BaseRoute] = (), settings: Settings | None = None, *,
             page: bool = True, metrics: Metrics | None = None, studio: Any = None) -> Any:
    """An ASGI application of these routes, the page, /health, and, with metrics, /metrics.

    settings: who may ask. studio: whose queue the metrics show, and without whose thread the
    server is not well.
    """
    async def health(request):  # nothing to wait for: on the loop, not in a thread
        if studio is not None and not studio.alive:
            raise Refused(503, "studio", "the thread that draws has ended: no job is drawn any "
                          "more. Start the server again")
        return answer({"status": "ok"})

    own = [Route("/health", health)]
    if page:
        own.append(Route("/", show_page))
    if metrics is not None:
        own.append(Route("/metrics", lambda request: Response(
            metrics.text(studio.jobs() if studio else ()), media_type=metrics.TYPE)))
    app = Guard(App([*own, *routes]), settings or Settings())
    return app if metrics is None else metrics.counting(app)


def show_page(request: Any) -> Response:
    """The page, which may do what its policy says."""
    html = policy.page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy.policy(html)})


class App:
    """Routes whose errors, whatever they are, are answered as the API that was asked does."""

    def __init__(self, routes: Sequence[BaseRoute]):
        self.router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = self  # with it Starlette raises what is not found instead of answering
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        begun = False

        async def noted(message):
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.router(scope, receive, noted)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            if begun:
                raise
            if isinstance(error, HTTPException) and error.status_code == 405:
                error.headers = {"Allow": self._methods(scope)}
            await problem(error, scope["path"])(scope, receive, send)

    def _methods(self, scope):
        """Those of all routes of a path; the router knows of the first alone."""
        found = [route.methods for route in self.router.routes
                 if route.matches(scope)[0] is not Match.NONE]
        return ", ".join(sorted(set().union(*found)))
