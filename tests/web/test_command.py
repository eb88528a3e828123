"""refsd serve as a process: what it says, what it answers, and how it ends."""

import json
import os
import re
import signal
import socket
import time

import chaos
import pytest
from served import PATIENCE, serving

TOKEN = "abcdefgh_-.~0123"


@pytest.fixture(scope="module")
def served(tiny_model, tmp_path_factory):
    """One for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("served") / "pictures"
    with serving("-m", tiny_model, "--backend", "numpy", "-o", folder, "-v") as found:
        found.folder = folder
        yield found


def test_the_page_and_health_are_answered(served):
    page = served.client.get("/")
    assert page.status_code == 200 and page.text.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert served.client.get("/health").json()["status"] == "ok"
    assert served.client.get("/metrics").status_code == 200
    assert "server" not in page.headers


def test_another_name_is_refused(served):
    answer = served.client.get("/", headers={"Host": f"evil.example:{served.port}"})
    assert answer.status_code == 421


def test_what_is_not_there_names_the_documents(served):
    answer = served.client.get("/nowhere")
    assert answer.status_code == 404 and "docs/server.md" in answer.text


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_an_idle_server_ends_at_once(tiny_model, tmp_path, number, code):
    with serving("-m", tiny_model, "--backend", "numpy", "-o", tmp_path / "p") as found:
        idle = found.connect()  # which says nothing
        kept = found.client.get("/health")
        ended = found.end(number)
    assert kept.status_code == 200 and idle.recv(1) == b""
    assert ended[:3] == (code, b"", "refsd: the server has ended\n") and ended[3] < 2


def test_clients_can_connect_before_the_models_are_read(tiny_model, tmp_path):
    """They are answered when it is ready."""
    with listener_of_a_free_port() as free:
        port = free.getsockname()[1]
    process = chaos.start("serve", "--port", port, "-m", tiny_model, "--backend", "numpy", "-o",
                          tmp_path, "--json")
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        early = os.get_blocking(process.stdout.fileno())
        os.set_blocking(process.stdout.fileno(), False)
        assert process.stdout.read() is None  # it has not said yet that it is ready
        os.set_blocking(process.stdout.fileno(), early)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % port)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    said = json.loads(out)
    assert said == {"url": f"http://127.0.0.1:{port}/", "pid": process.pid, "models": ["tiny"],
                    "output": str(tmp_path)}


def listener_of_a_free_port():
    return socket.create_server(("127.0.0.1", 0))


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path):
    with listener_of_a_free_port() as taken:
        port = taken.getsockname()[1]
        code, out, err = chaos.run("serve", "--port", port, "-o", tmp_path / "p")
    assert (code, out) == (4, b"") and err.decode() == (
        f"refsd: error: 127.0.0.1:{port}: another program listens there. Give another --port, 0 "
        "for any that is free, or another --host\n")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("words, code, said", [
    (["-m", "no/such/folder"], 2, "no/such/folder"), (["--lora-dir", "no/such"], 2, "no/such"),
    (["-o", "/proc/pictures"], 4, "/proc/pictures"),
])
def test_what_cannot_be_served_ends_it(words, code, said):
    found, out, err = chaos.run("serve", "--port", "0", *words)
    assert (found, out) == (code, b"") and said in err.decode() and err.count(b"\n") == 1


def test_the_token_comes_from_the_environment_and_is_said_nowhere(tiny_model, tmp_path):
    with serving("-m", tiny_model, "--backend", "numpy", "-o", tmp_path, "-v", "--host", "0.0.0.0",
                 env=chaos.environment(REFSD_TOKEN=TOKEN)) as found:
        assert f"//{socket.gethostname()}:" in found.url
        found.client.base_url = f"http://127.0.0.1:{found.port}"
        assert found.client.get("/").status_code == 401
        given = found.client.get("/", params={"token": TOKEN})
        assert given.status_code == 303 and found.client.get("/").status_code == 200
        bearer = {"Authorization": f"Bearer {TOKEN}",
                  "Host": f"{socket.gethostname()}:{found.port}"}
        found.client.cookies.clear()
        assert found.client.get("/metrics", headers=bearer).status_code == 200
        code, _, err, _ = found.end()
    assert code == 0 and TOKEN not in err
    assert re.search(r"(?m)^refsd: 127\.0\.0\.1:\d+ GET / 303$", err)
