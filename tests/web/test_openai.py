"""The images API of OpenAI, asked by the openai package: what it gets, and what it raises."""

import asyncio
import base64
import errno
import io
import time

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from web_samples import PATIENCE, await_true, serving

from refsd.cli import draw
from refsd.serve import drawer
from refsd.serve import openai as served
from refsd.serve.app import make_app
from refsd.serve.asked import Limits
from refsd.serve.models import find_models
from refsd.serve.settings import Settings
from refsd.serve.studio import Studio

BASE = draw.parser().parse_args(["--backend", "numpy"])
OWN = {"steps": 2, "seed": 5}
SMALL = {"prompt": "a glossy red sphere", "size": "64x64", "extra_body": OWN}
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def studio(tmp_path_factory, tiny_model):
    made = Studio(find_models([str(tiny_model)] * 2), tmp_path_factory.mktemp("pictures"),
                  limits=Limits(queue=2), base=BASE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(studio):
    with serving(make_app(served.routes(studio))) as found:
        yield f"{found}/v1"


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


def picture(one):
    return Image.open(io.BytesIO(base64.b64decode(one.b64_json)))


def png(width=64, height=64, colour="white", mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def slow(monkeypatch):
    """Steps that take a while."""
    step = drawer._Steps.__call__

    def waiting(own, *said):
        time.sleep(0.2)
        step(own, *said)

    monkeypatch.setattr(drawer._Steps, "__call__", waiting)


def test_models_are_those_of_the_server(client):
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-2"]
    found = client.models.retrieve("tiny-2")
    assert (found.id, found.object, found.owned_by) == ("tiny-2", "model", "refsd")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found" and "'org/other'" in caught.value.message


def test_a_picture_is_that_of_the_studio(client, studio):
    found = client.images.generate(**SMALL, n=2)
    assert (found.output_format, found.background, found.size) == ("png", "opaque", "64x64")
    assert [one.seed for one in found.data] == [5, 6] and abs(found.created - time.time()) < 60
    job = studio.submit(studio.read({"prompt": SMALL["prompt"], "width": 64, "height": 64, **OWN}))
    assert job.join(PATIENCE)
    assert base64.b64decode(found.data[0].b64_json) == job.pictures[0].png
    assert picture(found.data[1]).size == (64, 64) and found.data[0].url is None


def test_urls_are_those_of_this_server(client, url, studio):
    found = client.images.generate(**SMALL, response_format="url").data[0]
    name = studio.jobs()[-1].pictures[0].name
    assert found.b64_json is None
    assert found.url == f"{url.removesuffix('/v1')}/api/v1/pictures/{name}"


def test_what_clients_of_openai_send_is_drawn_and_what_has_no_effect_said(client):
    found = client.images.generate(
        prompt="a", model="dall-e-3", size="64x64", n=1, quality="standard", style="vivid",
        response_format="b64_json", user="me", extra_body={"steps": 1})
    assert picture(found.data[0]).size == (64, 64)
    assert [line.split()[0] for line in found.warnings] == ["quality", "style", "user", "model"]


def test_a_model_is_drawn_with_by_name(client, studio):
    client.images.generate(**SMALL, model="tiny-2")
    assert studio.jobs()[-1].request["model"] == "tiny-2"


@pytest.mark.parametrize("said, message", [
    ({"n": 9}, "n is 9"), ({"size": "100x64"}, "width is 100; give a multiple of"),
    ({"extra_body": {"stps": 1}}, "there is no field 'stps'; did you mean steps?"),
    ({"output_format": "webp"}, "output_format is 'webp'"), ({"prompt": None}, "no prompt"),
    ({"extra_body": {"clip_skip": 40}}, "clip_skip"),  # found out by the job
])
def test_what_is_wrong_is_a_bad_request(client, said, message):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{**SMALL, **said})
    assert message in caught.value.message and "--" not in caught.value.message
    assert caught.value.type == "invalid_request_error" and caught.value.code == "usage"


def test_a_model_that_there_is_not_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(**SMALL, model="gpt-4")
    assert caught.value.code == "model_not_found"


def test_who_has_no_token_is_told(studio):
    with serving(make_app(served.routes(studio), Settings(token=TOKEN))) as found:
        with pytest.raises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=f"{found}/v1", api_key="other").models.list()
        assert "token" in caught.value.message
        assert openai.OpenAI(base_url=f"{found}/v1", api_key=TOKEN).models.list().data


def test_a_full_queue_says_when_to_come_again(client, studio, slow):
    asked = studio.read({"prompt": "a", "width": 64, "height": 64})
    jobs = [studio.submit(asked)]
    await_true(lambda: studio.current is jobs[0])
    jobs += [studio.submit(asked) for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(**SMALL)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    for job in jobs:
        studio.cancel(job.id)
        assert job.join(PATIENCE)


@pytest.mark.parametrize("code, status", [("disk-full", 507), ("resource", 500),
                                          ("internal", 500)])
def test_a_job_that_fails_is_not_asked_for_again(url, studio, monkeypatch, code, status):
    failing = {"disk-full": OSError(errno.ENOSPC, "No space left on device"),
               "resource": MemoryError(), "internal": ZeroDivisionError("secret")}[code]

    def fail(*said):
        raise failing

    monkeypatch.setattr(drawer._Steps, "__call__", fail)
    before = len(studio.jobs())
    with openai.OpenAI(base_url=url, api_key="none", max_retries=2) as client, \
            pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(**SMALL)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert "secret" not in str(caught.value) and len(studio.jobs()) == before + 1


def test_a_job_that_another_cancels_is_a_conflict(url, studio, slow):
    async def ask():
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            task = asyncio.ensure_future(client.images.generate(**SMALL))
            await asyncio.to_thread(await_true, lambda: studio.current is not None)
            studio.cancel(studio.current.id)
            with pytest.raises(openai.ConflictError) as caught:
                await task
            assert caught.value.code == "cancelled"

    asyncio.run(ask())


MANY = {**SMALL, "extra_body": {**OWN, "steps": 50}}


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_cancels_the_job(url, studio, slow, stream):
    async def ask():
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            if stream:
                events = await client.images.generate(**MANY, stream=True, partial_images=3)
            else:
                task = asyncio.ensure_future(client.images.generate(**MANY))
            await asyncio.to_thread(await_true, lambda: studio.current is not None)
            job = studio.current
            if stream:
                await events.close()
            else:
                task.cancel()
            await asyncio.wait_for(job.wait(), PATIENCE)
            return job

    job = asyncio.run(ask())
    assert job.state == "cancelled" and job.step < 20


def test_a_stream_has_previews_and_the_pictures(client, slow):
    """Evenly among the steps of each picture."""
    events = list(client.images.generate(**{**SMALL, "extra_body": {**OWN, "steps": 3}}, n=2,
                                         stream=True, partial_images=2, style="vivid"))
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"] * 2
    partial = [event for event in events if event.type.endswith("partial_image")]
    assert [event.partial_image_index for event in partial] == [0, 1] * 2
    assert picture(partial[0]).size == (64, 64) and partial[0].size == "64x64"
    assert partial[0].b64_json != partial[1].b64_json != events[2].b64_json
    assert [event.seed for event in (events[2], events[5])] == [5, 6]
    assert "style" in events[2].warnings[0] and events[2].size == "64x64"


@pytest.mark.parametrize("broken, message", [("step", "a fault within refsd"),
                                             ("picture", "No such file")])
def test_a_stream_says_what_went_wrong(client, monkeypatch, broken, message):
    def fail(*said):
        raise ZeroDivisionError("secret")

    def gone(*said):
        raise FileNotFoundError(2, "No such file", "a.png")

    if broken == "step":
        monkeypatch.setattr(drawer._Steps, "__call__", fail)
    else:
        monkeypatch.setattr(served, "completed_event", gone)
    with pytest.raises(openai.APIError) as caught:
        list(client.images.generate(**SMALL, stream=True))
    assert message in caught.value.message and "secret" not in caught.value.message


def test_a_picture_is_edited_at_its_size(client, studio):
    found = client.images.edit(image=png(72, 64), prompt="a", extra_body={**OWN, "strength": 0.5})
    assert picture(found.data[0]).size == (72, 64)
    assert studio.jobs()[-1].request["strength"] == 0.5


def test_only_what_the_mask_shows_through_is_drawn(client):
    image = Image.effect_noise((64, 64), 100).convert("RGB")
    mask = image.convert("RGBA")
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    found = client.images.edit(image=as_file(image), mask=as_file(mask), prompt="a", size="64x64",
                               extra_body={**OWN, "mask_padding": 64})
    before, after = np.asarray(image), np.asarray(picture(found.data[0]))
    assert np.array_equal(before[:, :24], after[:, :24])
    assert not np.array_equal(before[:, 40:], after[:, 40:])


def as_file(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return ("picture.png", file.getvalue(), "image/png")


def test_edits_stream_too(client):
    events = list(client.images.edit(image=[png()], prompt="a", stream=True, extra_body=OWN))
    assert [event.type for event in events][-1] == "image_edit.completed"


@pytest.mark.parametrize("said, message", [
    ({"image": [png(), png()]}, "several are given"), ({"mask": png()}, "nothing of it is transp"),
    ({"image": b"GIF89a"}, "not a PNG, JPEG or WebP"), ({"n": 0}, "n is 0"),
    ({"extra_body": {"strength": "x"}}, "strength is 'x'"),
])
def test_what_is_wrong_with_an_edit_is_a_bad_request(client, said, message):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": png(), "prompt": "a", **said})
    assert message in caught.value.message


@pytest.mark.parametrize("content", [b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n",
                                     b"--x\r\n\r\n\r\n--x--\r\n", b"\x00" * 1000])
def test_a_broken_form_is_a_bad_request(url, content):
    found = httpx.post(f"{url}/images/edits", content=content,
                       headers={"content-type": "multipart/form-data; boundary=x"})
    assert found.status_code == 400 and found.json()["error"]["message"]


def test_a_form_of_many_parts_is_refused(url):
    found = httpx.post(f"{url}/images/edits", files=[("image", b"x")] * 18)
    assert found.status_code == 400 and "files" in found.json()["error"]["message"]
