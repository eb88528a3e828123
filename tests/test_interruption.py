"""Every pipeline stops after a step if a callback says so, and resumes where one was saved."""

import inspect
import json

import numpy as np
import pytest
import test_controlnet
import tiny
import tiny_three
import tiny_xl

import refsd
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.resume import SaveState
from refsd.schedulers import EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from refsd.weights import write_safetensors

PIPELINES = [name for name in refsd.__all__ if inspect.isclass(getattr(refsd, name))
             and issubclass(getattr(refsd, name), Pipeline)]
PICTURE = np.random.default_rng(0).random((32, 32, 3), "float32")
MASK = np.pad(np.ones((16, 16), np.float32), 8)
INPUTS = {"image": PICTURE, "mask_image": MASK, "control_image": PICTURE[::-1]}
CHANNELS = {"StableDiffusionInstructPix2PixPipeline": 8}


def control_net(folder, backend="numpy"):
    (folder / "config.json").write_text(json.dumps(test_controlnet.CONFIG))
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", test_controlnet.tensors())
    return refsd.ControlNet.from_pretrained(folder, backend=backend)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return control_net(tmp_path_factory.mktemp("net"))


def make(name, folder, net, monkeypatch, backend="numpy"):
    """A small pipeline with a sampler that draws noise in every step, and what its calls take."""
    cls = getattr(refsd, name)
    monkeypatch.setitem(tiny.CONFIGS, "unet", tiny.UNET | {"in_channels": CHANNELS.get(name, 4)})
    more = {"controlnet": net} if "ControlNet" in name else {}
    write = tiny_xl.write_model if "XL" in name else tiny.write_model
    write = tiny_three.write_model if "Diffusion3" in name else write
    pipe = cls.from_pretrained(write(folder), backend=backend, **more)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    if "Diffusion3" in name:  # whose steps follow a flow
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    asked = inspect.signature(cls.__call__).parameters
    inputs = {key: value for key, value in INPUTS.items() if key in asked}
    few = any(part in name for part in ("XLImg2Img", "3Img2Img", "3Inpaint"))
    return pipe, inputs | ({"strength": 1.0} if few else {})  # 0.3 and 0.6 are too few steps


@pytest.fixture(params=PIPELINES)
def draw(request, tmp_path, net, monkeypatch):
    """Latents of every pipeline in turn."""
    pipe, inputs = make(request.param, tmp_path / "model", net, monkeypatch)

    def drawn(callback=None, **options):
        return pipe("a red cat", num_inference_steps=8, generator=1, output_type="latent",
                    callback_on_step_end=callback, **inputs, **options).images

    return drawn


def test_all_pipelines_are_asked():
    assert {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"} <= set(PIPELINES)


def test_every_pipeline_stops_with_the_picture_so_far(draw):
    seen = []

    def stop(pipe, index, timestep, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = index == 1

    assert np.array_equal(draw(stop), seen[-1]) and len(seen) == 2
    draw(lambda *_: seen.append(0))  # the next drawing is a whole one
    assert len(seen) > 2 + 5


def test_every_pipeline_resumes_with_the_bits_of_a_whole_drawing(draw, tmp_path):
    whole = draw(SaveState(tmp_path / "x.safetensors", 3))
    seen = []
    resumed = draw(lambda pipe, index, *_: seen.append(index), resume=tmp_path / "x.safetensors")
    assert seen[0] == 3 and np.array_equal(resumed, whole)
