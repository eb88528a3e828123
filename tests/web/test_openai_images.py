"""OpenAI's images API: what each field becomes, what has no effect, and what is refused."""

import base64
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from openai.types import image_edit_params, image_generate_params
from PIL import Image

from refsd.errors import UsageError
from refsd.serve import asked, openai_images
from refsd.serve.asked import Limits
from refsd.serve.jobs import Picture
from refsd.serve.refusals import Refused

# Every field of openai 2.x's images.generate and images.edit.
GENERATE = {"prompt", "background", "complexity", "frame_count", "frame_duration_ms", "model",
            "moderation", "n", "output_compression", "output_format", "partial_images", "quality",
            "response_format", "safety_identifier", "size", "stream", "style", "svg", "user"}
EDIT = GENERATE - {"moderation", "style"} | {"image", "mask", "input_fidelity", "markup"}
TRANSLATED = {"prompt", "model", "n", "partial_images", "response_format", "size", "stream",
              "image", "mask"}


def read(**said):
    return openai_images.read_images({"prompt": "a", **said}, ["one", "two"], Limits())


def png(image, **more):
    file = io.BytesIO()
    image.save(file, "PNG", **more)
    return file.getvalue()


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_every_field_of_the_client_is_known():
    known = TRANSLATED | set(openai_images.UNUSED) | set(openai_images.REFUSED)
    assert known == GENERATE | EDIT and not known & (set(asked.FIELDS) - TRANSLATED)


def test_the_client_has_no_other_fields():
    streaming = (image_generate_params.ImageGenerateParamsStreaming,
                 image_edit_params.ImageEditParamsStreaming)
    assert [set(one.__annotations__) - fields for one, fields in zip(streaming, (GENERATE, EDIT))
            ] == [set(), set()]


@pytest.mark.parametrize("said, wanted", [
    ({}, {}), ({"model": "two"}, {"model": "two"}), ({"n": 3}, {"count": 3}),
    ({"size": "512x768"}, {"width": 512, "height": 768}), ({"size": "auto"}, {}),
    ({"size": None, "n": None, "model": None, "quality": None, "stream": None}, {}),
    ({"seed": 5, "steps": 2, "cfg_scale": 3.5, "negative_prompt": "b"},
     {"seed": 5, "steps": 2, "cfg_scale": 3.5, "negative_prompt": "b"}),
    ({"promt": "b"}, {"promt": "b"}),  # refused by Studio.read
    ({"quality": "auto", "background": "opaque", "output_format": "png", "moderation": "auto",
      "output_compression": 100, "user": ""}, {}),
])
def test_fields_become_refsds_own(said, wanted):
    found = read(**said)
    assert found.said == {"prompt": "a", **wanted}
    assert (found.stream, found.partial, found.url, found.warnings) == (False, 0, False, [])


def test_how_the_answer_is_to_be():
    assert read(response_format="url").url and not read(response_format="b64_json").url
    found = read(stream=True, partial_images=2)
    assert (found.stream, found.partial) == (True, 2) and set(found.said) == {"prompt"}


@pytest.mark.parametrize("said, message", [
    ({"quality": "hd"}, "quality has no effect: steps says"),
    ({"style": "vivid"}, "style has no effect: the prompt says"),
    ({"user": "me"}, "user has no effect"), ({"safety_identifier": "me"}, "safety_identifier has"),
    ({"moderation": "low"}, "moderation has no effect"), ({"complexity": "low"}, "complexity has"),
    ({"input_fidelity": "high"}, "input_fidelity has no effect: strength"),
    ({"model": "dall-e-2"}, "model is dall-e-2, which only OpenAI has; drawn with one"),
    ({"model": "gpt-image-1.5"}, "drawn with one"), ({"model": "chatgpt-image-latest"}, "drawn"),
])
def test_what_has_no_effect_is_said(said, message):
    found = read(**said)
    assert found.said == {"prompt": "a"} and len(found.warnings) == 1
    assert message in found.warnings[0]


@pytest.mark.parametrize("said, message", [
    ({"n": 9}, "n is 9; give an integer from 1 to 8"), ({"n": "1"}, "n is '1'"),
    ({"n": True}, "n is True"), ({"n": 1, "count": 1}, "n and count are both given"),
    ({"size": "512"}, "size is '512'; give WIDTHxHEIGHT"), ({"size": 512}, "size is 512"),
    ({"size": "512x512x3"}, "size is"), ({"size": "٥x٥"}, "size is"), ({"size": ["a"]}, "size is"),
    ({"size": "64x64", "width": 64}, "size and width are both given"),
    ({"stream": "true"}, "stream is 'true'; give True or False"), ({"stream": 1}, "stream is 1"),
    ({"partial_images": 4, "stream": True}, "partial_images is 4; give an integer from 0 to 3"),
    ({"partial_images": 1}, "partial_images are for a stream"),
    ({"response_format": "file"}, "response_format is 'file'; give 'b64_json' or 'url'"),
    ({"response_format": "url", "stream": True}, "a stream has pictures in base64"),
    ({"quality": "best"}, "quality is 'best'; steps says"), ({"style": {}}, "style is {}"),
    ({"background": "transparent"}, "background is 'transparent'; pictures are opaque here"),
    ({"output_format": "webp"}, "output_format is 'webp'; pictures are PNGs here"),
    ({"output_compression": 0}, "output_compression is 0; nothing of a PNG is lost"),
    ({"user": 5}, "user is 5"), ({"frame_count": 4}, "frame_count is 4, which refsd does not have"),
    ({"frame_duration_ms": 40}, "frame_duration_ms is"), ({"svg": {}}, "svg is {}"),
    ({"markup": "x"}, "markup is 'x'"), ({"complexity": "xhigh"}, "complexity is"),
    ({"moderation": "high"}, "moderation is"), ({"input_fidelity": 1}, "input_fidelity is 1"),
    ({"safety_identifier": []}, "safety_identifier is []"),
])
def test_what_is_refused_is_named(said, message):
    with pytest.raises(UsageError) as caught:
        read(**said)
    assert message in str(caught.value)


@pytest.mark.parametrize("model", ["three", "gpt-4", "dall-e-3/../x", "", "DALL-E-3", "x" * 500])
def test_no_other_model_is_found(model):
    with pytest.raises(Refused, match="which this server was not started with; give one of one, "
                       "two") as caught:
        read(model=model)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert len(str(caught.value)) < 250


def test_a_model_that_is_no_text_is_left_to_the_studio():
    assert read(model=5).said["model"] == 5


def test_a_model_of_the_server_may_have_a_name_of_openais():
    found = openai_images.read_images({"model": "dall-e-2"}, ["one", "dall-e-2"], Limits())
    assert found.said == {"model": "dall-e-2"} and not found.warnings


PICTURE = png(Image.new("RGB", (8, 8), "red"))
DEEP = "[" * 100_000


def form(*items):
    return openai_images.read_form([("image", PICTURE), *items])


def test_a_form_says_what_json_would():
    found = form(("prompt", "5"), ("n", "2"), ("stream", "True"), ("seed", "7"), ("size", "64x64"),
                 ("cfg_scale", "2.5"), ("steps", DEEP), ("loras", '[{"name": "style"}]'),
                 ("quality", ""), ("output_compression", "100"), ("strength", "x"), ("model", "1"))
    assert base64.b64decode(found.pop("init_image")) == PICTURE
    assert found == {"prompt": "5", "n": 2, "stream": True, "seed": 7, "size": "64x64",
                     "cfg_scale": 2.5, "steps": DEEP, "loras": [{"name": "style"}],
                     "quality": None, "output_compression": 100, "strength": "x", "model": "1"}


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_a_picture_may_come_as_a_list_of_one(name):
    found = openai_images.read_form([(name, PICTURE)])
    assert found == {"init_image": base64.b64encode(PICTURE).decode()}


@pytest.mark.parametrize("items, message", [
    ([("image", PICTURE)], "image: several are given, and refsd draws from one"),
    ([("n", "1"), ("n", "1")], "n is given twice"),
    ([("mask", "x")], "mask is a text; give a file"),
    ([("markup", PICTURE)], "markup is a file; give a text"),
    ([("init_image", "x")], "image and init_image are both given"),
    ([("mask", b"x")], "mask: not a PNG"), ([("mask", PICTURE)], "mask: nothing of it is transp"),
    ([("mask", png(Image.new("RGBA", (8, 8), (0, 0, 0, 1))))], "mask: nothing of it is transp"),
])
def test_parts_that_are_refused_are_named(items, message):
    with pytest.raises(UsageError) as caught:
        form(*items)
    assert message in str(caught.value)


def test_a_form_without_a_picture_is_refused():
    with pytest.raises(UsageError, match="there is no image"):
        openai_images.read_form([("prompt", "a")])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_a_mask_draws_where_it_is_transparent(mode):
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[2:4, 3:8], alpha[6, 6] = 0, 1
    grey = Image.fromarray(np.where(alpha == 0, 0, 200).astype(np.uint8))
    more = {"transparency": 0}
    if mode in ("RGBA", "LA"):
        image, more = grey.convert(mode), {}
        image.putalpha(Image.fromarray(alpha))
    elif mode == "P":
        image = grey.convert("P")
    else:
        image, more = grey.convert("RGB"), {"transparency": (0, 0, 0)}
    found = form(("mask", png(image, **more)))["mask"]
    assert np.array_equal(decoded(found), np.where(alpha == 0, 255, 0))


@pytest.mark.parametrize("steps, most, wanted", [
    (20, 3, [5, 10, 15]), (20, 1, [10]), (20, 0, []), (15, 3, [4, 8, 12]), (3, 3, [1, 2]),
    (2, 1, [1]), (5, 3, [2, 3, 4]), (1, 3, []),
])
def test_previews_lie_evenly_among_the_steps(steps, most, wanted):
    found = []
    for step in range(1, steps):  # the last one is the picture
        if openai_images.is_due(step, steps, len(found), most):
            found.append(step)
    assert found == wanted


@pytest.fixture
def job(tmp_path):
    """What a job has at its end."""
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(PICTURE)
    pictures = [Picture(path.name, path, seed, 8, 16, "it", "00")
                for seed, path in enumerate(paths, 5)]
    return SimpleNamespace(state="done", error=None, created=12.7, pictures=pictures, warnings=[])


def test_answers_have_the_pictures_in_base64_or_their_urls(job):
    text = base64.b64encode(PICTURE).decode()
    about = {"created": 12, "output_format": "png", "background": "opaque", "size": "8x16"}
    assert openai_images.say_done(job, [], None) == {
        **about, "data": [{"seed": 5, "b64_json": text}, {"seed": 6, "b64_json": text}]}
    job.warnings = ["two"]
    assert openai_images.say_done(job, ["one"], "http://localhost:1/") == {
        **about, "warnings": ["one", "two"], "data": [
            {"seed": 5, "url": "http://localhost:1/api/v1/pictures/a.png"},
            {"seed": 6, "url": "http://localhost:1/api/v1/pictures/b.png"}]}


def test_events_have_the_clients_fields(job):
    about = {"created_at": 12, "output_format": "png", "background": "opaque", "quality": "auto",
             "b64_json": base64.b64encode(PICTURE).decode()}
    assert openai_images.partial_event("image_edit", job, PICTURE, 1) == {
        **about, "type": "image_edit.partial_image", "partial_image_index": 1, "size": "8x8"}
    assert openai_images.completed_event("image_generation", job, job.pictures[0], ["b"]) == {
        **about, "type": "image_generation.completed", "seed": 5, "size": "8x16",
        "warnings": ["b"]}


@pytest.mark.parametrize("state, code, status", [
    ("failed", "usage", 400), ("failed", "resource", 500), ("failed", "disk-full", 507),
    ("failed", "internal", 500),
    ("failed", "model", 500), ("cancelled", "cancelled", 409)])
def test_a_job_that_is_not_done_is_an_error(job, state, code, status):
    job.state = state
    job.error = {"code": code, "message": "why"} if state == "failed" else None
    with pytest.raises(Refused) as caught:
        openai_images.say_done(job, [], None)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.headers == {"x-should-retry": "false"}
    assert str(caught.value) == ("why" if state == "failed" else "the job was cancelled")


def test_a_picture_that_was_taken_away_is_an_error(job):
    Path(job.pictures[0].path).unlink()
    with pytest.raises(FileNotFoundError):
        openai_images.say_done(job, [], None)
