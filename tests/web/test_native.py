"""/api/v1: what its answers hold, and who is refused what."""

import base64
import json
import threading
import time

import pytest
from starlette.testclient import TestClient

from refsd.cli import draw
from refsd.cli.pictures import as_picture
from refsd.serve import drawer, native, recall
from refsd.serve.app import make_app
from refsd.serve.asked import Limits
from refsd.serve.gallery import Gallery
from refsd.serve.models import find_models
from refsd.serve.studio import Studio
from refsd.version import __version__

SMALL = {"prompt": "a red sphere", "width": 64, "height": 64, "steps": 3}
BASE = draw.parser().parse_args(["--backend", "numpy"])


@pytest.fixture(scope="module")
def shop(tiny_model, tmp_path_factory):
    made = Studio(find_models([str(tiny_model), "bundled"]), tmp_path_factory.mktemp("pictures"),
                  {"style": "/loras/style.safetensors"}, Limits(queue=2, history=99), base=BASE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(shop):
    app = make_app(native.routes(shop, Gallery(shop.folder), body=32 << 20))
    return TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)


@pytest.fixture(scope="module")
def done(client, shop):
    """A job of two pictures that is over, as JSON."""
    found = client.post("/api/v1/jobs", json={**SMALL, "seed": 2**64 - 2, "count": 2})
    assert shop.get(found.json()["id"]).join(60)
    return client.get(found.headers["location"]).json()


@pytest.fixture
def held(shop, monkeypatch):
    """A job that waits at the end of its first step until the test is over."""
    free, step = threading.Event(), drawer._Steps.__call__

    def stopping(own, *said):
        assert free.wait(60)
        step(own, *said)

    monkeypatch.setattr(drawer._Steps, "__call__", stopping)
    job = shop.submit(shop.read(SMALL))
    while not job.steps:
        time.sleep(0.01)
    yield job
    shop.cancel(job.id)
    free.set()
    assert job.join(60)


def test_what_the_server_has(client):
    said = client.get("/api/v1/about").json()
    assert (said["version"], said["model"], said["loras"]) == (__version__, "tiny", ["style"])
    assert said["models"][0] == {
        "id": "tiny", "name": "Stable Diffusion 1.x", "width": 64, "height": 64, "multiple": 2,
        "cfg_scale": 7.0, "edits": False,
    } | {key: said["models"][0][key] for key in ("width", "height", "multiple")}
    assert said["models"][1]["cfg_scale"] == draw.BUNDLED_CFG_SCALE
    assert "euler" in said["samplers"] and "karras" in said["schedules"]
    assert said["defaults"] == {"steps": 20, "cfg_scale": 7.0, "count": 1, "strength": 0.75,
                                "compat": "diffusers", "rng": "torch-cpu"}
    assert said["limits"]["body"] == 32 << 20 and said["limits"]["queue"] == 2


def test_the_servers_own_guidance_is_the_default(tiny_model, tmp_path):
    base = draw.parser().parse_args(["--cfg-scale", "5", "--steps", "9", "--compat", "a1111"])
    said = native.about(Studio(find_models(["bundled"]), tmp_path, base=base), 1)
    assert said["models"][0]["cfg_scale"] == said["defaults"]["cfg_scale"] == 5
    assert (said["defaults"]["steps"], said["defaults"]["rng"]) == (9, "cuda")


def test_a_job_from_its_beginning_to_its_end(client, done, shop):
    assert done["state"] == "done" and done["error"] is None and done["position"] == 0
    assert (done["index"], done["count"], done["step"], done["steps"]) == (1, 2, 3, 3)
    assert done["created"] <= done["started"] <= done["ended"] and done["seconds"] > 0
    assert done["request"] == {**SMALL, "seed": 2**64 - 2, "count": 2}
    assert [picture["seed"] for picture in done["pictures"]] == [2**64 - 2, 2**64 - 1]
    first, file = done["pictures"][0], shop.get(done["id"]).pictures[0]
    assert first == {"name": file.name, "url": f"/api/v1/pictures/{file.name}?v={file.pixels[:16]}",
                     "seed": 2**64 - 2, "prompt": "a red sphere", "width": 64, "height": 64}
    assert done in client.get("/api/v1/jobs").json()["jobs"]


def test_a_new_job_is_answered_at_once(client, held, shop):
    found = client.post("/api/v1/jobs", json=SMALL)
    job = found.json()
    assert found.status_code == 201 and (job["state"], job["position"]) == ("queued", 1)
    assert (job["seconds"], job["remaining"], job["started"], job["ended"]) == (None,) * 4
    assert found.headers["location"] == f"/api/v1/jobs/{job['id']}"
    client.post("/api/v1/jobs", json=SMALL)
    full = client.post("/api/v1/jobs", json=SMALL)
    assert full.status_code == 429 and full.json()["error"]["code"] == "queue.full"
    for waiting in client.get("/api/v1/jobs").json()["jobs"]:
        if waiting["state"] == "queued":
            over = client.delete(f"/api/v1/jobs/{waiting['id']}")
            assert (over.status_code, over.json()["state"]) == (200, "cancelled")


def test_warnings_call_fields_as_they_are_called(client, shop):
    job = client.post("/api/v1/jobs", json={**SMALL, "negative_prompt": "b", "cfg_scale": 1}).json()
    assert shop.get(job["id"]).join(60)
    warnings = client.get(f"/api/v1/jobs/{job['id']}").json()["warnings"]
    assert len(warnings) == 1 and warnings[0].startswith("negative_prompt changes nothing")


def test_what_is_drawn_is_cancelled_after_its_step(client, held):
    assert client.get(f"/api/v1/jobs/{held.id}").json()["state"] == "drawing"
    assert client.delete(f"/api/v1/jobs/{held.id}").json()["state"] == "drawing"
    assert held.stop


@pytest.mark.parametrize("body, status, words", [
    ({"prompt": "a", "steps": 0}, 422, "steps is 0"), ({}, 422, "there is no prompt"),
    ([1], 400, "one object"), ({"prompt": "a", "output": "/etc/x"}, 422, "no field 'output'"),
])
def test_requests_are_judged_before_they_wait(client, body, status, words):
    found = client.post("/api/v1/jobs", json=body)
    assert found.status_code == status and words in found.json()["error"]["message"]


@pytest.mark.parametrize("method, path, allowed", [
    ("PUT", "/jobs", "GET, HEAD, POST"), ("POST", "/jobs/x", "DELETE, GET, HEAD"),
    ("DELETE", "/about", "GET, HEAD"), ("GET", "/read", "POST"),
])
def test_other_methods_are_refused(client, method, path, allowed):
    found = client.request(method, f"/api/v1{path}")
    assert found.status_code == 405
    assert ", ".join(sorted(found.headers["allow"].split(", "))) == allowed


@pytest.mark.parametrize("method, path", [("GET", "/jobs/x"), ("DELETE", "/jobs/x"),
                                          ("GET", "/jobs/x/events"), ("GET", "/pictures/x.png"),
                                          ("GET", "/pictures/x.png/recipe"),
                                          ("GET", "/pictures/..%2Fx.png"), ("GET", "/nothing")])
def test_what_is_not_there(client, method, path):
    found = client.request(method, f"/api/v1{path}")
    assert found.status_code == 404 and found.json()["error"]["message"]


def events_of(client, id):
    """Names and values, as a browser reads them."""
    text = client.get(f"/api/v1/jobs/{id}/events")
    assert text.headers["content-type"].startswith("text/event-stream")
    for block in text.text.strip().split("\n\n"):
        name, data = block.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_the_events_of_a_job(client, shop):
    job = client.post("/api/v1/jobs", json={**SMALL, "model": "bundled", "seed": 3}).json()
    found = list(events_of(client, job["id"]))
    names = [name for name, _ in found]
    assert names[0] == "state" and names[-2:] == ["picture", "done"]
    by_name = dict(found)
    assert by_name["step"]["steps"] == 3
    assert by_name["picture"] == by_name["done"]["pictures"][0]
    head, _, data = by_name["preview"]["image"].partition(",")
    picture = as_picture("it", base64.b64decode(data))
    assert head == "data:image/png;base64" and picture.width == picture.height
    assert by_name["preview"]["step"] in (1, 2)
    assert list(events_of(client, job["id"]))[-1] == ("done", by_name["done"])


def test_pictures_in_pages(client, done):
    found = client.get("/api/v1/pictures?limit=1").json()
    assert len(found["pictures"]) == 1 and found["more"] is True
    older = client.get(f"/api/v1/pictures?before={found['pictures'][0]['name']}").json()
    assert found["pictures"][0] not in older["pictures"] and older["more"] is False
    everything = found["pictures"] + older["pictures"]
    assert all(picture in everything for picture in done["pictures"])


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "1.5", "²", "1" * 5000])
def test_a_limit_is_a_number(client, limit):
    found = client.get("/api/v1/pictures", params={"limit": limit})
    assert found.status_code == 422 and "limit is" in found.json()["error"]["message"]


def test_a_picture_is_kept_under_its_pixels_alone(client, done, shop):
    url, file = done["pictures"][0]["url"], shop.get(done["id"]).pictures[0]
    found = client.get(url)
    assert found.content == file.png and found.headers["content-type"] == "image/png"
    assert "immutable" in found.headers["cache-control"]
    for other in (url.partition("?")[0], url[:-1], url.partition("?")[0] + "?v="):
        assert client.get(other).headers["cache-control"] == "no-cache"


def test_names_are_quoted_in_addresses(client, done, shop):
    odd = "a # ? % é.png"
    (shop.folder / odd).write_bytes(shop.get(done["id"]).pictures[0].png)
    try:
        found = client.get("/api/v1/pictures?limit=1").json()["pictures"][0]
        assert found["name"] == odd and client.get(found["url"]).status_code == 200
        assert client.get(found["url"].replace("?v=", "/recipe?v=")).json()["request"]
    finally:
        (shop.folder / odd).unlink()


def test_the_recipe_of_a_picture(client, done):
    found = client.get(f"/api/v1/pictures/{done['pictures'][1]['name']}/recipe").json()
    assert found["request"] == {**SMALL, "seed": 2**64 - 1, "cfg_scale": 7, "sampler": "ddim",
                                "model": "tiny"}
    assert "Steps: 3" in found["infotext"] and found["missing"] == []


def test_a_picture_that_is_dropped(client, done, shop):
    data = shop.get(done["id"]).pictures[0].png
    said = {"content": data, "headers": {"Content-Type": "image/png"}}
    found = client.post("/api/v1/read", **said)
    assert found.status_code == 200 and found.json()["request"]["seed"] == 2**64 - 2
    for content, words in ((b"x", "not a PNG, JPEG or WebP"), (b"", "not a PNG"),
                           (data[:40], "does not say how it was made")):
        found = client.post("/api/v1/read", **{**said, "content": content})
        assert found.status_code == 422 and words in found.json()["error"]["message"]


def test_the_loop_is_free_while_files_are_read(client, done, shop, monkeypatch):
    """Listing, reading and recalling run in other threads."""
    loops, threads = [], []

    def noting(act):
        def noted(*said):
            threads.append(threading.current_thread())
            return act(*said)
        return noted

    monkeypatch.setattr(Gallery, "page", noting(Gallery.page))
    monkeypatch.setattr(Gallery, "read", noting(Gallery.read))
    monkeypatch.setattr(native, "recall", noting(recall.recall))
    monkeypatch.setattr(Studio, "read", noting(Studio.read))
    plain = native.shown
    monkeypatch.setattr(native, "shown", lambda *said: (
        loops.append(threading.current_thread()), plain(*said))[1])
    client.get("/api/v1/pictures")
    client.get(f"/api/v1/pictures/{done['pictures'][0]['name']}/recipe")
    client.post("/api/v1/read", content=shop.get(done["id"]).pictures[0].png,
                headers={"Content-Type": "image/png"})
    client.post("/api/v1/jobs", json={"prompt": 1})
    assert len(threads) == 5 and loops and not set(threads) & set(loops)
