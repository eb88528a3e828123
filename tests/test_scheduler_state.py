"""A run that is saved after any step and goes on in another sampler has the bits of a whole one."""

import json

import numpy as np
import pytest
import scheduler_samples as samples

import refsd.schedulers
from refsd.errors import UsageError
from refsd.random import TorchGenerator
from refsd.schedulers.state import get_state, set_state

STEPS = 6
SHAPE = (2, 4, 4, 4)
# Options under which a class keeps other things than with its own.
OTHERS = {
    "DPMSolverMultistepScheduler": {"solver_order": 3, "use_karras_sigmas": True},
    "PNDMScheduler": {"skip_prk_steps": True},
}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CASES = [(name, {}) for name in samples.NAMES] + list(OTHERS.items()) + [
    ("UniPCMultistepScheduler", FLOW)]


def model(x, t):
    return (np.tanh(x) * (1 + t / 1000)).astype(x.dtype)


def run(scheduler, x, generator, begin, stop):
    for t in scheduler.timesteps[begin:stop]:
        out = model(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(out, t, x, generator=generator).prev_sample
    return x


def started(name, options):
    return samples.make(refsd.schedulers, name, STEPS, **options)


def through_json(scheduler):
    values, arrays = get_state(scheduler)
    kept = {key: array.copy() for key, array in arrays.items()}
    return json.loads(json.dumps(values, allow_nan=False)), kept


@pytest.mark.parametrize("name, options", CASES)
def test_every_sampler_goes_on_where_it_was(name, options):
    noise = TorchGenerator(1).randn(SHAPE)
    whole = started(name, options)
    total = len(whole.timesteps)
    expected = run(whole, noise, TorchGenerator(2), 0, total)
    for cut in range(1, total):
        first, generator = started(name, options), TorchGenerator(2)
        x = run(first, noise, generator, 0, cut)
        second = started(name, options)
        set_state(second, *through_json(first))
        generator = TorchGenerator(0).set_state(generator.get_state())
        np.testing.assert_array_equal(run(second, x, generator, cut, total), expected)


def test_a_state_of_another_sampler_is_refused():
    state = through_json(started("PNDMScheduler", {}))
    with pytest.raises(UsageError, match="the state is not one of DDIMScheduler: .*give one that"):
        set_state(started("DDIMScheduler", {}), *state)


def test_what_cannot_be_kept_is_said():
    """To whoever writes a sampler: the test above asks every one."""
    scheduler = started("DDIMScheduler", {})
    scheduler.noise = iter([])
    with pytest.raises(TypeError, match="noise is a list_iterator; a sampler's attributes are"):
        get_state(scheduler)


def test_lists_tuples_and_dicts_come_back_as_they_were():
    scheduler = started("DDIMScheduler", {})
    scheduler.kept = ({3: np.float32(0.5)}, [None, (True, "x", 1.5, float("-inf"))])
    other = started("DDIMScheduler", {})
    other.kept = None
    set_state(other, *through_json(scheduler))
    assert other.kept == scheduler.kept and other.kept[0][3].dtype == np.float32


def test_arrays_of_a_device_go_back_to_one():
    class OnDevice:
        dtype, on_device = np.dtype("float32"), True

        def numpy(self):
            return np.ones(3, "float32")

    scheduler, other = started("DDIMScheduler", {}), started("DDIMScheduler", {})
    scheduler.kept, other.kept = [OnDevice()], []
    placed = object()
    set_state(other, *through_json(scheduler), put=lambda array: placed)
    assert other.kept == [placed]
