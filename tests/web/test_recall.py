"""Recipes as requests: what is drawn from them again is the same picture, pixel for pixel."""

import base64
import io
import json
from dataclasses import replace

import adapter_samples as samples
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from refsd.cli import draw
from refsd.cli.naming import decisive
from refsd.cli.pictures import as_picture, read_picture
from refsd.cli.png import encode_png
from refsd.cli.recipe import parse_recipe
from refsd.errors import UsageError
from refsd.serve import recall as recalling
from refsd.serve.asked import Limits
from refsd.serve.models import find_loras, find_models
from refsd.serve.recall import Has, recall
from refsd.serve.studio import Studio

SMALL = {"prompt": "a red sphere", "width": 32, "height": 32, "steps": 2, "seed": 5}
PIXELS = np.zeros((8, 8, 3), np.uint8)
A1111 = ("a fox<lora:style:0.5:1> <hypernet:x:1>\nNegative prompt: blue\n"
         "Steps: 3, {}CFG scale: 4, Seed: 9, Size: 64x32")


@pytest.fixture(scope="module")
def shop(tiny_model, tmp_path_factory):
    loras = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("style", "other")):
        save_file(tensors(seed), loras / f"{name}.safetensors")
    made = Studio(find_models([str(tiny_model), "bundled"]), tmp_path_factory.mktemp("pictures"),
                  find_loras(str(loras)), Limits(least=8, history=99),
                  base=draw.parser().parse_args(["--backend", "numpy"]))
    yield made
    made.close()


@pytest.fixture(scope="module")
def has(shop):
    return Has(shop.models, shop.loras, shop.base)


@pytest.fixture(scope="module")
def drawn(shop):
    return lambda **said: _drawn(shop, {**SMALL, **said})


def tensors(seed):
    """Of a LoRA of the tiny model."""
    found = {}
    for module, name, shape in ((samples.ATTENTION, "unet", (8, 8)),
                                (samples.TEXT, "text_encoder", (16, 16))):
        low, high = samples.lora(shape, 2, seed)
        found |= {f"{name}.{module}.lora_A.weight": 3 * low,
                  f"{name}.{module}.lora_B.weight": 3 * high}
    return found


def base64_of(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _drawn(shop, said):
    job = shop.submit(shop.read(said))
    assert job.join(60) and job.error is None, job.error
    return job.pictures[-1]


@pytest.fixture(scope="module")
def picture(drawn):
    return read_picture(str(drawn().path))


def changed(picture, **fields):
    """The picture with another recipe."""
    recipe = replace(parse_recipe(picture.texts["refsd"], "it"), **fields)
    return as_picture("it", encode_png(PIXELS, recipe.texts()))


def with_texts(**texts):
    return as_picture("it", encode_png(PIXELS, texts))


@pytest.mark.parametrize("said", [
    {}, {"model": "bundled"}, {"negative_prompt": "blue", "cfg_scale": 4, "clip_skip": 1},
    {"sampler": "dpm++2m", "schedule": "karras", "compat": "a1111"}, {"sampler": "euler_a"},
    {"sampler": "ddim", "eta": 0.5, "rng": "cuda", "guidance_rescale": 0.25},
    {"compat": "a1111", "rng": "torch-cpu"}, {"prompt": "(a (red:1.2) sphere)", "compat": "comfy"},
    {"variation_strength": 0.5, "variation_seed": 2**64 - 1},
    {"seed_resize_from": "24x40"}, {"hires_scale": 2, "hires_steps": 3, "hires_denoising": 0.5,
                                    "hires_upscaler": "lanczos"},
    {"loras": [{"name": "style", "weight": 0.5}]}, {"prompt": "a <lora:other:0.25:0.1> fox"},
])
def test_a_request_draws_the_same_picture_again(shop, has, drawn, said):
    first = drawn(**said)
    found = recall(read_picture(str(first.path)), has)
    assert found.missing == [] and found.infotext == first.infotext
    again = _drawn(shop, json.loads(json.dumps(found.request)))
    recipes = [decisive(parse_recipe(read_picture(str(one.path)).texts["refsd"], "it"))
               for one in (first, again)]
    assert recipes[0] == recipes[1] and again.pixels == first.pixels


def test_what_changes_nothing_is_not_in_the_request(picture, has):
    assert recall(picture, has).request == {**SMALL, "cfg_scale": 7, "sampler": "ddim",
                                            "model": "tiny"}


def test_pictures_have_no_place_in_a_picture(shop, has, drawn):
    first = drawn(init_image=base64_of(Image.new("RGB", (32, 32), "red")), mask_padding=8,
                  mask=base64_of(Image.new("L", (32, 32), "white")), strength=0.5)
    found = recall(read_picture(str(first.path)), has)
    assert found.missing == ["the picture it was drawn from", "the mask"]
    assert (found.request["strength"], found.request["mask_padding"]) == (0.5, 8)
    with pytest.raises(UsageError, match="give init_image PICTURE too"):
        shop.read(found.request)


@pytest.mark.parametrize("fields, missing", [
    ({"model": {"name": "else", "variant": None, "vae": "vae-x"}},
     ["vae vae-x", "the model else, which this server was not started with"]),
    ({"dtype": "float16", "exact": True}, ["dtype float16: this server draws with float32",
                                           "exact True: this server draws with False"]),
    ({"weights": "int8", "vae_tiling": "off"}, ["weights int8: this server draws with None",
                                               "vae_tiling off: this server draws with auto"]),
    ({"embeddings": [{"word": "w", "file": "w.safetensors", "sha256": "0" * 64}]},
     ["the embedding w.safetensors"]),
    ({"adapters": [{"file": name, "sha256": "0" * 64, "short": "0" * 12, "unet": 1.0,
                    "text_encoder": 1.0} for name in ("style.safetensors", "none.safetensors")]},
     ["the LoRA style.safetensors, of which there is another one here",
      "the LoRA none.safetensors, which is not here"]),
])
def test_what_a_server_has_not_is_said(picture, has, fields, missing):
    found = recall(changed(picture, **fields), has)
    assert found.missing == missing and "loras" not in found.request


def test_a_sampler_without_a_name_is_said(picture, has):
    scheduler = parse_recipe(picture.texts["refsd"], "it").scheduler
    scheduler = {**scheduler, "_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}
    found = recall(changed(picture, scheduler=scheduler), has)
    assert "sampler" not in found.request and "schedule" not in found.request
    assert "DPMSolverMultistepScheduler as it was set" in found.missing[0]


def test_the_servers_own_embeddings_and_parts_are_there(picture, has):
    base = draw.parser().parse_args(["--embedding", "/x/w.safetensors", "--vae", "vae-x"])
    found = recall(changed(picture, model={"name": "tiny", "vae": "vae-x"}, embeddings=[
        {"word": "w", "file": "w.safetensors", "sha256": "0" * 64}]), has._replace(base=base))
    assert found.missing == []


def test_embeddings_are_looked_for_in_the_servers_folder(tmp_path, picture, has):
    (tmp_path / "w.safetensors").touch()
    base = draw.parser().parse_args(["--embd-dir", str(tmp_path)])
    found = recall(changed(picture, embeddings=[
        {"word": "w", "file": "w.safetensors", "sha256": "0" * 64}]), has._replace(base=base))
    assert found.missing == []


def test_a_lora_that_is_gone_is_said(picture, has):
    one = {"file": "gone.safetensors", "sha256": "0" * 64, "short": "0" * 12, "unet": 1.0,
           "text_encoder": 1.0}
    found = recall(changed(picture, adapters=[one]),
                   has._replace(loras={"gone": "/nowhere/gone.safetensors"}))
    assert found.missing == ["the LoRA gone.safetensors, which can no longer be read here"]


def test_a_damaged_recipe_leaves_the_infotext(picture, has):
    found = recall(with_texts(refsd="{", parameters=picture.texts["parameters"]), has)
    assert found.request["seed"] == 5 and "taken from its other texts" in found.missing[0]
    with pytest.raises(UsageError, match="the recipe"):
        recall(with_texts(refsd="{"), has)


def test_a_picture_of_another_program(has, shop):
    found = recall(with_texts(parameters=A1111.format("Sampler: DPM++ 2M, Schedule type: Karras, "
                                                      "Variation seed: 3, Variation seed strength: "
                                                      "0.5, Model: tiny, Wonder: 1, ")), has)
    assert found.request == {
        "prompt": "a fox<lora:style:0.5:1>", "negative_prompt": "blue", "steps": 3, "cfg_scale": 4,
        "seed": 9, "width": 64, "height": 32, "sampler": "dpm++2m", "schedule": "karras",
        "compat": "a1111", "variation_seed": 3, "variation_strength": 0.5, "model": "tiny"}
    assert found.missing == ["hypernet 'x'", "Wonder (Wonder: 1)"]
    shop.read(found.request)
    found = recall(with_texts(parameters=A1111.format("Sampler: Euler a, RNG: CPU, Model: y, ")),
                   has._replace(loras={}))
    assert found.request["rng"] == "torch-cpu" and found.request["sampler"] == "euler_a"
    assert found.missing == ["lora 'style'", "hypernet 'x'",
                             "the model y, which this server was not started with"]


@pytest.mark.parametrize("texts, request_, missing", [
    ({"parameters": A1111.format("Sampler: DPM++ 3M SDE, ")},
     {"prompt": "a fox<lora:style:0.5:1> <hypernet:x:1>", "negative_prompt": "blue"},
     ["is of third order", "all but the prompts: the program did not"]),
    ({"parameters": "only words"}, {"prompt": "only words"}, ["all but the prompts"]),
    ({"invokeai_metadata": '{"positive_prompt": "a", "steps": 3}'}, {"prompt": "a"},
     ["all but the prompts: InvokeAI"]),
])
def test_of_others_at_least_the_prompts_are_taken(has, texts, request_, missing):
    found = recall(with_texts(**texts), has)
    assert found.request == request_ and len(found.missing) == len(missing)
    assert all(part in line for part, line in zip(missing, found.missing))


@pytest.mark.parametrize("texts", [{}, {"comment": "made by hand"}, {"parameters": ""}])
def test_a_picture_that_says_nothing_is_refused(has, texts):
    with pytest.raises(UsageError, match="does not say how it was made"):
        recall(with_texts(**texts), has)


def test_hashes_are_computed_once(shop, has, drawn, monkeypatch):
    first = read_picture(str(drawn(loras=[{"name": "style"}]).path))
    recall(first, has)
    monkeypatch.setattr("refsd.pipelines.identity.sha256", lambda path: 1 / 0)
    assert recall(first, has).request["loras"] == [{"name": "style", "weight": 1}]
    assert recalling._digest.cache_info().maxsize
