"""A1111's API, asked by webuiapi: its pictures are those of `refsd draw` with the same options."""

import base64
import io
import json
import threading

import httpx
import numpy as np
import pytest
import tiny
import webuiapi
from PIL import Image
from starlette.testclient import TestClient
from web_samples import HOME, PATIENCE, await_true, serving

from refsd.__main__ import main
from refsd.cli import draw
from refsd.networks import shapes_of
from refsd.serve import a1111, drawer, routes
from refsd.serve.a1111_settings import CHECKPOINT
from refsd.serve.app import make_app
from refsd.serve.asked import Limits
from refsd.serve.metrics import Metrics
from refsd.serve.models import find_models
from refsd.serve.settings import Settings
from refsd.serve.studio import Studio

BASE = draw.parser().parse_args(["--backend", "numpy"])
PROMPT = "a (glossy:1.2) red [sphere|cube]"
SMALL = {"prompt": PROMPT, "width": 64, "height": 64, "steps": 2, "seed": 5}
WORDS = ["-W", "64", "-H", "64", "--steps", "2", "-s", "5", "--compat", "a1111",
         "--cfg-scale", "7", "--backend", "numpy", "-q"]
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def studio(tmp_path_factory, tiny_model):
    made = Studio(find_models([str(tiny_model)] * 2), tmp_path_factory.mktemp("pictures"),
                  {"style": "/loras/style.safetensors"}, Limits(queue=1), base=BASE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(studio):
    with serving(make_app(a1111.routes(studio))) as url:
        yield url


@pytest.fixture(scope="module")
def api(place):
    host, port = place.removeprefix("http://").split(":")
    return webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler a", steps=2)


class Gate:
    """Holds the drawing thread after the second step of a picture until it is opened."""

    def __init__(self, monkeypatch, index):
        self.reached, self.opened = threading.Event(), threading.Event()
        step = drawer._Steps.__call__

        def waiting(own, *said):
            step(own, *said)
            if own.job.index == index and own.job.step == 2:
                self.reached.set()
                assert self.opened.wait(PATIENCE)

        monkeypatch.setattr(drawer._Steps, "__call__", waiting)

    def wait(self):
        assert self.reached.wait(PATIENCE)


@pytest.fixture
def gate(monkeypatch):
    gates = []

    def made(index=0):
        gates.append(Gate(monkeypatch, index))
        return gates[-1]

    yield made
    for one in gates:
        one.opened.set()


def command(model, tmp_path, *words, prompt=PROMPT):
    """What `refsd draw` makes of the same request."""
    place = f"{tmp_path}/drawn-{{index}}.png"
    assert main([prompt, *WORDS, "-m", str(model), *words, "-o", place]) == 0
    return [Image.open(path) for path in sorted(tmp_path.glob("drawn-*.png"))]


def same(found, wanted):
    """Pixels, and all that the recipe says but the names of files."""
    assert np.array_equal(np.asarray(found), np.asarray(wanted))
    ours, theirs = (image.text["refsd"] for image in (found, wanted))
    for path, field in (("image.png", "init_image"), ("mask.png", "mask")):
        theirs = theirs.replace(f'"file": "{path}"', f'"file": "{field}"')
    assert ours == theirs
    return True


@pytest.mark.parametrize("said, words", [
    ({}, ["--sampler", "euler_a"]),
    ({"sampler_name": "DPM++ 2M"}, ["--sampler", "dpm++2m", "--schedule", "karras"]),
    ({"sampler_name": "DPM++ 2M", "scheduler": "Uniform", "negative_prompt": "blue"},
     ["--sampler", "dpm++2m", "-n", "blue"]),
    ({"sampler_name": "DPM++ 2M Karras", "cfg_scale": 3},
     ["--sampler", "dpm++2m_karras", "--cfg-scale", "3"]),
    ({"sampler_name": "DDIM", "eta": 0.5}, ["--sampler", "ddim", "--eta", "0.5"]),
    ({"subseed": 9, "subseed_strength": 0.5},
     ["--sampler", "euler_a", "--variation-seed", "9", "--variation-strength", "0.5"]),
    ({"seed_resize_from_w": 48, "seed_resize_from_h": 96},
     ["--sampler", "euler_a", "--seed-resize-from", "48x96"]),
    ({"enable_hr": True, "sampler_name": "Heun"},
     ["--sampler", "heun", "--hires-scale", "2", "--hires-denoising", "0.7"]),
    ({"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 3, "denoising_strength": 0.5,
      "hr_upscaler": webuiapi.HiResUpscaler.Lanczos, "sampler_name": "Euler"},
     ["--sampler", "euler", "--hires-scale", "1.5", "--hires-steps", "3", "--hires-denoising",
      "0.5", "--hires-upscaler", "lanczos"]),
    ({"override_settings": {"CLIP_stop_at_last_layers": 2, "randn_source": "CPU",
                            "eta_noise_seed_delta": 31337, "emphasis": "No norm"}},
     ["--sampler", "euler_a", "--clip-skip", "1", "--rng", "torch-cpu", "--compat",
      "a1111,ensd=31337,emphasis=no-norm"]),
])
def test_a_picture_of_a_text_is_that_of_refsd_draw(api, tiny_model, tmp_path, said, words):
    found = api.txt2img(**{**SMALL, **said})
    assert same(found.image, *command(tiny_model, tmp_path, *words))
    assert found.info["seed"] == 5 and found.info["all_seeds"] == [5]
    assert found.info["infotexts"] == [found.image.text["parameters"]]
    assert found.parameters["prompt"] == PROMPT and found.info["warnings"] == []


@pytest.mark.parametrize("said, words", [
    ({}, ["--strength", "0.75"]), ({"denoising_strength": 1}, ["--strength", "1"]),
    ({"width": 96, "height": 72}, ["--strength", "0.75", "-W", "96", "-H", "72"]),
    ({"mask_image": "mask"}, ["--strength", "0.75", "--mask", "mask.png", "--mask-padding", "0"]),
    ({"mask_image": "mask", "inpaint_full_res_padding": 8, "width": 32 * 3, "height": 96},
     ["--strength", "0.75", "--mask", "mask.png", "--mask-padding", "8", "-W", "96", "-H", "96"]),
    ({"mask_image": "mask", "inpaint_full_res": False, "mask_blur": 0, "inpainting_fill": 1},
     ["--strength", "0.75", "--mask", "mask.png"]),
])
def test_a_picture_of_a_picture_is_that_of_refsd_draw(api, tiny_model, tmp_path, said, words):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    images = {"image": Image.fromarray(noise), "mask": Image.new("L", (64, 64))}
    images["mask"].paste(255, (16, 16, 40, 48))
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    masked = "mask_image" in said and said.get("mask_blur") is None
    said = {key: images.get(value, value) if isinstance(value, str) else value
            for key, value in said.items()}
    found = api.img2img(**{**SMALL, "steps": 4, "sampler_name": "Euler", "images": [
        images["image"]], **said})
    words = [str(tmp_path / word) if word == "mask.png" else word for word in words]
    assert same(found.image, *command(
        tiny_model, tmp_path, "--init-img", str(tmp_path / "image.png"), "--steps", "4",
        "--sampler", "euler", *words))
    assert len(found.info["warnings"]) == 2 * masked
    assert found.parameters["init_images"] is None and found.parameters["mask"] is None


def test_masks_are_turned_around(api):
    image, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)
    mask.paste(0, (0, 0, 32, 64))
    said = {**SMALL, "steps": 3, "images": [image], "inpaint_full_res": False,
            "sampler_name": "Euler"}
    found = api.img2img(**said, mask_image=mask, inpainting_mask_invert=1)
    mask = Image.eval(mask, lambda level: 255 - level)
    assert np.array_equal(found.image, api.img2img(**said, mask_image=mask).image)


def test_a_batch(api, tiny_model, tmp_path):
    found = api.txt2img(**SMALL, batch_size=2, n_iter=2)
    assert found.info["all_seeds"] == [5, 6, 7, 8] and found.info["batch_size"] == 4
    drawn = command(tiny_model, tmp_path, "--sampler", "euler_a", "-b", "4")
    for image, wanted in zip(found.images, drawn, strict=True):
        assert np.array_equal(image, wanted)
    found = api.txt2img(**SMALL, batch_size=2, subseed=3, subseed_strength=0.5, send_images=False)
    assert found.images == [] and found.info["all_seeds"] == [5, 5]
    assert (found.info["all_subseeds"], found.info["subseed_strength"]) == ([3, 4], 0.5)


def test_what_info_says(api):
    info = api.txt2img(**SMALL, sampler_name="DPM++ 2M", negative_prompt="blue",
                       override_settings={"CLIP_stop_at_last_layers": 2}).info
    assert info["extra_generation_params"] == {"Schedule type": "Karras", "RNG": "NV"}
    said = {name: info[name] for name in (
        "prompt", "all_prompts", "negative_prompt", "sampler_name", "steps", "cfg_scale", "width",
        "height", "clip_skip", "all_subseeds", "denoising_strength", "index_of_first_image")}
    assert said == {
        "prompt": PROMPT, "all_prompts": [PROMPT], "negative_prompt": "blue",
        "sampler_name": "DPM++ 2M", "steps": 2, "cfg_scale": 7.0, "width": 64, "height": 64,
        "clip_skip": 2, "all_subseeds": [-1], "denoising_strength": None,
        "index_of_first_image": 0}
    assert info["sd_model_name"] and info["version"].startswith("refsd ")
    assert len(info["job_timestamp"]) == 14
    hires = api.txt2img(**SMALL, enable_hr=True, sampler_name="Euler").info
    assert (hires["denoising_strength"], hires["width"]) == (0.7, 64)
    assert hires["extra_generation_params"]["Hires upscaler"] == "Latent"


def test_models_are_switched(api, studio):
    one = {**SMALL, "steps": 1}
    assert api.util_get_model_names() == ["tiny", "tiny-2"]
    assert api.util_get_current_model() == "tiny"
    assert api.txt2img(**one, override_settings={"sd_model_checkpoint": "tiny-2"}).image
    assert studio.jobs()[-1].request["model"] == "tiny-2"
    assert api.util_get_current_model() == "tiny"
    try:
        api.txt2img(**one, override_settings={"sd_model_checkpoint": "tiny-2"},
                    override_settings_restore_afterwards=False)
        assert api.util_get_current_model() == "tiny-2"
        api.txt2img(**one)
        assert studio.jobs()[-1].request["model"] == "tiny-2"
    finally:
        api.util_set_model("tiny")
    assert api.util_get_current_model() == "tiny"
    assert api.txt2img(**one).info["sd_model_name"] == "tiny"
    assert api.set_options(api.get_options()) is None
    assert api.set_options({"sd_vae": "x"})["error"] == "usage"


def test_open_webuis_way(place):
    """It sends all options back with another model, and no word of who it is."""
    with httpx.Client(base_url=f"{place}/sdapi/v1", headers={"Authorization": ""}) as client:
        titles = [(one["title"], one["model_name"]) for one in client.get("/sd-models").json()]
        assert titles == [("tiny", "tiny"), ("tiny-2", "tiny-2")]
        options = client.get("/options").json()
        assert client.post("/options", json={**options, CHECKPOINT: "tiny-2"}).json() is None
        said = {"prompt": "a", "batch_size": 1, "width": 64, "height": 64, "steps": 2}
        found = client.post("/txt2img", json=said).json()
        assert len(found["images"]) == 1 and client.post("/options", json=options).is_success
        said |= {"init_images": [found["images"][0]], "denoising_strength": 1}
        for mask, status in (("white", 200), ("black", 422)):
            said["mask"] = base64.b64encode(plain(64, mask)).decode()
            found = client.post("/img2img", json=said)
            assert found.status_code == status, found.text
        assert found.json()["detail"].startswith("mask is black all over")


def test_lists(api, place):
    assert "DPM++ 2M" in api.util_get_sampler_names()
    assert api.util_get_scheduler_names() == ["automatic", "beta", "exponential", "karras",
                                              "normal", "uniform"]
    assert [one["name"] for one in api.get_loras()] == ["style"]
    assert [one["name"] for one in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert api.get_latent_upscale_modes()[0] == {"name": "Latent"}
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    for empty in (api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers,
                  api.get_realesrgan_models, api.get_prompt_styles, api.get_cmd_flags):
        assert not empty()
    ram = api.get_memory()["ram"]
    assert 0 < ram["used"] < ram["total"] == ram["free"] + ram["used"]
    assert api.refresh_checkpoints() is None
    assert httpx.get(f"{place}/internal/ping").json() == {}
    assert "/loras" not in httpx.get(f"{place}/sdapi/v1/loras").text


def test_embeddings_are_listed_by_their_words(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "moss.safetensors").touch()

    class Shop:
        base = draw.parser().parse_args(["--embd-dir", str(tmp_path), "--embedding", "/x/oak.st"])

    from refsd.serve.a1111_answers import embeddings

    assert list(embeddings(Shop)["loaded"]) == ["oak", "moss"]


def test_png_info(api, place):
    image = api.txt2img(**SMALL, negative_prompt="blue").image
    found = api.png_info(image)
    assert found.info == image.text["parameters"]
    said = httpx.post(f"{place}/sdapi/v1/png-info", json={
        "image": base64.b64encode(plain(8)).decode()}).json()
    assert said == {"info": "", "items": {}, "parameters": {}}
    found = httpx.post(f"{place}/sdapi/v1/png-info", json={
        "image": webuiapi.b64_img(image)}).json()
    assert found["parameters"]["Negative prompt"] == "blue" and found["parameters"]["Seed"] == "5"
    assert found["items"].keys() == image.text.keys()
    for body, message in (({"image": "x" * 8}, "image: not a PNG"), ({}, "give image alone"),
                          ({"image": "http://x/"}, "no other URL is read")):
        found = httpx.post(f"{place}/sdapi/v1/png-info", json=body)
        assert found.status_code == 422 and message in found.json()["detail"]


def plain(side, colour="black"):
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


class Asking(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, ask, **said):
        super().__init__(daemon=True)
        self.ask, self.said, self.found = ask, said, None
        self.start()

    def run(self):
        self.found = self.ask(**self.said)

    def answer(self):
        self.join(PATIENCE)
        return self.found


def test_progress_and_interrupt(api, place, studio, gate):
    idle = api.get_progress()
    assert (idle["progress"], idle["eta_relative"], idle["current_image"]) == (0, 0, None)
    assert idle["state"]["job_count"] == 0
    api.util_wait_for_ready()
    held = gate()
    asking = Asking(api.txt2img, **{**SMALL, "steps": 10}, batch_size=2)
    held.wait()
    found = api.get_progress()
    assert found["progress"] == 0.1 and found["eta_relative"] > 0
    state = found["state"]
    assert (state["job_count"], state["job_no"], state["sampling_step"],
            state["sampling_steps"]) == (2, 0, 2, 10)
    assert found["current_task"] == state["job"] == studio.current.id
    image = Image.open(io.BytesIO(base64.b64decode(found["current_image"])))
    assert image.size == (64, 64) and not state["interrupted"]
    without = httpx.get(f"{place}/sdapi/v1/progress?skip_current_image=true").json()
    assert without["current_image"] is None and without["progress"] == 0.1
    assert api.interrupt() == {} and api.get_progress()["state"]["interrupted"]
    held.opened.set()
    found = asking.answer()
    assert found.images == [] and found.info["all_seeds"] == []
    assert found.info["warnings"] == ["interrupted: 0 of 2 pictures were drawn"]
    assert api.interrupt() == {} and studio.current is None


def test_interrupt_gives_what_is_drawn(api, gate):
    held = gate(index=1)
    asking = Asking(api.txt2img, **{**SMALL, "steps": 4}, batch_size=3)
    held.wait()
    api.interrupt()
    held.opened.set()
    found = asking.answer()
    assert found.info["all_seeds"] == [5] and found.image.size == (64, 64)


def test_skip(api, gate):
    held = gate()
    asking = Asking(api.txt2img, **{**SMALL, "steps": 4}, batch_size=2)
    held.wait()
    assert api.skip() is None and api.get_progress()["state"]["skipped"]
    held.opened.set()
    assert asking.answer().info["all_seeds"] == [6]


def test_jobs_of_others_are_neither_interrupted_nor_skipped(api, studio, gate):
    """SillyTavern interrupts as it leaves, when the next job may be somebody else's."""
    held = gate()
    job = studio.submit(studio.read({**SMALL, "steps": 3}))
    held.wait()
    api.interrupt(), api.skip()
    held.opened.set()
    assert job.join(PATIENCE) and (job.state, len(job.pictures)) == ("done", 1)


def test_a_client_that_goes_away_cancels_its_job(place, studio, gate):
    held = gate()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{place}/sdapi/v1/txt2img", json={**SMALL, "steps": 9}, timeout=1)
    held.wait()
    job = studio.current
    await_true(lambda: job.stop)
    held.opened.set()
    assert job.join(PATIENCE) and (job.state, job.step) == ("cancelled", 3)


def test_a_full_queue(place, api, studio, gate):
    held = gate()
    asking = [Asking(api.txt2img, **SMALL)]
    held.wait()
    asking.append(Asking(api.txt2img, **{**SMALL, "steps": 1}))
    await_true(lambda: studio.jobs()[-1].state == "queued")
    found = httpx.post(f"{place}/sdapi/v1/txt2img", json=SMALL)
    assert found.status_code == 429 and found.json()["error"] == "queue.full"
    assert int(found.headers["retry-after"]) >= 1
    held.opened.set()
    assert all(one.answer().images for one in asking)


@pytest.mark.parametrize("body, message", [
    ({"restore_faces": True}, "restore_faces is True: refsd restores no faces"),
    ({"promt": "a"}, "txt2img has no field 'promt'; did you mean prompt?"),
    ({"steps": 500}, "steps is 500; give an integer from 1 to 150"),
    ({"batch_size": 9}, "batch_size * n_iter is 9; give an integer from 1 to 8"),
    ({"override_settings": {"CLIP_stop_at_last_layers": 40}}, "CLIP_stop_at_last_layers"),
    ({"prompt": "<lora:styl:1>"}, "this server has no LoRA 'styl'; did you mean style"),
])
def test_what_is_refused(place, body, message):
    found = httpx.post(f"{place}/sdapi/v1/txt2img", json={**SMALL, **body})
    assert found.status_code == 422 and message in found.json()["detail"]
    assert found.json().keys() == {"error", "detail", "body", "errors"}


def test_webuiapi_raises_what_is_refused(api):
    with pytest.raises(RuntimeError, match="tiling is True: refsd draws no pictures that tile"):
        api.txt2img(**SMALL, tiling=True)


def test_a_picture_that_is_sent_back_where_it_is_wanted(place):
    image = base64.b64encode(plain(64)).decode()
    said = {**SMALL, "init_images": [image], "include_init_images": True}
    found = httpx.post(f"{place}/sdapi/v1/img2img", json=said, timeout=PATIENCE).json()
    assert found["parameters"]["init_images"] == [image]


def test_paths_and_methods_that_are_not_there(place):
    found = httpx.get(f"{place}/sdapi/v1/interrogate")
    assert found.status_code == 404 and "docs/server.md" in found.json()["detail"]
    found = httpx.get(f"{place}/sdapi/v1/interrupt")
    assert found.status_code == 405 and found.headers["allow"] == "POST"


def test_webuiapis_password_is_the_token(studio):
    with serving(make_app(a1111.routes(studio), Settings(token=TOKEN))) as url:
        host, port = url.removeprefix("http://").split(":")
        known = webuiapi.WebUIApi(host=host, port=int(port), username="any", password=TOKEN)
        assert known.util_get_current_model() == "tiny" and known.interrupt() == {}
        assert httpx.get(f"{url}/sdapi/v1/options").status_code == 401


def test_a_job_that_fails_is_an_error(studio, monkeypatch):
    def failing(*said):
        raise ZeroDivisionError("/secret")

    client = TestClient(make_app(a1111.routes(studio)), base_url=HOME)
    with monkeypatch.context() as broken:
        broken.setattr(drawer._Steps, "__call__", failing)
        found = client.post("/sdapi/v1/txt2img", json=SMALL)
    assert found.status_code == 500 and "secret" not in found.text
    assert found.json()["error"] == "internal"
    assert client.post("/sdapi/v1/txt2img", json=SMALL).status_code == 200


def test_the_server_has_it(studio):
    app = routes.application(studio, Metrics(), Settings())
    found = TestClient(app, base_url=HOME).get("/sdapi/v1/sd-models").json()
    assert [one["title"] for one in found] == ["tiny", "tiny-2"]


def test_an_instruct_pix2pix_model(tmp_path_factory, tmp_path):
    """webuiapi's own scale of pictures, 1.5, and a strength that has no effect."""
    unet, random = {**tiny.UNET, "in_channels": 8}, np.random.default_rng(0)
    weights = {name: tiny._weight(name, shape, random)
               for name, shape in shapes_of("unet", unet).items()}
    folder = tiny.write_model(tmp_path_factory.mktemp("models") / "edits", unet=weights)
    (folder / "unet" / "config.json").write_text(json.dumps(unet))
    image = Image.new("RGB", (64, 64), "red")
    image.save(tmp_path / "image.png")
    shop = Studio(find_models([str(folder)]), tmp_path, base=BASE)
    try:
        with serving(make_app(a1111.routes(shop))) as url:
            host, port = url.removeprefix("http://").split(":")
            known = webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler")
            found = known.img2img(**{**SMALL, "prompt": "a cat"}, images=[image])
    finally:
        shop.close()
    assert same(found.image, *command(
        folder, tmp_path, "-i", str(tmp_path / "image.png"), "--img-cfg-scale", "1.5",
        "--sampler", "euler", prompt="a cat"))
    assert found.info["warnings"] == ["denoising_strength: edits begins with noise alone"]
