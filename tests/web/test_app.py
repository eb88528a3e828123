"""The application: what is served without any API, and errors as each API writes them."""

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from refsd.errors import ResourceError, UsageError
from refsd.serve.answers import answer
from refsd.serve.app import make_app
from refsd.serve.bodies import read_json
from refsd.serve.refusals import Refused

ERRORS = {"usage": UsageError("steps is 0; give 1 to 150"), "fault": ZeroDivisionError("secret"),
          "full": OSError(28, "No space left on device", "a.png"), "disk": ResourceError("no"),
          "refused": Refused(429, "queue.full", "3 wait", retry_after="5")}
PREFIX = {"native": "/api/v1", "openai": "/v1", "a1111": "/sdapi/v1"}


async def echo(request):
    return answer(await read_json(request))


def fail(request):
    raise ERRORS[request.path_params["kind"]]


@pytest.fixture(scope="module")
def client():
    routes = [Route(f"{prefix}/fail/{{kind}}", fail) for prefix in PREFIX.values()]
    app = make_app([*routes, Route("/api/v1/echo", echo, methods=["POST"])])
    return TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)


def test_an_object_comes_back(client):
    found = client.post("/api/v1/echo", json={"seed": 2**64 - 1, "prompt": "ä"})
    assert found.status_code == 200 and found.json() == {"seed": 2**64 - 1, "prompt": "ä"}


def test_it_is_up(client):
    assert client.get("/health").json() == {"status": "ok"}


def bodies(client, kind):
    for name, prefix in PREFIX.items():
        found = client.get(f"{prefix}/fail/{kind}")
        yield name, found.status_code, found.json(), found.headers


@pytest.mark.parametrize("kind, status, code", [
    ("usage", 422, "usage"), ("fault", 500, "internal"), ("full", 507, "resource"),
    ("disk", 500, "resource"), ("refused", 429, "queue.full"),
])
def test_errors_are_said_as_each_api_says_them(client, kind, status, code):
    for name, given, body, headers in bodies(client, kind):
        assert given == (400 if (name, status) == ("openai", 422) else status)
        message = {"native": lambda body: body["error"]["message"],
                   "openai": lambda body: body["error"]["message"],
                   "a1111": lambda body: body["detail"]}[name](body)
        assert message and "secret" not in message
        assert code == (body["error"] if name == "a1111" else body["error"]["code"])
        assert headers.get("retry-after") == ("5" if kind == "refused" else None)
