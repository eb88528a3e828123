"""The arithmetic between the networks, with stand-ins for them: guidance, scaling, bytes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from model_samples import CLIPS, UNETS, VAES, tree, values

from refsd.errors import ModelError, UsageError
from refsd.leaf import Weight
from refsd.models import clip
from refsd.models.layers import Text
from refsd.pipelines import guidance, stages
from refsd.pipelines.autoencoder import VAE
from refsd.pipelines.components import TextEncoder, UNet
from refsd.random import TorchGenerator
from refsd.registry import watch
from refsd.schedulers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from refsd.weights import flatten


def constant_unet(sample, timestep, text, *, timestep_cond=None):
    """Predicts for each picture the first number of its text, times a number of its own."""
    ramp = np.arange(1, sample[0].size + 1, dtype=sample.dtype).reshape(sample[0].shape)
    states = text.states if isinstance(text, Text) else text
    return states[:, :1, :1, None] * ramp


constant_unet.time_cond_dim = None


def text(*numbers):
    return np.array(numbers, "float64").reshape(-1, 1, 1)


class Recorder:
    """A scheduler that keeps what it is given and passes the prediction on as the new latents."""

    timesteps = np.array([7, 3])

    def __init__(self):
        self.seen = []

    def scale_model_input(self, sample, timestep):
        return sample / 2

    def step(self, predicted, timestep, sample):
        self.seen.append((predicted, timestep, sample))
        return SimpleNamespace(prev_sample=predicted)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_leads_from_the_negative_text_to_the_text(scale):
    """eps(neg) + s (eps(text) - eps(neg)), for each picture its own pair."""
    latents, ramp = np.zeros((2, 1, 2, 2)), np.arange(1.0, 5.0).reshape(1, 2, 2)
    scheduler = Recorder()
    steps = list(stages.denoise(constant_unet, scheduler, latents, text(3, 5), text(1, 2),
                                guidance_scale=scale))
    wanted = np.array([1 + scale * (3 - 1), 2 + scale * (5 - 2)]).reshape(2, 1, 1, 1) * ramp
    assert np.array_equal(steps[0].latents, wanted)
    assert [step.timestep for step in steps] == [7, 3] and [s.index for s in steps] == [0, 1]
    assert scheduler.seen[0][2] is latents and scheduler.seen[1][2] is steps[0].latents


def test_without_a_negative_text_the_model_is_asked_once():
    latents = np.zeros((2, 1, 2, 2))
    steps = list(stages.denoise(constant_unet, Recorder(), latents, text(3, 5), guidance_scale=7.5))
    assert np.array_equal(steps[0].latents, constant_unet(latents, 7, text(3, 5)))


def test_the_model_sees_the_scaled_sample_and_the_scheduler_the_sample():
    seen = []

    def unet(sample, timestep, context, *, timestep_cond=None):
        seen.append(sample)
        return sample * 0

    unet.time_cond_dim = None
    scheduler, latents = Recorder(), values(1, 1, 4, 2, 2)
    list(stages.denoise(unet, scheduler, latents, text(1), text(2), guidance_scale=2))
    assert np.array_equal(seen[0], np.concatenate([latents / 2, latents / 2]))
    assert scheduler.seen[0][2] is latents


def test_a_caller_may_change_the_texts_between_steps():
    latents = np.zeros((1, 1, 1, 1))
    steps = stages.denoise(constant_unet, Recorder(), latents, text(3), text(1), guidance_scale=1)
    assert next(steps).latents.item() == 3
    assert steps.send({"prompt_embeds": text(9)}).latents.item() == 9


def test_the_model_sees_further_channels_and_what_control_says():
    """channels after those of x, once a text; control is asked with x and the text of the call."""
    seen = []

    def unet(sample, timestep, context, *, timestep_cond=None, more):
        seen.append((sample, more, context))
        return sample[:, :1] * 0

    def control(x, timestep, context, index):
        return {"more": (x.shape, timestep, index)}

    unet.time_cond_dim = None
    x, channels = values(1, 2, 1, 2, 2), values(2, 2, 3, 2, 2)
    predict = guidance.Guidance(unet, text(3, 5), text(1, 2), scale=2, channels=channels,
                                control=control)
    list(stages.denoise_with(predict, Recorder(), x, timesteps=[3]))
    sample, more, context = seen[0]
    assert np.array_equal(sample, np.concatenate([np.concatenate([x / 2, channels], 1)] * 2))
    assert more == ((4, 1, 2, 2), 3, 0) and context.states.ravel().tolist() == [1, 2, 3, 5]


def test_after_step_says_where_a_step_arrived():
    latents, scheduler = np.zeros((1, 1, 1, 1)), Recorder()
    predict = guidance.Guidance(constant_unet, text(3), scale=1)
    steps = stages.denoise_with(predict, scheduler, latents,
                                after_step=lambda latents, index: latents + 10 * (index + 1))
    assert [step.latents.item() for step in steps] == [13, 23]
    assert scheduler.seen[1][2].item() == 13


def leaves(tree):
    """The tree with its weights as leaves."""
    if isinstance(tree, dict):
        return {key: leaves(child) for key, child in tree.items()}
    return [leaves(child) for child in tree] if isinstance(tree, list) else Weight(tree)


@pytest.mark.parametrize("how", ["another array", "another dict", "in place", "thawed", "states"])
def test_changed_weights_and_texts_are_seen(how):
    """As a fresh call has it, whatever was replaced or written to between two calls."""
    found, config = tree("unet", UNETS["two levels"])
    sample, states = values(1, 2, 4, 4, 4), values(2, 2, 3, 10)
    if how.startswith("another"):
        found = leaves(found)
    if how == "thawed":
        for array in flatten(found).values():
            array.flags.writeable = False
    states.flags.writeable = how == "states"
    unet, text = UNet(found, config, "numpy"), Text(states)
    before = unet(sample, 5, text)
    attn = found["mid_block"]["attentions"][0]["transformer_blocks"][0]["attn2"]
    weight = attn["to_k"]["weight"]
    if how == "another array":
        attn["to_k"]["weight"] = 3 * weight
    elif how == "another dict":
        attn["to_k"] = {"weight": 3 * weight}
    elif how == "states":
        states *= 2
    else:
        weight.flags.writeable = True
        weight *= 3
        weight.flags.writeable = how == "in place"
    after = unet(sample, 5, text)
    assert np.array_equal(after, unet(sample, 5, states)) and not np.array_equal(after, before)


def test_what_layers_make_of_the_text_is_made_once():
    """Keys and values are those of a fresh call to the bit, and no step computes them again."""
    found, config = tree("unet", UNETS["two levels"])
    unet = UNet(leaves(found), config, "numpy")
    sample, states = values(1, 2, 4, 4, 4), values(2, 2, 3, 10)
    states.flags.writeable = False
    text, calls = Text(states), []

    def count(op, inputs, options, output):
        if op == "linear":
            calls.append(inputs["x"] is states)

    with watch(count):
        first = unet(sample, 5, text)
        made = sum(calls)
        again = unet(sample, 5, text)
    # One attention on the way down, one in the middle, two on the way up: keys and values each.
    assert made == 2 * 4 and sum(calls) == made
    alone = unet(sample, 5, states)
    assert np.array_equal(first, alone) and np.array_equal(again, alone)


def test_rescaling_takes_the_texts_deviation():
    """0, 3, 6 deviates by 3 and 0, 0, 9 by sqrt 27."""
    towards, guided = (np.array(x).reshape(1, 1, 1, 3) for x in ([0.0, 3, 6], [0.0, 0, 9]))
    ratio = 3 / math.sqrt(27)
    for share in (0.0, 0.7, 1.0):
        y = guidance.rescale(guided, towards, share)
        assert np.allclose(y, guided * (share * ratio + 1 - share), rtol=4e-16, atol=0)
    pair = np.concatenate([guided, 2 * guided]), np.concatenate([towards, towards])
    y = guidance.rescale(*pair, 1.0)
    assert np.allclose(y[0], y[1], rtol=4e-16, atol=0)  # each picture its own deviation


def test_rescaling_is_part_of_a_step():
    latents = np.zeros((1, 1, 2, 2))
    plain, rescaled = (next(stages.denoise(constant_unet, Recorder(), latents, text(3), text(1),
                                           guidance_scale=4, guidance_rescale=share)).latents
                       for share in (0, 1))
    # 1 + 4 (3 - 1) = 9 of the ramp, brought back to the deviation of 3 of it
    assert np.allclose(rescaled, plain / 3, rtol=1e-15, atol=0)


def test_the_guidance_of_distilled_models_is_a_sinusoid_of_1000_times_s_less_1():
    unet = SimpleNamespace(time_cond_dim=8, dtype="float64")
    y = guidance.guidance_condition(unet, 8.5, 2)
    assert y.shape == (2, 8)
    # 7500 1e-4^(i / 3); the float32 angle of 7500 is off by up to (3 ln 1e4 + 2) u of it
    angles = 7500 * 1e-4 ** (np.arange(4) / 3)
    slack = angles * (3 * math.log(1e4) + 2) * 2.0**-24 + 1e-7
    assert np.all(abs(y[0] - np.concatenate([np.sin(angles), np.cos(angles)])) <= np.tile(slack, 2))
    assert guidance.guidance_condition(SimpleNamespace(time_cond_dim=None), 8.5, 2) is None


def test_the_first_latents_are_noise_of_the_schedules_deviation():
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085,
                                       beta_end=0.012)
    stages.make_schedule(scheduler, 20)
    shape = (1, 4, 8, 8)
    y = stages.initial_latents(scheduler, shape, "float32", TorchGenerator(3))
    noise = TorchGenerator(3).randn(shape, "float32")
    assert np.array_equal(y, noise * float(scheduler.init_noise_sigma))
    assert 14.6 < scheduler.init_noise_sigma < 14.62


def test_the_schedule_is_the_schedulers():
    assert stages.make_schedule(DDIMScheduler(), 4).tolist() == [750, 500, 250, 0]


def test_a_shift_is_for_schedulers_that_take_one():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    shifted = stages.make_schedule(scheduler, 4, mu=1.0)
    own = stages.make_schedule(scheduler, None, sigmas=[1.0, 0.5], mu=1.0)
    assert (shifted[1:] > np.linspace(1000, 1, 4)[1:]).all() and own[1] > 500
    with pytest.raises(UsageError, match="mu of the caller's own are not for DDIMScheduler"):
        stages.make_schedule(DDIMScheduler(), 4, mu=1.0)


def test_pictures_are_unscaled_latents_decoded_and_cut_to_0_and_1():
    found, config = tree("vae", VAES["two levels"])
    vae, latents = VAE(found, config, "numpy"), values(1, 2, 4, 4, 6)
    y = stages.decode(vae, latents)
    raw = vae.decode(latents / config.scaling_factor)
    assert config.scaling_factor == 0.18215
    assert y.shape == (2, 8, 12, 3) and y.min() >= 0 and y.max() <= 1
    inside = abs(raw) < 1
    moved = y.transpose(0, 3, 1, 2)
    assert np.array_equal(moved[inside], (raw * 0.5 + 0.5)[inside])
    assert np.all(moved[raw >= 1] == 1) and np.all(moved[raw <= -1] == 0)


def test_a_vae_with_a_shift_decodes_shifted_latents():
    """As in Stable Diffusion 3; back again they are what they were, within the roundings.

    Of z below 4 and a shift of 0.5: two roundings on the way and two back, each at most half a unit
    of a number below 8, 2^-22, and the factor's 1.5 makes as much of the first two.
    """
    found, config = tree("vae", {**VAES["no quant convolutions"], "scaling_factor": 1.5,
                                 "shift_factor": 0.5})
    vae, latents = VAE(found, config, "numpy"), values(1, 2, 4, 4, 6)
    z = stages.for_vae(latents, config)
    assert np.array_equal(z, latents / np.float32(1.5) + np.float32(0.5)) and z.dtype == "float32"
    raw = vae.decode(z).transpose(0, 2, 3, 1)
    assert np.array_equal(stages.decode(vae, latents), np.clip(raw * 0.5 + 0.5, 0, 1))
    assert abs(z).max() < 4
    assert abs(stages.for_diffusion(z, config) - latents).max() <= 4 * 2**-22


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_latents_of_halves_are_shifted_in_float32(shift):
    config = SimpleNamespace(scaling_factor=1.5305, shift_factor=shift)
    z = values(1, 1, 4, 4, 6).astype("float16")
    wide = z.astype("float32")
    there, back = stages.for_vae(z, config), stages.for_diffusion(z, config)
    assert np.array_equal(there, (wide / np.float32(1.5305) + np.float32(shift)).astype("float16"))
    assert np.array_equal(back, ((wide - np.float32(shift)) * np.float32(1.5305)).astype("float16"))


def test_bytes_are_rounded_halves_to_even():
    y = stages.to_bytes(np.array([0, 0.5 / 255, 1.5 / 255, 0.7 / 255, 254.6 / 255, 1]))
    assert y.dtype == "uint8" and y.tolist() == [0, 0, 2, 1, 255, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_number_that_is_none_stops_with_the_stages_name(bad):
    array = np.zeros((2, 3))
    stages.require_finite(array, "decode")
    array[1, 2] = bad
    with pytest.raises(ModelError, match=r"decode: 1 of 6 numbers are NaN or infinite, the first "
                                         r"at \(1, 2\)"):
        stages.require_finite(array, "decode")


def test_clip_skip_counts_layers_from_the_end():
    found, config = tree("text_encoder", CLIPS["quick_gelu"])
    encoder, ids = TextEncoder(found, config, "numpy"), np.array([[1, 2, 39]])
    for skip, layers in ((None, 0), (0, 0), (1, 1), (2, 2)):
        y = stages.encode_text(encoder, ids, clip_skip=skip)
        truth = clip.clip_text(ids, **found, config=config, layers_skipped=layers)
        assert np.array_equal(y, truth)
    with pytest.raises(UsageError, match="clip_skip is 3; give an integer from 0 to 2"):
        encoder(ids, clip_skip=3)


def test_the_unet_takes_one_timestep_for_all_or_one_for_each():
    found, config = tree("unet", UNETS["two levels"])
    unet = UNet(found, config, "numpy")
    sample, context = values(1, 2, 4, 4, 4), values(2, 2, 3, 10)
    assert np.array_equal(unet(sample, 5, context), unet(sample, np.array([5, 5]), context))
    with pytest.raises(UsageError, match=r"timestep has shape \(3,\); give a number or one for"):
        unet(sample, np.array([1, 2, 3]), context)
