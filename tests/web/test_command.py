"""refsd serve as a process: what it says, what it answers, and how it ends."""

import base64
import json
import os
import re
import signal
import socket
import threading
import time

import chaos
import httpx
import numpy as np
import pytest
from PIL import Image
from served import PATIENCE, serving
from web_samples import await_true

from refsd.__main__ import main

TOKEN = "abcdefgh_-.~0123"
SECRET = "a fox that nobody is to hear of"


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


def test_small_answers_come_at_once(served):
    """Not when the client's system acknowledges the head, a twentieth of a second later."""
    served.client.get("/health")
    begun = time.monotonic()
    for _ in range(50):
        served.client.get("/health")
    assert time.monotonic() - begun < 50 * 0.03


def test_another_name_is_refused(served):
    answer = served.client.get("/", headers={"Host": f"evil.example:{served.port}"})
    assert answer.status_code == 421


def test_what_is_not_there_names_the_documents(served):
    answer = served.client.get("/nowhere")
    assert answer.status_code == 404 and "docs/server.md" in answer.text


def drawing(served, **said):
    """A request for pictures in a thread; a list that will have its answer."""
    request = {"prompt": SECRET, "size": "64x64", "response_format": "b64_json", **said}
    answers = []

    def ask():
        try:
            answers.append(served.client.post("/v1/images/generations", json=request))
        except httpx.HTTPError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def test_a_picture_is_that_of_refsd_draw(served, tiny_model, tmp_path):
    thread, answers = drawing(served, seed=5, steps=2)
    thread.join(PATIENCE)
    assert main(["-p", SECRET, "-m", str(tiny_model), "-W", "64", "-H", "64", "--steps", "2", "-s",
                 "5", "-q", "--backend", "numpy", "-o", str(tmp_path / "x.png")]) == 0
    drawn = (tmp_path / "x.png").read_bytes()
    assert base64.b64decode(answers[0].json()["data"][0]["b64_json"]) == drawn
    assert (served.folder / "refsd-5.png").read_bytes() == drawn


def test_a_request_that_is_wrong_stops_nothing(served):
    thread, answers = drawing(served, steps=1000)
    thread.join(PATIENCE)
    assert answers[0].status_code == 400 and "steps" in answers[0].text
    assert served.client.get("/health").status_code == 200


def test_ctrl_c_ends_an_idle_server_at_once(tiny_model, tmp_path):
    with serving("-m", tiny_model, "--backend", "numpy", "-o", tmp_path / "p") as found:
        idle = found.connect()  # which says nothing
        kept = found.client.get("/health")
        ended = found.end(signal.SIGINT)
    assert kept.status_code == 200 and idle.recv(1) == b""
    assert ended[:3] == (130, b"", "refsd: the server has ended\n") and ended[3] < 2


def test_sigterm_in_the_middle_keeps_what_is_finished(tiny_model, tmp_path):
    with serving("-m", tiny_model, "--backend", "numpy", "-o", tmp_path, "-v") as found:
        asked = [drawing(found, n=8, steps=10) for _ in range(2)]
        await_true(lambda: [*tmp_path.glob("refsd-*.png")])
        code, _, err, seconds = found.end()
        for thread, _ in asked:
            thread.join(PATIENCE)
    assert code == 0 and seconds < 3
    pictures = sorted(tmp_path.iterdir())
    assert 1 <= len(pictures) < 8
    for path in pictures:
        with Image.open(path) as image:
            assert path.suffix == ".png" and np.asarray(image).shape == (64, 64, 3)
    assert [answers[0].status_code for _, answers in asked] == [409, 409]
    assert err.splitlines()[-1] == "refsd: the server has ended" and SECRET not in err
    assert "refsd: stopping at the end of this step; once more to stop at once\n" in err
    assert "Traceback" not in err


def test_a_second_signal_ends_it_in_the_middle_of_a_step(tiny_model, tmp_path):
    with serving("-m", tiny_model, "--backend", "numpy", "-o", tmp_path) as found:
        thread, answers = drawing(found, size="1024x1024")  # a step takes many seconds
        await_true(lambda: found.newest().get("steps"))  # the first one is next
        time.sleep(0.2)
        code, _, err, seconds = found.end(signal.SIGTERM, signal.SIGINT, pause=0.5)
        thread.join(PATIENCE)
    assert code == 130 and seconds < 2 and not [*tmp_path.iterdir()]
    assert isinstance(answers[0], httpx.RemoteProtocolError)


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
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    said = json.loads(out)
    assert (process.returncode, err) == (0, b"")
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
