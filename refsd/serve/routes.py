"""Everything that the server answers, in one place."""

from typing import Any

from refsd.serve import a1111, native, openai
from refsd.serve.app import make_app
from refsd.serve.gallery import Gallery
from refsd.serve.metrics import Metrics
from refsd.serve.settings import Settings
from refsd.serve.studio import Studio


def application(studio: Studio, metrics: Metrics, settings: Settings) -> Any:
    """The ASGI application: the page and the APIs, for whom the settings let ask."""
    found = [*native.routes(studio, Gallery(studio.folder), body=settings.body),
             *openai.routes(studio), *a1111.routes(studio)]
    return make_app(found, settings, metrics=metrics, studio=studio)
