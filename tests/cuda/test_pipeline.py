"""The whole pipeline on arrays that stay on the device."""

import numpy as np
import pytest
import standing_in
import tiny
import tiny_three
import tiny_xl

import refsd
from refsd.backends import BACKENDS
from refsd.errors import ModelError, UsageError
from refsd.golden.recording.record import Recorder, Selection
from refsd.golden.recording.request import Request
from refsd.golden.recording.run import run
from refsd.numba_ops.cuda import array
from refsd.numba_ops.cuda.array import CHANNELS_LAST, to_device
from refsd.pipelines.vae_tiling import coding_bytes
from refsd.places import is_on_device, on_host
from refsd.schedulers import SCHEDULERS

SIDE = 16  # latents of 2 x 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")


def load(folder, backend, **options):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend=backend, **options)


def draw(pipe, steps=4, **options):
    """The picture, and the copies between the ends of the first and of the last step."""
    seen = []

    def count(pipe, step, timestep, tensors):
        seen.append(dict(array.copies))

    images = pipe("a red cat", SIDE, SIDE, num_inference_steps=steps, generator=7, output_type="np",
                  callback_on_step_end=count, **options).images
    between = {name: seen[-1][name] - seen[0][name] for name in seen[0]}
    return images, between, len(seen) - 1


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_sampler_has_the_bits_of_the_definitions(name, dtype, folder, monkeypatch):
    standing_in.stand_in(monkeypatch)
    cls = getattr(refsd.schedulers, name)
    pipes = {backend: load(folder, backend, scheduler=cls, dtype=dtype)
             for backend in ("numpy", "cuda")}
    expected, _, _ = draw(pipes["numpy"])
    found, copies, steps = draw(pipes["cuda"])
    np.testing.assert_array_equal(found, expected)
    assert copies == {"to_device": DRAWS.get(name, lambda steps: 0)(steps), "to_host": 0}


DRAWS = {"DDPMScheduler": int, "EulerAncestralDiscreteScheduler": int,
         "KDPM2AncestralDiscreteScheduler": lambda calls: calls // 2,
         "DPMSolverSDEScheduler": lambda calls: calls - 1,
         "LCMScheduler": lambda steps: steps - 1}


@pytest.fixture
def pipes(folder, monkeypatch):
    """One on NumPy, and one on a device whose kernels are the definitions."""
    standing_in.stand_in(monkeypatch)
    return load(folder, "numpy"), load(folder, "cuda")


def both(pipes, prompt="a red cat", **options):
    """What the two draw."""
    options = {"num_inference_steps": 2, "generator": 7, "output_type": "np"} | options
    return [pipe(prompt, SIDE, SIDE, **options).images for pipe in pipes]


@pytest.mark.parametrize("options", [
    {"guidance_scale": 1}, {"eta": 0.5}, {"num_images_per_prompt": 2}, {"clip_skip": 1},
    {"guidance_rescale": 0.7}, {"guidance_rescale": 1.0, "num_images_per_prompt": 2},
    {"prompt": ["red", "cat"], "negative_prompt": ["cat", "a"], "num_images_per_prompt": 2},
    {"latents": np.ones((1, 4, 2, 2))}, {"output_type": "latent"}, {"num_inference_steps": 1},
    {"prompt": None, "prompt_embeds": np.full((1, 16, 16), 0.5)}], ids=str)
def test_what_can_be_asked_for_has_the_same_bits(options, pipes):
    expected, found = both(pipes, **options)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, expected)


def test_rescaled_guidance_draws_another_picture(pipes):
    assert (both(pipes[1:], guidance_rescale=0.7)[0] != both(pipes[1:])[0]).any()


def test_thresholds_are_found_on_the_host_and_counted(folder, pipes):
    options = {"thresholding": True, "sample_max_value": 1.5}
    for pipe in pipes:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)
    np.testing.assert_array_equal(*both(pipes))
    _, copies, steps = draw(pipes[1])
    assert copies == {"to_device": steps, "to_host": steps}


def test_tiles_blend_to_the_same_bits_and_bands_are_refused(pipes):
    """Latents of 6 x 5 in tiles of 4; auto is one piece on a device."""
    host, device = pipes
    latents = np.random.default_rng(3).standard_normal((1, 4, 6, 5)).astype("f4")
    found, expected = (pipe.vae.decode(latents, tiling="blend") for pipe in (device, host))
    assert is_on_device(found)
    np.testing.assert_array_equal(on_host(found), expected)
    with pytest.raises(UsageError, match="backend 'cuda' has no exact tiling; take tiling off"):
        device.vae.decode(latents, tiling="exact")
    assert coding_bytes(device.vae, "decoder", 512, 512, "auto") == coding_bytes(
        device.vae, "decoder", 512, 512, "off")


def test_a_callback_is_given_arrays_on_the_device_and_may_give_either(pipes):
    def halve(pipe, step, timestep, tensors):
        assert pipe.preview(tensors["latents"]) and pipe.preview(tensors["denoised"], vae=True)
        half = on_host(tensors["latents"]) / 2
        return {"latents": half if step else tensors["latents"] / 2}

    np.testing.assert_array_equal(*both(pipes, callback_on_step_end=halve,
                                        callback_on_step_end_tensor_inputs=["latents", "denoised"]))


def test_networks_take_arrays_of_the_host_and_times_and_ids_of_either(pipes):
    image, latents = np.full((1, 3, 16, 16), 0.25, "f4"), np.full((1, 4, 2, 2), 0.5, "f4")
    text = np.full((1, 16, 16), 0.5, "f4")
    calls = [lambda p: p.unet(latents, 3, text), lambda p: p.vae.decode(latents),
             lambda p: p.vae.encode(image).sample(7), lambda p: p.text_encoder([[1, 2]])[1],
             lambda p: p.unet(latents, BACKENDS[p.backend].put(np.array([3.0])), text),
             lambda p: p.text_encoder(BACKENDS[p.backend].put(np.array([[1, 2]])))[1]]
    for call in calls:
        expected, found = map(call, pipes)
        assert is_on_device(found)
        np.testing.assert_array_equal(on_host(found), expected)


def test_numbers_that_are_not_finite_are_seen_after_the_last_step(folder, pipes):
    pipe = pipes[1]
    pipe.unet.tree["conv_out"]["bias"] = np.full(4, np.nan, "f4")
    pipe.unet.tree["conv_out"]["bias"] = to_device(pipe.unet.tree["conv_out"]["bias"])
    with pytest.raises(ModelError, match="^denoise: 16 of 16 numbers are NaN"):
        both([pipe])


def test_weights_lie_on_the_device_under_their_names(folder, pipes):
    before, pipe = pipes
    leaf = pipe.unet.tree["conv_in"]["weight"]
    assert (leaf.name, leaf.shape) == ("unet.conv_in.weight", (8, 4, 3, 3))
    assert leaf.dense().is_contiguous(CHANNELS_LAST)
    np.testing.assert_array_equal(leaf.dense().numpy(), before.unet.tree["conv_in"]["weight"])
    with pytest.raises(TypeError, match="copies it to the host"):
        np.asarray(leaf)
    with pytest.raises(UsageError, match="int8 by int8, which backend 'cuda' does not do: take"):
        load(folder, "cuda", dtype="int8")


class Kept:
    """A Writer of golden packs that only keeps what it is given."""

    def __init__(self):
        self.tensors = {}

    def add(self, name, array, *, op, inputs=None, **about):
        self.tensors[name] = np.array(array), op, inputs

    def holds(self, name):
        return name in self.tensors

    def checkpoint(self, *about, **more):
        pass


@pytest.mark.parametrize("sample, dtype", [
    (tiny, "float32"), (tiny, "float64"), (tiny_xl, "float32"), (tiny_three, "float32")])
def test_a_recording_has_the_tensors_and_names_of_the_host(sample, dtype, tmp_path, monkeypatch):
    standing_in.stand_in(monkeypatch)
    folder, kept = sample.write_model(tmp_path / "model"), {}
    for backend in ("numpy", "cuda"):
        pipe = refsd.AutoPipelineForText2Image.from_pretrained(folder, backend=backend, dtype=dtype)
        request = Request("a red cat", negative_prompt="a", steps=3, cfg_scale=3.0, width=SIDE,
                          height=SIDE, scheduler=pipe.scheduler.config.plain())
        writer = kept[backend] = Kept()
        run(pipe, request, Recorder(writer, Selection(level=3, steps=None)))
    assert list(kept["cuda"].tensors) == list(kept["numpy"].tensors)
    for name, (expected, *links) in kept["numpy"].tensors.items():
        found, *linked = kept["cuda"].tensors[name]
        np.testing.assert_array_equal(found, expected, err_msg=name)
        assert linked == links, name


def test_a_pipeline_is_on_the_device_that_it_was_loaded_for(pipes):
    for pipe, other in zip(pipes, ("cuda", "cpu")):
        assert pipe.to(pipe.device) is pipe and pipe.device != other
        with pytest.raises(UsageError, match=f"^to: '{other}'; the pipeline computes on"):
            pipe.to(other)
