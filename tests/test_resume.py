"""A drawing saved after a step and resumed has the bits of one that was never interrupted."""

import json
from functools import partial

import numpy as np
import pytest

from refsd import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from refsd.errors import ModelError, UsageError
from refsd.pipelines.resume import KEY, SaveState, read_state
from refsd.random import PhiloxGenerator, TorchGenerator
from refsd.random.by_name import NumPyGenerator
from refsd.schedulers import SCHEDULERS
from refsd.weights import write_safetensors

PROMPTS = ["a red cat", "a cat"]


@pytest.fixture(scope="module")
def loaded(model):
    return StableDiffusionPipeline.from_pretrained(model, backend="numpy")


@pytest.fixture
def pipe(loaded):
    return StableDiffusionPipeline.from_pipe(loaded)


def draw(pipe, generator=7, **options):
    options = {"num_inference_steps": 5, "negative_prompt": ["red", ""], "output_type": "latent",
               "guidance_rescale": 0.3} | options
    return pipe(PROMPTS, generator=generator, **options).images


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler(pipe, tmp_path, name):
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
    run = partial(draw, pipe, eta=1.0 if name == "DDIMScheduler" else 0.0)
    whole = run()
    saved = run(callback_on_step_end=SaveState(tmp_path / "x.safetensors", 3))
    assert np.array_equal(saved, whole)
    seen = []
    resumed = run(resume=tmp_path / "x.safetensors",
                  callback_on_step_end=lambda pipe, index, *_: seen.append(index) or {})
    assert np.array_equal(resumed, whole)
    assert seen == list(range(3, seen[-1] + 1)) and seen[-1] >= 4


@pytest.mark.parametrize("generator", [
    lambda: [PhiloxGenerator(1), PhiloxGenerator(2)], lambda: NumPyGenerator(3),
    lambda: [TorchGenerator(4), NumPyGenerator(5)]], ids=["a list", "NumPy's", "of two kinds"])
def test_every_generator(pipe, tmp_path, generator):
    pipe.scheduler = SCHEDULERS["EulerAncestralDiscreteScheduler"].from_config(
        pipe.scheduler.config)
    whole = draw(pipe, generator(),
                 callback_on_step_end=SaveState(tmp_path / "x.safetensors", 1))
    assert np.array_equal(draw(pipe, generator(), resume=str(tmp_path / "x.safetensors")), whole)


def test_halves_and_a_picture_to_begin_with(model, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(model, backend="numpy", dtype="bfloat16")
    image = pipe("a cat", num_inference_steps=1, generator=1).images[0]
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    pipe.scheduler = SCHEDULERS["DPMSolverMultistepScheduler"].from_config(pipe.scheduler.config)
    run = partial(pipe, "a red cat", image, strength=0.8, num_inference_steps=5, generator=3,
                  output_type="latent")
    whole = run(callback_on_step_end=SaveState(tmp_path / "x.safetensors", 2)).images
    resumed = run(resume=tmp_path / "x.safetensors").images
    assert resumed.dtype == whole.dtype and np.array_equal(resumed, whole)
    with pytest.raises(UsageError, match=r"differs: 'float32' here|StableDiffusionPipeline"):
        StableDiffusionPipeline.from_pretrained(model, backend="numpy")(
            "a red cat", num_inference_steps=5, generator=3, resume=tmp_path / "x.safetensors")


@pytest.fixture(scope="module")
def saved(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    draw(loaded, callback_on_step_end=SaveState(path, 2, notes={"what": "a test"}))
    return path


def test_it_is_a_safetensors_file_with_notes(saved):
    from safetensors.numpy import load_file

    state = read_state(saved)
    assert state.about["notes"] == {"what": "a test"} and state.about["step"] == 2
    assert load_file(saved)["latents"].shape == (2, 4, 4, 4)


@pytest.mark.parametrize("change, words", [
    ({"guidance_scale": 3}, "guidance_scale differs: 3.0 here and 7.5 there; resume with what"),
    ({"guidance_rescale": 0}, "guidance_rescale differs"),
    ({"negative_prompt": ["", ""]}, "the prompt, the negative prompt or the text encoder differs;"),
    ({"generator": 8}, "what it began with .* differs;"),
    ({"num_inference_steps": 6}, "the schedule differs;"),
    ({"generator": [TorchGenerator(7), TorchGenerator(8)]}, "differs"),
])
def test_another_request_is_refused(pipe, saved, change, words):
    with pytest.raises(UsageError, match=words):
        draw(pipe, **{"resume": saved, **change})
    assert pipe.resumed is None
    draw(pipe, num_inference_steps=1)  # and nothing of it is left


def test_another_mask_is_refused(loaded, tmp_path):
    """Of a model that blends the picture in after each step: the mask is in no input of its."""
    pipe = StableDiffusionInpaintPipeline.from_pipe(loaded)
    picture, mask = np.full((32, 32, 3), 0.3, "f4"), np.ones((32, 32), "f4")
    run = partial(pipe, "a cat", picture, num_inference_steps=4, generator=1, strength=1.0)
    run(mask, callback_on_step_end=SaveState(tmp_path / "x.safetensors", 2))
    with pytest.raises(UsageError, match="a mask or another input of the model differs"):
        run(mask * (np.arange(32) > 9), resume=tmp_path / "x.safetensors")
    run(mask, resume=tmp_path / "x.safetensors")


@pytest.mark.parametrize("name, words", [
    ("EulerDiscreteScheduler", "scheduler.* differs"), ("DDIMScheduler", "steps_offset differs")])
def test_another_sampler_is_refused(pipe, saved, name, words):
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config, steps_offset=0)
    with pytest.raises(UsageError, match=words):
        draw(pipe, resume=saved)


def test_as_many_generators_are_wanted(pipe, tmp_path):
    latents = np.zeros((2, 4, 4, 4), np.float32)
    path = tmp_path / "x.safetensors"
    draw(pipe, latents=latents, callback_on_step_end=SaveState(path, 2))
    with pytest.raises(UsageError, match="saved with 1 generators, got 2; give as many"):
        draw(pipe, [1, 2], latents=latents, resume=path)


@pytest.mark.parametrize("at", [5, 9])
def test_a_last_step_is_not_saved(pipe, tmp_path, at):
    with pytest.raises(UsageError, match=f"step {at} of 5 has none after it; give 1 to 4"):
        draw(pipe, callback_on_step_end=SaveState(tmp_path / "x.safetensors", at))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [0, -1, 1.5, "1"])
def test_a_bad_step(at):
    with pytest.raises(UsageError, match="at is .*; give an integer from 1"):
        SaveState("x.safetensors", at)


def test_a_generator_without_a_state_is_refused(pipe, tmp_path):
    class Mine:
        def randn(self, shape, dtype):
            return np.zeros(shape, dtype)

    with pytest.raises(UsageError, match="generator is a Mine, whose state cannot be had; give"):
        draw(pipe, Mine(), callback_on_step_end=SaveState(tmp_path / "x.safetensors", 1))


def damaged(path, change):
    """The saved file with other metadata or tensors."""
    from safetensors import safe_open
    from safetensors.numpy import load_file

    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors, about = load_file(path), json.loads(metadata[KEY])
    change(about, tensors, metadata)
    if "kept" not in metadata:
        metadata[KEY] = json.dumps(about)
    other = path.with_name("y.safetensors")
    write_safetensors(other, tensors, metadata)
    return other


@pytest.mark.parametrize("change, kind, words", [
    (lambda about, tensors, metadata: metadata.pop(KEY) and metadata.update(kept=""), UsageError,
     "not a saved drawing; give a file"),
    (lambda about, tensors, metadata: tensors.update(latents=tensors["latents"] + 1), ModelError,
     "not those that were saved"),
    (lambda about, tensors, metadata: about.update(step=3), ModelError, "not those that were"),
    (lambda about, tensors, metadata: about.update(schema=2), UsageError, "schema is 2.*newer"),
    (lambda about, tensors, metadata: about.update(step=0), ModelError, "step is 0"),
    (lambda about, tensors, metadata: about.pop("request"), ModelError, "missing key 'request'"),
    (lambda about, tensors, metadata: metadata.update({KEY: "[]", "kept": ""}), ModelError,
     "expected an object"),
])
def test_what_is_no_saved_drawing_is_refused(saved, change, kind, words):
    with pytest.raises(kind, match=words):
        read_state(damaged(saved, change))


@pytest.mark.parametrize("change", [
    lambda about, tensors: tensors.pop("scheduler.timesteps"),
    lambda about, tensors: tensors.pop("generator.0"),
    lambda about, tensors: tensors.pop("latents"),
    lambda about, tensors: about["scheduler"].update(timesteps={"dict": 3}),
    lambda about, tensors: about["scheduler"].update(timesteps={"a": 1, "b": 2}),
])
def test_what_does_not_fit_together_is_said_to_be_damaged(pipe, saved, change, monkeypatch):
    """As only a file that was made so can be: the sums agree."""
    monkeypatch.setattr("refsd.pipelines.resume._sum", lambda *_: "")
    path = damaged(saved, lambda about, tensors, metadata: (
        change(about, tensors), metadata.update(sha256="")))
    with pytest.raises(ModelError, match="its state does not fit together"):
        draw(pipe, resume=path)


def test_a_large_file_is_not_read(saved, monkeypatch):
    monkeypatch.setattr("refsd.pipelines.resume.MAX_FILE", 10)
    with pytest.raises(UsageError, match="at most 10 are read; save fewer"):
        read_state(saved)
