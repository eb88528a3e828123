"""pipe._interrupt = True in a callback ends every pipeline after that step, with a picture."""

import inspect
import json

import numpy as np
import pytest
import test_controlnet
import tiny

import refsd
from refsd.pipelines.pipeline import Pipeline
from refsd.weights import write_safetensors

PIPELINES = [name for name in refsd.__all__ if inspect.isclass(getattr(refsd, name))
             and issubclass(getattr(refsd, name), Pipeline)]
GREY = np.full((32, 32, 3), 0.5, np.float32)
MASK = np.ones((32, 32), np.float32)
INPUTS = {"image": GREY, "mask_image": MASK, "control_image": GREY}
CHANNELS = {"StableDiffusionInstructPix2PixPipeline": 8}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    (folder / "config.json").write_text(json.dumps(test_controlnet.CONFIG))
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", test_controlnet.tensors())
    return refsd.ControlNet.from_pretrained(folder, backend="numpy")


def test_all_pipelines_are_asked():
    assert {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"} <= set(PIPELINES)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_stops_with_the_picture_so_far(name, tmp_path, net, monkeypatch):
    cls, seen = getattr(refsd, name), []
    monkeypatch.setitem(tiny.CONFIGS, "unet",
                        tiny.UNET | {"in_channels": CHANNELS.get(name, 4)})
    more = {"controlnet": net} if hasattr(cls, "controlnet") else {}
    pipe = cls.from_pretrained(tiny.write_model(tmp_path / "model"), backend="numpy", **more)
    asked = inspect.signature(cls.__call__).parameters
    inputs = {key: value for key, value in INPUTS.items() if key in asked}

    def stop(pipe, index, timestep, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = index == 1

    def draw(callback):
        return pipe("a red cat", num_inference_steps=8, generator=1, output_type="latent",
                    callback_on_step_end=callback, **inputs).images

    assert np.array_equal(draw(stop), seen[-1]) and len(seen) == 2
    draw(lambda *_: seen.append(0))  # the next drawing is a whole one
    assert len(seen) > 2 + 5 and not pipe.interrupt
