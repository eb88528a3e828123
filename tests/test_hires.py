"""The hires. fix: how many steps it makes, from which noise, of which latents or pictures."""

import numpy as np
import pytest
from PIL import Image

from refsd import StableDiffusionPipeline
from refsd.errors import UsageError
from refsd.pipelines.hires import StableDiffusionHiresPipeline, schedule_length
from refsd.pipelines.upscale import LATENT, UPSCALERS, matrix, upscaled_latents
from refsd.random import TorchGenerator
from refsd.schedulers import SCHEDULERS


@pytest.fixture(scope="module")
def loaded(model):
    return StableDiffusionPipeline.from_pretrained(model, backend="numpy")


@pytest.fixture
def pipe(loaded):
    return StableDiffusionHiresPipeline.from_pipe(loaded)


@pytest.fixture(scope="module")
def small(loaded):
    return loaded("a red cat", num_inference_steps=2, generator=7, output_type="latent").images


def draw(pipe, small, **options):
    return pipe("a red cat", small, **{"num_inference_steps": 3, "generator": 7,
                                       "output_type": "latent"} | options).images


@pytest.mark.parametrize("mode", LATENT)
@pytest.mark.parametrize("old, new", [(4, 8), (5, 7), (8, 8), (3, 1), (1, 6)])
def test_weights_add_up_to_one(mode, old, new):
    weights = matrix(old, new, mode)
    assert weights.shape == (new, old)
    # Four cubics of float64, each of six roundings of terms that add up to 36 in magnitude.
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=4 * 6 * 36 * 2.0**-53)
    if old == new:
        np.testing.assert_array_equal(weights, np.eye(old))


def test_published_weights():
    """Twice as many: the nearest, a quarter and three quarters, and Keys' cubic at a quarter."""
    assert np.argmax(matrix(2, 4, "latent-nearest"), axis=1).tolist() == [0, 0, 1, 1]
    assert np.argmax(matrix(3, 2, "latent-nearest"), axis=1).tolist() == [0, 1]
    assert np.argmax(matrix(3, 2, "latent-nearest-exact"), axis=1).tolist() == [0, 2]
    np.testing.assert_array_equal(matrix(2, 4, "latent"), [[1, 0], [.75, .25], [.25, .75], [0, 1]])
    np.testing.assert_allclose(matrix(8, 16, "latent-bicubic")[5, 1:5],
                               [-.10546875, .87890625, .26171875, -.03515625])
    np.testing.assert_allclose(matrix(8, 16, "latent-bicubic-antialiased")[5, 1:5],
                               [-.0703125, .8671875, .2265625, -.0234375])


@pytest.mark.parametrize("steps, strength, total", [
    (20, 0.7, 28), (10, 0.5, 20), (15, 1.0, 15), (1, 0.1, 10), (1000, 1, 1001)])
def test_all_steps_are_made_of_a_longer_schedule(steps, strength, total):
    assert schedule_length(steps, strength) == total


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler",
                                  "HeunDiscreteScheduler", "PNDMScheduler"])
def test_the_last_steps_from_noise_of_the_seed(pipe, small, name):
    """Of int(3 / 0.4) = 7 steps the last 3, from noise added at their first."""
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config, **options)
    seen = []
    draw(pipe, small, strength=0.4, callback_on_step_end=lambda pipe, i, t, _: seen.append(
        float(t)), callback_on_step_end_tensor_inputs=())
    pipe.scheduler.set_timesteps(7)
    order = getattr(pipe.scheduler, "order", 1)
    assert seen == [float(t) for t in pipe.scheduler.timesteps[4 * order:]]
    given = TorchGenerator(7)
    noise = given.randn((1, 4, 8, 8))
    a, b = (draw(pipe, small, strength=0.4, **more) for more in (
        {}, {"noise": noise, "generator": given}))
    assert np.array_equal(a, b) and a.shape == (1, 4, 8, 8)


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_every_upscaler(pipe, small, upscaler):
    found = pipe.upscaled(small, 64, 48, upscaler)
    assert found.shape == (1, 4, 8, 6)
    if upscaler in LATENT:
        assert np.array_equal(found, upscaled_latents(small, 8, 6, upscaler))
        return
    picture = Image.fromarray((pipe.to_output(small, "np")[0] * 255).astype("uint8"))
    kind = getattr(Image.Resampling, upscaler.upper())
    pixels = np.asarray(picture.resize((48, 64), kind), "f4").transpose(2, 0, 1)[None] / 255
    mean = pipe.vae.encode(pixels * 2 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    np.testing.assert_array_equal(found, mean)
    assert not np.array_equal(draw(pipe, small, upscaler=upscaler), draw(pipe, small))


def test_one_first_pass_for_several_pictures(model, small):
    """On the backend that has the same bits for any batch: NumPy's products have them not."""
    pipe = StableDiffusionHiresPipeline.from_pipe(
        StableDiffusionPipeline.from_pretrained(model, backend="numba"))
    found = draw(pipe, small, num_images_per_prompt=2, generator=[1, 2])
    assert found.shape == (2, 4, 8, 8)
    assert np.array_equal(found[1:], draw(pipe, small, generator=2))


@pytest.mark.parametrize("options, words", [
    ({"strength": 0}, "strength is 0; give a number above 0"),
    ({"strength": 1.5}, "strength is 1.5; give a number from 0 to 1"),
    ({"upscaler": "lanczoz"}, "upscaler is 'lanczoz'; did you mean lanczos"),
    ({"latents": None}, "latents is None; give those of a first pass"),
    ({"latents": np.zeros((1, 3, 4, 4))}, "latents has shape"),
    ({"noise": np.zeros((1, 4, 4, 4))}, "noise has shape"),
    ({"height": 60}, "height is 60; give a multiple of 8"),
    ({"num_inference_steps": 900, "strength": 0.5}, "num_inference_steps is 1800"),
    ({"image": 3}, "image"),
])
def test_what_cannot_be_asked(pipe, small, options, words):
    with pytest.raises(UsageError, match=words):
        draw(pipe, **{"small": small} | {{"latents": "small"}.get(name, name): value
                                        for name, value in options.items()})
