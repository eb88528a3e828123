"""Whole pictures by the kernels, thread by thread, and what is between the networks by them.

Kernels that compute whole tiles would take minutes of a picture of 8 x 8: here all are plain.
"""

import full_picture
import numpy as np
import plain_kernels
import pytest
import tiny
from op_table import normal

import refsd
from refsd.models.layers import Text
from refsd.numba_ops.cuda.array import copies, to_device
from refsd.pipelines import starts
from refsd.pipelines.composed import ComposedGuidance, composed
from refsd.pipelines.guidance import Guidance, guided
from refsd.pipelines.inpaint import blended
from refsd.pipelines.pix2pix import guided_twice
from refsd.pipelines.spoken import guidance_of
from refsd.random import TorchGenerator
from refsd.registry import use
from refsd.schedulers import SCHEDULERS

SHAPE, STEPS = (2, 4, 1, 3), 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")


def test_a_picture_is_what_the_reference_draws(folder, tmp_path, monkeypatch):
    """Every op's result, and every tensor of the run, within its derived tolerance."""
    plain_kernels.choose(monkeypatch)
    found = full_picture.judge(tmp_path, folder, side=8, steps=1)
    assert found.ok, found.first
    assert found.compared > 300


def test_a_step_that_is_replayed_has_the_bits_of_one_that_is_not(folder, monkeypatch):
    """By the kernels: what they leave in memory between the launches is of no matter."""
    plain_kernels.choose(monkeypatch)
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="cuda")
    states, inputs = to_device(normal((1, 3, 16), 1)), {
        t: to_device(normal((1, 4, 1, 2), t)) for t in (900, 500, 100)}
    text, moved = Text(states), []
    for t, x in inputs.items():
        replayed = pipe.unet(x, t, text)
        moved.append(dict(copies))
    assert moved[0] == moved[1] == moved[2]
    as_it_is = pipe.unet(x, t, states)
    np.testing.assert_array_equal(replayed.numpy(), as_it_is.numpy())


def sampled(scheduler, put, noise, dtype):
    """Latents of a run whose model predicts noise of its own, guided, and the copies of it."""
    scheduler.set_timesteps(STEPS)
    generator = Counting(3)
    x = put(noise[0].astype(dtype))
    predictions = [(put(a.astype(dtype)), put(b.astype(dtype))) for a, b in noise[1:]]
    before, steps = dict(copies), []
    for t, (away, towards) in zip(scheduler.timesteps, predictions):
        scaled = scheduler.scale_model_input(x, t)
        predicted = guided(away, towards, 3.0) + scaled * 0.25
        x = scheduler.step(predicted, t, x, generator=generator).prev_sample
        steps.append(x)
    return steps, {name: copies[name] - before[name] for name in before}, generator.draws


class Counting(TorchGenerator):
    draws = 0

    def randn(self, shape, dtype):
        self.draws += 1
        return super().randn(shape, dtype)


OPTIONS = [*((name, {}) for name in sorted(SCHEDULERS)),
           ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
           ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
           ("DEISMultistepScheduler", {"solver_order": 3}),
           ("UniPCMultistepScheduler", {"solver_order": 3})]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name, options", OPTIONS)
def test_every_sampler_steps_with_the_bits_of_the_host(name, options, dtype):
    """Each operator is one kernel that rounds once, as NumPy's does; noise alone is copied."""
    noise = [normal(SHAPE, 1, 9.0), *((normal(SHAPE, i), normal(SHAPE, 100 + i))
                                      for i in range(2, 30))]
    make = getattr(refsd.schedulers, name)
    expected, _, draws = sampled(make(**options), lambda x: x, noise, dtype)
    with use("cuda"):
        found, moved, _ = sampled(make(**options), to_device, noise, dtype)
    if name == "DPMSolverSDEScheduler":  # its noise is of a path with a seed, not of the generator
        draws = len(found) - 1
    assert moved == {"to_host": 0, "to_device": draws}
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a.numpy(), b)


def test_prompts_of_a_dialect_are_composed_with_the_bits_of_the_host(folder, monkeypatch):
    """The texts are made on the host and put beside the model; two pictures have two weights."""
    plain_kernels.choose(monkeypatch)
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="cuda")
    pipe.dialect = "a1111"
    *texts, make = guidance_of(pipe, ["red AND cat:2", "(cat:0.5) AND red:0.5"], ["red"], copies=1,
                               clip_skip=None, guided=True, steps=4)
    asked = []
    monkeypatch.setattr(ComposedGuidance, "ask", lambda *given: asked.append(
        Guidance.ask(*given)) or asked[0])
    with use("cuda"):
        got = make(pipe.unet, *texts, scale=7.0)(to_device(normal((2, 4, 1, 2), 1)), 500, 0)
    away, one, two = np.split(asked[0].numpy(), 3)
    weights = np.array([14, 3.5], "f4").reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(got.numpy(), composed(away, [one, two], [7.0, weights]))


def started(x, y, z, scheduler):
    """What drawing from pictures does between the networks."""
    scheduler.set_timesteps(STEPS)
    noisy = scheduler.add_noise(x, y, scheduler.timesteps[2])
    return (starts.repeated("image", x, 2 * len(x)), noisy,
            blended(x, y, z), guided_twice(x, y, z, 7.5, 1.5))


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_pictures_to_start_from_stay_on_the_device(name):
    """And have the bits of the host: each operation is a kernel by itself."""
    arrays, scheduler = [normal(SHAPE, i) for i in range(3)], SCHEDULERS[name]()
    with use("numpy"):
        expected = started(*arrays, scheduler)
    moved = [to_device(array) for array in arrays]
    with use("cuda"):
        before = dict(copies)
        found = started(*moved, scheduler)
        assert dict(copies) == before
    for a, b in zip(expected, found):
        np.testing.assert_array_equal(a, b.numpy())
