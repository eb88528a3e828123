"""What Open WebUI and SillyTavern send, as their sources have it, and what they read of answers.

Bodies are those of their defaults, with sizes and steps that are drawn quickly.
"""

import base64
import io

import httpx
import pytest
import tiny_gpt2
from PIL import Image
from web_samples import serving

from refsd.cli import draw, hires
from refsd.serve.metrics import Metrics
from refsd.serve.models import find_all
from refsd.serve.routes import application
from refsd.serve.settings import Settings
from refsd.serve.studio import Studio

BASE = draw.parser().parse_args(["--backend", "numpy"])
NO_AUTH = {"authorization": ""}  # Open WebUI's without AUTOMATIC1111_API_AUTH
BASIC = {"authorization": "Basic"}  # SillyTavern's without a user and a password


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_model):
    config = {**tiny_gpt2.CONFIG, "n_positions": 128}
    gpt2 = tiny_gpt2.write(tmp_path_factory.mktemp("gpt2") / "writer", config,
                           weights=tiny_gpt2.tensors(config))
    models, writers = find_all([str(tiny_model), str(gpt2), str(tiny_model)])
    made = Studio(models, tmp_path_factory.mktemp("pictures"), base=BASE, writers=writers)
    with serving(application(made, Metrics(), Settings())) as url:
        yield url
    made.close()


@pytest.fixture(scope="module")
def web(server):
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("model, more", [
    ("dall-e-2", {"response_format": "b64_json"}), ("gpt-image-1", {}),
    ("tiny", {"response_format": "b64_json", "steps": 1, "negative_prompt": "b"}),
])
def test_open_webui_draws_with_the_images_api(web, model, more):
    """Its engine "openai"; `more` after response_format is what its admin may add to each body."""
    found = web.post("/v1/images/generations?api-version=2024-02-01",
                     headers={"authorization": "Bearer none", "x-openwebui-user-name": "A"},
                     json={"model": model, "prompt": "a", "n": 1, "size": "64x64", **more})
    [one] = found.json()["data"]
    assert one.get("url") is None and decoded(one["b64_json"]).size == (64, 64)


@pytest.mark.parametrize("part", ["image", "image[]"])
def test_open_webui_edits(web, part):
    """All of a form are texts."""
    found = web.post("/v1/images/edits", headers={"authorization": "Bearer none"},
                     data={"model": "dall-e-2", "prompt": "a", "n": "1", "size": "64x64",
                           "background": "opaque", "response_format": "b64_json"},
                     files=[(part, ("3f2a.png", png(), "image/png"))])
    assert decoded(found.json()["data"][0]["b64_json"]).size == (64, 64)


def test_open_webui_draws_with_a1111s_api(web):
    """It sends back all settings that it got, with another model in them."""
    options = web.get("/sdapi/v1/options", headers=NO_AUTH).json()
    titles = [model["title"] for model in web.get("/sdapi/v1/sd-models", headers=NO_AUTH).json()]
    assert options["sd_model_checkpoint"] in titles and len(titles) == 2
    other = next(title for title in titles if title != options["sd_model_checkpoint"])
    for title in (other, options["sd_model_checkpoint"]):
        sent = web.post("/sdapi/v1/options", headers=NO_AUTH,
                        json={**options, "sd_model_checkpoint": title})
        assert sent.status_code == 200
        assert web.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == title
    found = web.post("/sdapi/v1/txt2img", headers=NO_AUTH, json={
        "prompt": "a", "batch_size": 1, "width": 64, "height": 64, "steps": 2,
        "negative_prompt": "b"}).json()
    assert [decoded(image).size for image in found["images"]] == [(64, 64)] and found["info"]


def test_sillytavern_looks_around(web):
    names = {path: [one[name] for one in web.get(f"/sdapi/v1/{path}", headers=BASIC).json()]
             for path, name in (("upscalers", "name"), ("latent-upscale-modes", "name"),
                                ("samplers", "name"), ("schedulers", "name"),
                                ("sd-models", "title"), ("sd-vae", "model_name"))}
    assert names["upscalers"].pop(0) == "None"  # before the latent ones that it puts in between
    assert {*names["upscalers"], *names["latent-upscale-modes"]} == set(hires.NAMES.values())
    assert "Euler a" in names["samplers"] and "automatic" in names["schedulers"]
    assert len(names["sd-models"]) == 2
    assert web.get("/sdapi/v1/sd-modules", headers=BASIC).status_code == 404  # Forge has them


def test_sillytavern_switches_models_and_waits(web):
    title = web.get("/sdapi/v1/options", headers=BASIC).json()["sd_model_checkpoint"]
    assert web.post("/sdapi/v1/options", headers=BASIC,
                    json={"sd_model_checkpoint": title}).status_code == 200
    progress = web.get("/sdapi/v1/progress", headers=BASIC).json()
    assert progress["progress"] == 0 == progress["state"]["job_count"]


# Its own fields url and auth go along.
TAVERN = {"url": "http://localhost:7860", "auth": "", "prompt": "a", "negative_prompt": "b",
          "sampler_name": "DDIM", "scheduler": "normal", "steps": 2, "cfg_scale": 7, "width": 64,
          "height": 64, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent",
          "hr_scale": 1, "hr_additional_modules": [], "denoising_strength": 0.7,
          "hr_second_pass_steps": 0, "override_settings": {"CLIP_stop_at_last_layers": 1},
          "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True,
          "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False}


@pytest.mark.parametrize("more", [{}, {"sampler_name": "Euler a", "scheduler": "automatic"},
                                  {"enable_hr": True, "hr_scale": 1.5, "seed": 5}])
def test_sillytavern_draws_with_a1111s_api(web, more):
    found = web.post("/sdapi/v1/txt2img", headers=BASIC, json={**TAVERN, **more})
    assert found.status_code == 200, found.text
    assert decoded(found.json()["images"][0]).size == (96 if "hr_scale" in more else 64,) * 2


def test_sillytavern_interrupts_without_a_body(web):
    assert web.post("/sdapi/v1/interrupt", headers=BASIC).status_code == 200


def test_sillytavern_writes(web):
    """Its text completion source "generic", whose bodies have the fields of OpenAI's API alone."""
    [model] = [one["id"] for one in web.get("/v1/models").json()["data"] if one["id"] == "writer"]
    body = {"model": model, "prompt": "A red cat.\nUser: a\nAssistant:", "max_tokens": 8,
            "temperature": 0.7, "top_p": 0.5, "frequency_penalty": 0, "presence_penalty": 0,
            "stop": ["\nUser:", "\nAssistant:"], "seed": 5, "n": 1, "stream": False}
    text = web.post("/v1/completions", json=body).json()["choices"][0]["text"]
    lines = web.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    pieces = [httpx.Response(200, text=line.removeprefix("data: ")).json() for line in lines[:-2]]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == text and text
