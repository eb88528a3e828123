"""The guard on real sockets: what is slow, large, half or gone, of which a TestClient knows not."""

import asyncio
import json
import logging
import socket
import threading
import time

import httpx
import pytest
from starlette.responses import Response
from starlette.routing import Route
from web_samples import PATIENCE, await_true, serving

from refsd.serve.answers import answer
from refsd.serve.app import make_app
from refsd.serve.settings import Settings
from refsd.serve.stream import streamed

STALL, WHOLE, MOST = 0.4, 1.5, 1 << 20
JSON = b"Content-Type: application/json\r\n"
seen = []


async def size(request):
    body = await request.body()
    seen.append(len(body))
    return answer({"size": len(body)})


def large(request):
    return Response(bytes(64 << 20), media_type="image/png")


async def endless(request):
    """More than anybody takes, without ever waiting for anything."""
    async def pairs():
        try:
            while True:
                yield "part", "x" * (1 << 20)
        finally:
            seen.append("ended")

    return streamed(pairs())


@pytest.fixture(scope="module")
def url():
    routes = [Route("/api/v1/size", size, methods=["GET", "POST"]), Route("/large", large),
              Route("/endless", endless)]
    with serving(make_app(routes, Settings(stall=STALL, whole=WHOLE, body=MOST))) as found:
        yield found


@pytest.fixture(autouse=True)
def forgotten():
    seen.clear()


class Raw:
    """A connection that says what it is told to, and nothing else."""

    def __init__(self, url):
        self.host = url.removeprefix("http://")
        name, port = self.host.split(":")
        self.socket = socket.create_connection((name, int(port)), PATIENCE)

    def say(self, head, *headers):
        lines = [head, b"Host: " + self.host.encode(), *headers, b"", b""]
        self.socket.sendall(b"\r\n".join(line.removesuffix(b"\r\n") for line in lines))

    def rest(self):
        """All that comes until the other side closes."""
        parts = []
        while part := self.socket.recv(1 << 20):
            parts.append(part)
        return b"".join(parts)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()


def post(raw, *headers):
    raw.say(b"POST /api/v1/size HTTP/1.1", JSON, *headers)


def told(answer):
    """The status, and the short name of what is refused."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_body_that_stalls_is_given_up(url):
    with Raw(url) as raw:
        start = time.monotonic()
        post(raw, b"Content-Length: 100")
        raw.socket.sendall(b"{")
        assert told(raw.rest()) == (408, "body.slow")
        assert STALL < time.monotonic() - start < 2 * STALL + 1 and not seen


def test_a_body_that_trickles_is_given_up(url):
    with Raw(url) as raw:
        start = time.monotonic()
        post(raw, b"Transfer-Encoding: chunked")
        try:
            while time.monotonic() < start + 10:
                raw.socket.sendall(b"1\r\n{\r\n")
                time.sleep(STALL / 4)
        except OSError:
            pass  # it was closed
        assert WHOLE < time.monotonic() - start < WHOLE + 2 and not seen


def test_a_client_that_leaves_in_the_middle_asks_nothing(url, caplog):
    with Raw(url) as raw:
        post(raw, b"Content-Length: 100")
        raw.socket.sendall(b"{")
        time.sleep(STALL / 4)
    time.sleep(STALL * 2)
    assert not seen and not [each for each in caplog.records if each.levelno >= logging.WARNING]


def chunks(count, size=1 << 16):
    for _ in range(count):
        yield bytes(size)


@pytest.mark.parametrize("content, passes", [
    (bytes(MOST), True), (bytes(MOST + 1), False), (bytes(64 << 20), False),
    (chunks(16), True), (chunks(17), False), (chunks(1024), False)])
def test_who_sends_too_much_is_told_so(url, content, passes):
    """And not cut off with the answer unread, however much is still on its way."""
    found = httpx.post(f"{url}/api/v1/size", content=content,
                       headers={"content-type": "application/json"})
    assert found.status_code == (200 if passes else 413) and seen == ([MOST] if passes else [])


class Waiting:
    """An endpoint that answers when it is let, in another thread."""

    def __init__(self):
        self.reached, self.free = threading.Event(), threading.Event()

    async def __call__(self, scope, receive, send):
        self.reached.set()
        await asyncio.to_thread(self.free.wait, PATIENCE)
        await answer({})(scope, receive, send)


async def fail(request):
    raise ZeroDivisionError


@pytest.fixture
def narrow():
    """A server with room for one of the largest bodies, not for a byte more."""
    waiting = Waiting()
    routes = [Route("/api/v1/size", size, methods=["POST"]),
              Route("/api/v1/fail", fail, methods=["POST"]),
              Route("/api/v1/wait", waiting, methods=["POST"])]
    with serving(make_app(routes, Settings(stall=STALL, whole=WHOLE, body=MOST,
                                           bodies=MOST))) as url:
        yield url, waiting
        waiting.free.set()


def fits(url, content=bytes(MOST)):
    """Whether there is room for a largest body now."""
    found = httpx.post(f"{url}/api/v1/size", content=content,
                       headers={"content-type": "application/json"})
    if found.status_code == 503:
        assert found.json()["error"]["code"] == "bodies" and found.headers["retry-after"] == "5"
    return found.status_code == 200


def test_bodies_have_room_together_until_they_are_answered(narrow):
    url, waiting = narrow
    held = threading.Thread(target=httpx.post, args=[f"{url}/api/v1/wait"], kwargs={
        "content": b"{", "headers": {"content-type": "application/json"}, "timeout": PATIENCE})
    held.start()
    assert waiting.reached.wait(PATIENCE)
    assert not fits(url) and not fits(url, chunks(16)) and seen == []
    assert fits(url, bytes(MOST - 1)) and fits(url, chunks(15))
    assert httpx.get(f"{url}/health").status_code == 200
    waiting.free.set()
    held.join(PATIENCE)
    assert fits(url) and fits(url, chunks(16))


def test_a_body_for_which_there_is_no_room_is_not_asked_for():
    app = make_app([Route("/api/v1/size", size, methods=["POST"])],
                   Settings(body=MOST, bodies=MOST))
    with serving(app) as url, Raw(url) as first, Raw(url) as second:
        post(first, b"Content-Length: %d" % MOST)  # counted, before it is there
        first.socket.sendall(b"{")
        await_true(lambda: not fits(url, b"{"))
        post(second, b"Expect: 100-continue", b"Content-Length: 1")
        assert second.socket.recv(1 << 16).startswith(b"HTTP/1.1 503")


def leave(raw):
    raw.socket.close()


def read(raw):
    raw.rest()


@pytest.mark.parametrize("headers, sent, ending", [
    ([b"Content-Length: 100000"], bytes(1000), leave),
    ([b"Content-Length: 100000"], bytes(1000), read),  # it stalls: 408
    ([b"Transfer-Encoding: chunked"], b"3e8\r\n" + bytes(1000) + b"\r\n", leave),
    ([b"Transfer-Encoding: chunked"], b"3e8\r\n" + bytes(1000) + b"\r\n", read),
    ([b"Transfer-Encoding: chunked"], b"3e8\r\n" + bytes(1000) + b"\r\nnonsense\r\n", read),
    ([b"Transfer-Encoding: chunked"], b"f0000\r\n" + bytes(0xf0000) + b"\r\n100000\r\n"
     + bytes(1 << 20) + b"\r\n0\r\n\r\n", read),  # too large: 413
])
def test_the_room_of_a_body_that_never_comes_is_given_back(narrow, headers, sent, ending):
    url, _ = narrow
    with Raw(url) as raw:
        post(raw, *headers)
        raw.socket.sendall(sent)
        time.sleep(STALL / 4)
        ending(raw)
        await_true(lambda: fits(url))


@pytest.mark.parametrize("path, status", [("size", 200), ("fail", 500), ("nowhere", 404)])
def test_the_room_of_a_body_is_given_back_with_the_answer(narrow, path, status):
    url, _ = narrow
    for content in (bytes(MOST), chunks(16)):
        found = httpx.post(f"{url}/api/v1/{path}", content=content,
                           headers={"content-type": "application/json"})
        assert found.status_code == status and fits(url)


def test_a_client_that_sends_before_it_listens_hears_the_answer():
    """A connection that was closed meanwhile would be reset, and many clients stop there."""
    with serving(make_app([], Settings(body=MOST))) as url, Raw(url) as raw:
        post(raw, b"Content-Length: %d" % (64 << 20))
        raw.socket.sendall(bytes(64 << 20))
        assert told(raw.rest()) == (413, "body.large")


def test_who_waits_to_be_asked_for_a_body_is_told_before(url):
    for length, expected in ((MOST + 1, b"HTTP/1.1 413"), (2, b"HTTP/1.1 100")):
        with Raw(url) as raw:
            post(raw, b"Expect: 100-continue", b"Content-Length: %d" % length)
            assert raw.socket.recv(1 << 16).startswith(expected)


def test_what_is_refused_is_no_next_request(url):
    """The body of a request that was refused may look like another one."""
    inner = b"POST /api/v1/size HTTP/1.1\r\nHost: %s\r\n\r\n" % url.removeprefix("http://").encode()
    with Raw(url) as raw:
        raw.say(b"POST /api/v1/size HTTP/1.1", b"Content-Type: text/plain",
                b"Content-Length: %d" % len(inner))
        raw.socket.sendall(inner)
        found = raw.rest()
    assert found.count(b"HTTP/1.1") == 1 and told(found) == (415, "content-type") and not seen


def test_who_takes_nothing_is_left(url, caplog):
    """Of an answer at once and of a stream; the memory of what is not taken is let go of."""
    for path in (b"/large", b"/endless"):
        with Raw(url) as raw:
            raw.say(b"GET %s HTTP/1.1" % path)
            time.sleep(STALL * 3)
            assert len(raw.rest()) < 32 << 20
    assert seen == ["ended"] and "Traceback" not in caplog.text


def test_who_takes_slowly_gets_all(url):
    with Raw(url) as raw:
        raw.say(b"GET /large HTTP/1.1", b"Connection: close")
        raw.socket.recv(1)
        time.sleep(STALL / 2)
        assert len(raw.rest()) > 64 << 20


def test_a_stream_ends_with_its_client(url):
    with Raw(url) as raw:
        raw.say(b"GET /endless HTTP/1.1")
        assert raw.socket.recv(1 << 20)
    await_true(lambda: "ended" in seen)


def test_many_at_once(url):
    found = []

    def ask():
        found.append(httpx.post(f"{url}/api/v1/size", json={"a": 1}, timeout=PATIENCE).status_code)

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [200] * 50
