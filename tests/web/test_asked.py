"""Requests: what each field becomes, and what is refused by name."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from refsd.cli import draw
from refsd.errors import UsageError
from refsd.serve import asked
from refsd.serve.asked import Limits
from refsd.serve.models import Model, find_loras, find_models

MODELS = {"one": Model("one", None, "Stable Diffusion 1.x", 128, 128, 8),
          "two": Model("two", "/models/two", "Stable Diffusion 1.x", 512, 512, 8)}
LORAS = {"style": "/loras/style.safetensors", "below/a": "/loras/below/a.safetensors"}


def read(**said):
    return asked.read({"prompt": "a", **said}, MODELS, LORAS, Limits())


def png(width=64, height=64, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (width, height), "white").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_options_are_those_of_refsd_draw():
    words = ["a", "-n", "b", "-s", "5", "-W", "64", "-H", "72", "--steps", "3", "--cfg-scale", "2",
             "--sampler", "euler", "--schedule", "karras", "--clip-skip", "1", "--rng", "cuda",
             "--compat", "a1111", "--eta", "0.5", "--guidance-rescale", "0.25", "-b", "2",
             "--variation-strength", "0.5", "--variation-seed", "9", "--hires-scale", "2",
             "--hires-steps", "4", "--hires-denoising", "0.6", "--hires-upscaler", "lanczos"]
    wanted = draw.parser().parse_args(words)
    draw.check(wanted)
    found = read(negative_prompt="b", seed=5, width=64, height=72, steps=3, cfg_scale=2,
                 sampler="euler", schedule="karras", clip_skip=1, rng="cuda", compat="a1111",
                 eta=0.5, guidance_rescale=0.25, count=2, variation_strength=0.5, variation_seed=9,
                 hires_scale=2, hires_steps=4, hires_denoising=0.6, hires_upscaler="lanczos")
    assert found.count == 2 and found.model == "one" and found.prompt == "a"
    found, wanted = vars(found.options), vars(wanted)
    different = {name for name in found if found[name] != wanted.get(name)}
    assert different == {"prompt", "words", "adapters", "embeddings"}  # the latter an object each
    assert found["adapters"] == [] and found["embeddings"].files == []
    assert {name for name in found if type(found[name]) is not type(wanted.get(name))} == {
        "prompt", "words", "adapters"}  # for a recipe 2 is not 2.0


def test_what_is_not_said_is_as_refsd_draw_has_it():
    found = read()
    assert found.options.cfg_scale == draw.BUNDLED_CFG_SCALE and found.options.steps == 20
    assert 0 <= found.options.seed < 2**32 and found.preview == 1
    assert read(seed=-1).options.seed != read(seed=None).options.seed
    other = read(model="two", preview=0)
    assert other.options.model == "/models/two" and other.options.cfg_scale == draw.CFG_SCALE
    assert other.preview == 0


def test_what_holds_for_all_jobs_is_kept():
    base = draw.parser().parse_args(["--backend", "numpy", "--dtype", "float64"])
    found = asked.read({"prompt": "a"}, MODELS, {}, Limits(), base).options
    assert (found.backend, found.dtype) == ("numpy", "float64")
    assert asked.defaults().backend == "auto"


@pytest.mark.parametrize("said, message", [
    ({"promt": "a"}, "there is no field 'promt'; did you mean prompt?"),
    ({"prompt": None}, "there is no prompt; give one"),
    ({"prompt": 5}, "prompt is 5; give a text"),
    ({"prompt": "\ud800"}, "give a text"),
    ({"prompt": "a" * 10_001}, "prompt has 10,001 characters; give at most 10,000"),
    ({"negative_prompt": "a" * 10_001}, "negative_prompt has 10,001 characters"),
    ({"steps": 151}, "steps is 151; give an integer from 1 to 150"),
    ({"steps": True}, "steps is True"),
    ({"count": 9}, "count is 9; give an integer from 1 to 8"),
    ({"width": 56}, "width is 56; give an integer from 64 to 2048"),
    ({"height": 2056}, "height is 2056; give an integer from 64 to 2048"),
    ({"width": 100}, "width is 100; give a multiple of 8 from 8 to 4096, such as 96 or 104"),
    ({"width": 2048, "height": 2048, "hires_scale": 2}, "hires_scale: a picture of 4096 x 4096"),
    ({"cfg_scale": "nan"}, "cfg_scale is 'nan'"),
    ({"seed": 2**64}, "seed is 18446744073709551616"),
    ({"seed": 2**64 - 1, "count": 2}, "seed is"),
    ({"sampler": "eulr"}, "sampler: got 'eulr'; did you mean euler?"),
    ({"schedule": "karras"}, "schedule karras is of a sampler; give sampler with it"),
    ({"schedule": "carras"}, "schedule is 'carras'; did you mean karras?"),
    ({"rng": "mt"}, "rng is 'mt'"),
    ({"compat": "a1112"}, "a1111"),
    ({"model": "three"}, "model is 'three', which this server was not started with"),
    ({"model": "/etc/passwd"}, "model is '/etc/passwd', which this server was not started with"),
    ({"strength": 0.5}, "strength is for drawing from a picture; give init_image PICTURE too"),
    ({"mask": png()}, "mask is for drawing from a picture"),
    ({"loras": "style"}, "loras is 'style'; give a list"),
    ({"loras": [{"name": "styl"}]}, "loras[0]: this server has no LoRA 'styl'; did you mean style"),
    ({"loras": [{"name": "style", "path": "x"}]}, "loras[0] is"),
    ({"loras": [{"name": "style", "weight": 101}]}, "weight is 101; give a number"),
    ({"loras": [{"name": "style"}] * 2}, "loras: style is given twice"),
    ({"loras": [{"name": "style"}] * 17}, "give a list of at most 16"),
    ({"prompt": "<lora:style:1><lora:style:2>"}, "loras: style is given twice"),
    ({"prompt": "<lora:styl:1>"}, "prompt: <lora:styl:1>: this server has no LoRA 'styl'"),
    ({"prompt": "<lora:style:x>"}, "the weight is 'x'"),
    ({"preview": -1}, "preview is -1"),
])
def test_what_is_refused_is_named(said, message):
    with pytest.raises(UsageError) as caught:
        read(**said)
    assert message in str(caught.value) and "--" not in str(caught.value)


def test_a_request_is_an_object():
    with pytest.raises(UsageError, match="the request is .*; give an object"):
        asked.read(["a"], MODELS, LORAS, Limits())


@pytest.mark.parametrize("path", ["/loras/style.safetensors", "/loras/style", "../loras/style",
                                  "style.safetensors", "./style", "a", "below\\a", "/etc/passwd"])
def test_no_lora_is_found_by_a_path(path):
    """Only by a name of the list, in both ways of asking."""
    for said in ({"loras": [{"name": path}]}, {"prompt": f"a <lora:{path}:1>"},
                 {"prompt": f"a <lyco:{path}>"}):
        with pytest.raises(UsageError, match="this server has no LoRA"):
            read(**said)


def test_loras_of_the_list_and_of_tags():
    found = read(prompt="a <lora:below/a:0.5:0.25> b", loras=[{"name": "style", "weight": 0.75}])
    assert found.prompt == found.options.prompt == "a  b"
    assert found.options.adapters == [
        {"path": LORAS["style"], "unet": 0.75, "text_encoder": 0.75},
        {"path": LORAS["below/a"], "unet": 0.25, "text_encoder": 0.5}]
    assert (found.options.lora, found.options.lora_dir) == ([], None)
    assert read(loras=[{"name": "style"}]).options.adapters[0]["unet"] == 1


@pytest.mark.parametrize("field", ["lora", "lora_dir", "output", "prompts", "init_img", "vae",
                                   "embedding", "control_net", "resume", "save_state", "taesd",
                                   "backend", "download", "words", "adapters", "batch_count"])
def test_options_that_name_files_are_no_fields(field):
    with pytest.raises(UsageError, match=f"there is no field '{field}'"):
        read(**{field: "/etc/passwd"})


@pytest.mark.parametrize("field", ["init_image", "mask"])
@pytest.mark.parametrize("text, message", [
    ("http://169.254.169.254/", "no other URL is read"), ("file:///etc/passwd", "no other URL"),
    ("data:image/png,abc", "give a data: URL in base64"), ("/etc/passwd", "in base64"),
    ("????", "in base64"), ("aGVsbG8=", "not a PNG, JPEG or WebP picture"), (5, "give a text"),
])
def test_pictures_come_with_the_request_alone(field, text, message):
    said = {"init_image": png(), field: text}
    with pytest.raises(UsageError, match=message) as caught:
        read(**said)
    assert field in str(caught.value)


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_pictures_are_those_of_the_request(head):
    found = read(init_image=head + png(136, 72), mask=head + png(136, 72, "L"), strength=0.5)
    pictures = found.options.pictures
    assert pictures.images["init_img"].size == (136, 72) and pictures.recorded["strength"] == 0.5
    assert pictures.recorded["mask"]["file"] == "mask"
    assert "init_image" not in found.said and "mask" not in found.said
    assert np.asarray(pictures.images["mask"]).all()


def test_the_size_of_a_picture_counts_too():
    with pytest.raises(UsageError, match="init_image: a picture of 2056 x 64"):
        read(init_image=png(2056, 64))
    assert read(init_image=png(2056, 64), width=1024, height=64).options.width == 1024
    with pytest.raises(UsageError, match="init_image: a picture of 56 x 64"):
        read(init_image=png(63, 64))
    huge = io.BytesIO()
    Image.new("1", (5000, 10)).save(huge, "PNG")
    with pytest.raises(UsageError, match="at most 4096 x 4096"):
        read(init_image=base64.b64encode(huge.getvalue()).decode())
    limits = Limits(pixels=100 * 100)
    with pytest.raises(UsageError, match="width and height: .* at most 10,000 pixels"):
        asked.read({"prompt": "a", "width": 104, "height": 104}, MODELS, {}, limits)
    with pytest.raises(UsageError, match="the model's own size: a picture of 128 x 128"):
        asked.read({"prompt": "a"}, MODELS, {}, limits)


def test_the_models_are_those_at_the_start(tiny_model, tmp_path):
    assert list(find_models()) == ["bundled"]
    assert find_models()["bundled"] == Model("bundled", None, "Stable Diffusion 1.x", 128, 128, 8)
    found = find_models([str(tiny_model), "bundled", str(tiny_model)])
    assert list(found) == ["tiny", "bundled", "tiny-2"] and found["tiny"].path == str(tiny_model)
    with pytest.raises(UsageError, match="sd1: refsd knows this model and has no file of it"):
        find_models(["sd1"])


def test_the_loras_are_those_at_the_start(tmp_path):
    for name in ("a", "below/a", "below/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.safetensors").touch()
    assert find_loras(str(tmp_path)) == {name: str(tmp_path / f"{file}.safetensors") for name, file
                                         in (("a", "a"), ("below/a", "below/a"), ("b", "below/b"))}
    assert find_loras(None) == {}
    with pytest.raises(UsageError, match="no such folder"):
        find_loras(str(tmp_path / "none"))
