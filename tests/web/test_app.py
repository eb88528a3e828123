"""The application: what is served without any API, and errors as each API writes them."""

import asyncio
import base64
import hashlib
import re

import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from web_samples import HOME

from refsd.errors import ResourceError, UsageError
from refsd.serve import policy
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
    return TestClient(app, base_url=HOME, follow_redirects=False)


def test_an_object_comes_back(client):
    found = client.post("/api/v1/echo", json={"seed": 2**64 - 1, "prompt": "ä"})
    assert found.status_code == 200 and found.json() == {"seed": 2**64 - 1, "prompt": "ä"}


def test_it_is_up(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.head("/health").status_code == 200


def test_whether_it_is_up_is_said_without_a_thread(client, monkeypatch):
    """Of which there are few: they may all be reading pictures."""
    monkeypatch.setattr("anyio.to_thread.run_sync", None)
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 500  # which is read in one


def test_the_page_may_do_what_it_does(client):
    """Its own script and style, as they are, run: a browser would say so if a hash were wrong."""
    found = client.get("/")
    policy = dict(part.split(" ", 1) for part in
                  found.headers["content-security-policy"].split("; "))
    for tag in ("script", "style"):
        text, = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", found.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy == {"default-src": "'none'", "connect-src": "'self'", "base-uri": "'none'",
                      "img-src": "'self' data: blob:", "form-action": "'none'",
                      "frame-ancestors": "'none'"}
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.findall(r"""<[^>]+\s(?:style|on\w+)=["']""", found.text)  # none is let
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", found.text.partition("<script")[0])


def test_a_page_without_scripts_runs_none():
    assert "script-src 'none'; style-src 'none'" in policy.policy("<p>")
    assert policy.policy("<style>a</style><style>b</style>").count("sha256-") == 2


def test_what_is_not_there_is_said_with_where_to_look(client):
    found = client.get("/api/v1/nowhere")
    assert (found.status_code, found.json()) == (404, {"error": {
        "code": "not-found", "message": "there is no /api/v1/nowhere here; docs/server.md lists "
        "what there is"}})
    assert client.post("/api/v1/echo/").status_code == client.get("/%2f").status_code == 404
    found = client.get("/api/v1/echo")
    assert found.status_code == 405 and found.headers["allow"] == "POST"
    assert found.json()["error"]["message"] == "/api/v1/echo takes POST; see docs/server.md"
    assert client.post("/health").headers["allow"] == "GET, HEAD"
    assert client.get("/metrics").status_code == 404


def test_the_methods_of_all_routes_of_a_path_are_said():
    routes = [Route("/a/{id}", fail, methods=["GET"]), Route("/b", fail, methods=["PUT"]),
              Route("/a/{id}", echo, methods=["DELETE"])]
    found = TestClient(make_app(routes), HOME).post("/a/1")
    assert (found.status_code, found.headers["allow"]) == (405, "DELETE, GET, HEAD")


def test_without_the_page_there_is_none():
    assert TestClient(make_app(page=False), HOME).get("/").status_code == 404


def test_it_starts_and_ends(client):
    with client as running:
        assert running.get("/health").status_code == 200


def ask(endpoint, receive=None):
    """The messages of an answer."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(make_app([Route("/it", endpoint)])(
        {"type": "http", "method": "GET", "path": "/it", "query_string": b"", "scheme": "http",
         "headers": [(b"host", b"localhost")], "server": ("127.0.0.1", 80)}, receive, send))
    return sent


def test_a_fault_after_the_answer_began_is_the_servers_to_end():
    async def begins(request):
        async def parts():
            yield b"a"
            raise ZeroDivisionError

        return StreamingResponse(parts())

    async def receive():
        await asyncio.sleep(60)

    with pytest.raises(ZeroDivisionError):
        ask(begins, receive)


def test_who_left_is_answered_nothing():
    async def leaves(request):
        raise ClientDisconnect

    assert ask(leaves) == []


def test_the_log_has_the_fault_once(client, caplog):
    assert client.get("/v1/fail/fault").status_code == 500
    assert len([each for each in caplog.records if each.exc_info]) == 1


def bodies(client, kind):
    for name, prefix in PREFIX.items():
        found = client.get(f"{prefix}/fail/{kind}")
        yield name, found.status_code, found.json(), found.headers


@pytest.mark.parametrize("kind, status, code", [
    ("usage", 422, "usage"), ("fault", 500, "internal"), ("full", 507, "disk-full"),
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
