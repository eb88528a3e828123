"""Whole pipelines from single files, with parts from elsewhere, and with what files say of it."""

import io
import json

import numpy as np
import pytest
import tiny
from PIL import Image
from weights_samples import refused

import refsd
from refsd.errors import UsageError
from refsd.pipelines import identity
from refsd.pipelines.loading import load_scheduler
from refsd.pipelines.single_file import predicting
from refsd.weights import write_safetensors


def pipeline(folder, **options):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy", **options)


def drawn(pipe):
    return pipe("red cat", generator=3, num_inference_steps=2, output_type="np").images


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [tiny.write_model(root / str(seed), seed=seed) for seed in (0, 1)]


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_part_of_another_place_draws_as_in_its_own_model(models, part, tmp_path):
    first, second = models
    mixed = tiny.write_model(tmp_path / "mixed", **{part: tiny.tensors(part, 1)})
    expected = drawn(pipeline(mixed))
    assert not np.array_equal(expected, drawn(pipeline(first)))
    for place in (second, second / part, str(second / part), getattr(pipeline(second), part)):
        assert np.array_equal(drawn(pipeline(first, **{part: place})), expected)
    found = identity.of(str(first), variant=None, parts={part: str(second / part)})
    assert found[part] == part and len(found["files"]) == 3
    assert any(name.startswith(f"{part}: ") for name in found["files"])


def test_a_network_that_does_not_fit_is_refused(models):
    with pytest.raises(UsageError, match="vae is UNet on numpy; give a path"):
        pipeline(models[0], vae=pipeline(models[1]).unet)


def marked(path, markers=(), metadata=None, **more):
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((1, 4, 3, 3), "f4")}
    write_safetensors(path, {**tensors, **{n: np.zeros(0, "f4") for n in markers}, **more},
                      metadata)
    return path


def test_markers_make_the_scheduler(tmp_path, caplog):
    file = tmp_path / "x.safetensors"
    plain = load_scheduler(marked(file)).config
    assert (plain["_class_name"], plain["prediction_type"]) == ("PNDMScheduler", "epsilon")
    assert not caplog.records
    v = load_scheduler(marked(file, ["v_pred"])).config
    assert v["prediction_type"] == "v_prediction" and "its tensor v_pred" in caplog.text
    zero = load_scheduler(marked(file, ["v_pred", "ztsnr"])).config
    assert zero["rescale_betas_zero_snr"] and zero["timestep_spacing"] == "trailing"
    lcm = {"model.diffusion_model.time_embed.cond_proj.weight": np.zeros((1, 6), "f4")}
    assert load_scheduler(marked(file, **lcm)).config["_class_name"] == "LCMScheduler"


@pytest.mark.parametrize("said, found", [("epsilon", "epsilon"), ("v", "v_prediction"),
                                         ("v_prediction", "v_prediction"), ("EPS", "epsilon")])
def test_the_caller_overrules_what_is_predicted(tmp_path, models, said, found):
    file = marked(tmp_path / "x.safetensors", ["v_pred", "ztsnr"])
    for place in (file, models[0]):
        scheduler = load_scheduler(place, None, said)
        assert scheduler.config["prediction_type"] == found
        assert load_scheduler(place, scheduler, "sample").config["prediction_type"] == "sample"
    assert bool(load_scheduler(file, None, said).config["rescale_betas_zero_snr"]) == (
        found != "epsilon")
    assert pipeline(models[0], prediction_type=said).scheduler.config["prediction_type"] == found
    refused(lambda: predicting({}, "flow"), "prediction_type is 'flow'", error=UsageError)


def test_another_noise_in_the_buffers_is_said(tmp_path, caplog):
    from refsd.families import SD1
    from refsd.schedulers import from_config

    alphas = np.asarray(from_config(SD1.scheduler).alphas_cumprod)
    for dtype in ("f2", "f4"):
        load_scheduler(marked(tmp_path / "x.safetensors", alphas_cumprod=alphas.astype(dtype)))
    assert not caplog.records
    other = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    load_scheduler(marked(tmp_path / "x.safetensors", alphas_cumprod=other.astype("f4")))
    assert "alphas_cumprod holds another noise (0.0000 at the end)" in caplog.text


def test_the_command_line_names_parts_and_repro_finds_them(models, tmp_path, capsys):
    from refsd.__main__ import main

    first, second = models
    picture = str(tmp_path / "p.png")
    request = ["red cat", "-m", str(first), "--vae", str(second / "vae"), "--prediction", "v",
               "-s", "3", "--steps", "2", "--backend", "numpy", "-o", picture, "-q"]
    assert main(request) == 0
    texts = Image.open(io.BytesIO((tmp_path / "p.png").read_bytes())).text
    recipe = json.loads(texts["refsd"])
    assert recipe["model"]["vae"] == "vae"
    assert recipe["scheduler"]["prediction_type"] == "v_prediction"
    again = ["repro", picture, "-m", str(first), "-q"]
    assert main(again) == 2
    assert "--vae where it is" in capsys.readouterr().err
    assert main([*again, "--vae", str(second / "vae")]) == 0
    assert main(["red cat", "-m", str(first), "--ema", "-o", picture, "-q"]) == 2
    assert "single files" in capsys.readouterr().err
