"""What goes wrong around a server that runs: clients that stall, lie and vanish, full disks."""

import json
import os
import resource
import signal
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from served import PATIENCE, serving
from web_samples import await_true
from web_samples import serving as in_thread

from refsd.serve import server
from refsd.serve.app import make_app
from refsd.serve.settings import Settings

SMALL = {"prompt": "a fox", "width": 64, "height": 64, "steps": 1, "preview": 0}
LONG = {**SMALL, "count": 8, "steps": 150, "preview": 1}
HALVES = [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def served(tiny_model, folder):
    """One for the whole file, with clients that have stalled from its beginning on."""
    with serving("-m", tiny_model, "--backend", "numpy", "-o", folder, "-v") as found:
        found.begun = time.monotonic()
        found.stalled = [found.connect(data) for data in HALVES for _ in range(10)]
        yield found


def post(served, said):
    answer = served.client.post("/api/v1/jobs", json=said)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def state(served, id):
    return served.client.get(f"/api/v1/jobs/{id}").json()["state"]


def ended(served, id):
    """The job, when it is over."""
    while state(served, id) not in ("done", "failed", "cancelled"):
        time.sleep(0.05)
    return served.client.get(f"/api/v1/jobs/{id}").json()


def request(served, path, body=None, **headers):
    """The bytes of a request."""
    data = b"" if body is None else json.dumps(body).encode()
    told = {"Host": f"localhost:{served.port}", "Content-Length": len(data),
            "Content-Type": "application/json", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value is not None)
    return f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def vanish(client):
    """Close as a machine does that is switched off and on again: with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def received(client):
    """All that comes until the end."""
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def files(served):
    """How many descriptors the process has open."""
    return len(os.listdir(f"/proc/{served.process.pid}/fd"))


def test_two_hundred_at_once(served):
    """All are answered, whatever they ask."""
    paths = ["/", "/health", "/api/v1/about", "/api/v1/jobs", "/metrics"]
    asking = [request(served, paths[at % 5], Connection="close") for at in range(200)]
    clients = [served.connect(each) for each in asking]
    for client in clients:
        assert received(client).startswith(b"HTTP/1.1 200 ")
        client.close()


def test_two_hundred_jobs_at_once(served):
    """As many as may wait do; the rest is told when to come again."""
    with ThreadPoolExecutor(50) as pool:
        answers = [*pool.map(lambda at: served.client.post("/api/v1/jobs", json=LONG), range(200))]
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(taken) in (16, 17) and len(taken) + len(refused) == 200
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    for id in taken:
        served.client.delete(f"/api/v1/jobs/{id}")
    assert {ended(served, id)["state"] for id in taken} == {"cancelled"}


BROKEN = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),  # TLS says hello
    (b"nonsense\r\n\r\n", 400), (b"GET /\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
    (b"GET / HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: {host}\r\nX-Y: " + b"x" * 20_000, 400),
    (b"GET /" + b"x" * 20_000, 400),
    (b"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\n"
     b"Content-Length: 2\r\n\r\n", 400),
    (b"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
     b"Content-Length: 99999999999\r\n\r\n", 413),
    (b"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
     b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
     b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", 200),
    (b"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
     b"Content-Length: 5\r\n\r\n\xff{}[]", 400),
]


@pytest.mark.parametrize("data, status", BROKEN)
def test_requests_that_are_none(served, data, status):
    with served.connect(data.replace(b"{host}", b"localhost:%d" % served.port)) as client:
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Traceback" not in answer and served.client.get("/health").status_code == 200


@pytest.mark.parametrize("close", [vanish, socket.socket.close])
def test_half_requests_leave_nothing_behind(served, close):
    before = files(served)
    whole = request(served, "/api/v1/jobs", SMALL)
    for cut in (1, 20, whole.index(b"\r\n\r\n") + 2, len(whole) - 1):
        for _ in range(10):
            close(served.connect(whole[:cut]))
    known = len(served.client.get("/api/v1/jobs").json()["jobs"])
    await_true(lambda: files(served) <= before)
    assert len(served.client.get("/api/v1/jobs").json()["jobs"]) == known


@pytest.mark.parametrize("close", [vanish, socket.socket.close])
def test_who_goes_away_while_waiting_cancels_the_job(served, close):
    client = served.connect(request(served, "/v1/images/generations", {
        "prompt": "a fox", "size": "64x64", "n": 8, "steps": 150}))
    await_true(lambda: served.newest().get("state") == "drawing")
    close(client)
    await_true(lambda: served.newest().get("state") == "cancelled")


def test_who_goes_away_from_events_stops_nothing(served):
    before, id = files(served), post(served, LONG)
    path = f"/api/v1/jobs/{id}/events"
    clients = [served.connect(request(served, path)) for _ in range(20)]
    for client in clients:
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    for at, client in enumerate(clients):
        (vanish if at % 2 else socket.socket.close)(client)
    await_true(lambda: files(served) <= before + 1)
    assert state(served, id) == "drawing"
    served.client.delete(f"/api/v1/jobs/{id}")
    assert ended(served, id)["state"] == "cancelled"


def test_a_full_disk_fails_the_job_alone(served, folder):
    """For a while no file can have more than 1,000 bytes: no picture, wherever it is to be kept,
    and not what the server says in its terminal."""
    before = sorted(folder.iterdir())
    former = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (1000, -1))
    try:
        job = ended(served, post(served, {**SMALL, "seed": 40}))
        answers = [served.client.post("/v1/images/generations", json={
            "prompt": "a fox", "size": "64x64", "steps": 1}),
            served.client.post("/sdapi/v1/txt2img", json={
                "prompt": "a fox", "width": 64, "height": 64, "steps": 1})]
        text = served.client.get("/api/v1/jobs").text
    finally:
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, former)
    assert (job["state"], job["error"]["code"], job["pictures"]) == ("failed", "disk-full", [])
    assert "File too large" in job["error"]["message"] and "Free some" in job["error"]["message"]
    for answer in answers:
        assert answer.status_code == 507 and "disk-full" in answer.text
        assert "File too large" in answer.text and "Traceback" not in text
    assert sorted(folder.iterdir()) == before  # no half file, no draft
    job = ended(served, post(served, {**SMALL, "seed": 41}))
    assert job["state"] == "done" and (folder / job["pictures"][0]["name"]).exists()


def test_memory_stays_flat(served):
    """Of many pictures nothing is held but the newest jobs' lines."""
    def draw(pictures):
        for _ in range(pictures // 8):
            assert ended(served, post(served, {**SMALL, "count": 8}))["state"] == "done"

    draw(16)
    before = served.memory()
    draw(24)
    assert served.memory() - before < 6 << 20


def test_slow_heads_are_cut_off(served):
    """Those that stalled when the server began; none of the other tests was held up by them."""
    left = server.HEAD_SECONDS - (time.monotonic() - served.begun)
    served.stalled[0].settimeout(max(left, 0) + 5)
    try:
        for client in served.stalled:
            assert client.recv(100) == b""
    except ConnectionResetError:
        pass
    assert time.monotonic() - served.begun >= server.HEAD_SECONDS


def test_more_connections_than_there_is_room_for(served):
    """Who comes later is told so, or not let in; files can still be opened."""
    idle = [served.connect() for _ in range(server.CONNECTIONS)]
    late = httpx.get(f"{served.url}health", trust_env=False)
    more = [served.connect() for _ in range(2 * server.MORE)]
    for client in more[-server.MORE // 2:]:
        client.settimeout(5)  # long before the head's time is over
        assert client.recv(1) == b""
    assert late.status_code == 503 and files(served) < server.CONNECTIONS + server.MORE + 100
    for client in (*idle, *more):
        client.close()
    await_true(lambda: httpx.get(f"{served.url}health", trust_env=False).status_code == 200)


def test_the_end_waits_for_nobody_who_does_not_read(served, folder):
    """The last test: the server ends in the middle of a job, with clients that hold on."""
    id = post(served, {**LONG, "steps": 20})
    stream = served.connect(request(served, f"/api/v1/jobs/{id}/events"))
    deaf = served.connect(request(served, "/") * 200)  # megabytes, of which it reads none
    half = served.connect(request(served, "/api/v1/jobs", SMALL)[:-5])
    await_true(lambda: state(served, id) == "drawing")
    code, _, err, seconds = served.end(signal.SIGTERM)
    assert code == 0 and seconds < 3 and "Traceback" not in err
    assert b"\nevent: cancelled\n" in received(stream)
    for client in (deaf, half):
        client.close()
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert path.suffix == ".png" and np.asarray(image).shape == (64, 64, 3)


async def much(scope, receive, send):
    """An application that has 16 MB to say, at once or in pieces."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        size = 1 << (24 if scope["path"] == "/at-once" else 16)
        for _ in range((1 << 24) // size - 1):
            await send({"type": "http.response.body", "body": bytes(size), "more_body": True})
        await send({"type": "http.response.body", "body": bytes(size)})


@pytest.mark.parametrize("path", ["at-once", "in-pieces"])
def test_who_does_not_read_is_cut_off_and_who_reads_slowly_is_not(monkeypatch, path):
    monkeypatch.setattr(server, "READING_SECONDS", 0.5)
    with in_thread(much, http=server.Connection, lifespan="off") as url:
        place = httpx.URL(url)

        def ask():
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
            client.settimeout(PATIENCE)
            client.connect((place.host, place.port))
            client.sendall(f"GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return client

        deaf, slow, size = ask(), ask(), 0
        begun = time.monotonic()
        while part := slow.recv(1 << 20):
            size += len(part)
            if time.monotonic() - begun < 2:
                time.sleep(0.02)
        assert size > 1 << 24
        assert sum(iter(lambda: len(deaf.recv(1 << 20)), 0)) < 1 << 23


@pytest.mark.parametrize("half", HALVES[1:])
def test_a_head_has_its_time(monkeypatch, half):
    """The second one of a connection too, from its first byte on."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    with in_thread(make_app(), http=server.Connection) as url:
        place = httpx.URL(url)
        with socket.create_connection((place.host, place.port), timeout=PATIENCE) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: %b\r\n\r\n" % place.netloc)
            said = b""
            while b"ok" not in said:
                said += client.recv(1000)
            time.sleep(0.4)  # between two requests there is more time
            begun = time.monotonic()
            client.sendall(half)
            assert client.recv(1000) == b"" and 0.25 < time.monotonic() - begun < 2


def test_a_body_has_its_time(monkeypatch):
    with in_thread(make_app(settings=Settings(stall=0.3)), http=server.Connection) as url:
        place = httpx.URL(url)
        with socket.create_connection((place.host, place.port), timeout=PATIENCE) as client:
            client.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nHost: %b\r\nContent-Length: 9\r\n"
                           b"Content-Type: application/json\r\n\r\n{" % place.netloc)
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
