"""Planted mistakes, most of them made by the stand-in port, and the reason that must be found."""

import tracemalloc

import numpy as np
import pytest
from golden_port_ops import Ops

from refsd.golden.comparing.diagnose import Finding, diagnose, grid
from refsd.golden.comparing.layouts import to_layout
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import replay
from refsd.golden.tolerances.formats import round_to

RANDOM = np.random.default_rng(20)


def normal(*shape, scale=1.0):
    return (scale * RANDOM.standard_normal(shape)).astype("float32").astype("float64")


def entry(op, shape=(), options=None, inputs=(), name="unet/000/x"):
    return Entry(name, op, "unet", 0, tuple(shape), "float32", dict(options or {}),
                 dict.fromkeys(inputs), 0, "a.safetensors", "0" * 64, {})


def of(op, wrong, *, options=None, **inputs):
    """What is said of float32 numbers `wrong` where the op on these inputs was wanted."""
    about = entry(op, options=options, inputs=inputs)
    truth = replay(about, inputs)
    return diagnose(about, truth, np.asarray(wrong).astype("float32"), inputs=inputs)


def port(mistake=None):
    """The ops of the stand-in port in float64, with one of its mistakes."""
    ops = Ops(format="float64", mistake=mistake)
    ops.enter("")
    return ops


RIGHT = port()
X, W, B = normal(2, 8, 7, 6), normal(8, 8, 3, 3), normal(8)
CONV = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "algorithm": "auto"}


def plus(y, bias):
    return y + bias[:, None, None]


T = normal(2, 9, 8)  # tokens
L = normal(8, 8)
HALVES = normal(2, 9, 16)
Q, K, V = normal(2, 9, 8), normal(2, 9, 8), normal(2, 9, 8)


def outside(x, eps):
    """A group norm whose eps is added to the standard deviation."""
    rows = x.reshape(len(x), 4, -1)
    rows = (rows - rows.mean(axis=-1, keepdims=True)) / (rows.std(axis=-1, keepdims=True) + eps)
    return plus(rows.reshape(x.shape) * W[:, 0, 0, 0][:, None, None], B)


SMALL = normal(2, 8, 3, 3, scale=0.03)
SHARES = port("sigmoid").silu(X)
NORM = {"x": SMALL, "weight": W[:, 0, 0, 0], "bias": B}
GROUPS = {"groups": 4, "eps": 1e-5}
TIMES = np.array([981, 981])
TIME = {"dim": 32, "flip_sin_to_cos": True, "freq_shift": 0, "dtype": "float32"}
DDIM = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1,
        "set_alpha_to_one": False, "clip_sample": False, "prediction_type": "epsilon"}
STEP = {"scheduler": DDIM, "steps": 10, "index": 3, "eta": 0.0}
EPS = normal(2, 8, 7, 6)

XWB, TLB = {"x": X, "weight": W, "bias": B}, {"x": T, "weight": L, "bias": B}
QKV = {"q": Q, "k": K, "v": V}
ATTENTION = {"heads": 4, "mask": None, "causal": False}
SHIFTED = {"scaling_factor": 1.5305, "shift_factor": 0.5}
PAIR, GUIDE = {"uncond": X, "cond": EPS}, {"scale": 7.5, "rescale": 0.0}
ONE = ((0, 0), (0, 0), (1, 1), (1, 1))  # a pixel around each image

# reason, op, options, what a port has, the op's inputs
PLANTED = {
    "the bias of a convolution": ("missing_bias", "conv2d", CONV,
                                  port("conv_bias").conv(X, W, B, padding=1), XWB),
    "a true convolution": ("flipped_kernel", "conv2d", CONV,
                           port("flipped_kernel").conv(X, W, B, padding=1), XWB),
    "kernel columns first": ("transposed_weight", "conv2d", CONV,
                             RIGHT.conv(X, W.swapaxes(2, 3), B, padding=1), XWB),
    "channels of the weight": ("transposed_weight", "conv2d", CONV,
                               RIGHT.conv(X, W.swapaxes(0, 1), B, padding=1), XWB),
    "padding of a strided convolution": (
        "wrong_padding", "conv2d", {**CONV, "stride": 2, "padding": ((0, 1), (0, 1))},
        RIGHT.conv(np.pad(X[:, :, :6], ONE)[:, :, :-1, :-1], W, B, stride=2),
        XWB | {"x": X[:, :, :6]}),
    "padding by the edge": ("wrong_padding", "conv2d", CONV,
                            RIGHT.conv(np.pad(X, ONE, mode="edge"), W, B), XWB),
    "the bias of a linear layer": ("missing_bias", "linear", None,
                                   port("linear_bias").linear(T, L, B), TLB),
    "a transposed weight": ("transposed_weight", "linear", None,
                            port("linear_transposed").linear(T, L, B), TLB),
    "eps of a norm": ("wrong_eps", "group_norm", GROUPS,
                      RIGHT.group_norm(*NORM.values(), groups=4, eps=1e-6), NORM),
    "eps outside the root": ("wrong_eps", "group_norm", GROUPS, outside(SMALL, 1e-5), NORM),
    "n - 1": ("biased_variance", "group_norm", GROUPS,
              port("unbiased_variance").group_norm(*NORM.values(), **GROUPS), NORM),
    "groups": ("wrong_groups", "group_norm", GROUPS,
               RIGHT.group_norm(*NORM.values(), groups=8, eps=1e-5), NORM),
    "eps of a layer norm": ("wrong_eps", "layer_norm", {"eps": 1e-5},
                            RIGHT.layer_norm(SMALL[..., 0, 0], L[0], B, eps=1e-12),
                            {"x": SMALL[..., 0, 0], "weight": L[0], "bias": B}),
    "no silu": ("missing_silu", "silu", None, X, {"x": X}),
    "sigmoid": ("sigmoid", "silu", None, port("sigmoid").silu(X), {"x": X}),
    "tanh": ("gelu_tanh", "gelu", None, port("tanh_for_erf").gelu(X), {"x": X}),
    "erf": ("gelu_erf", "quick_gelu", None, port("erf_for_quick").quick_gelu(X), {"x": X}),
    "quick": ("quick_gelu", "gelu", None, RIGHT.quick_gelu(X), {"x": X}),
    "halves": ("geglu_swapped", "geglu", None, port("geglu_halves").geglu(HALVES), {"x": HALVES}),
    "tanh in geglu": ("gelu_tanh", "geglu", None, port("tanh_for_erf").geglu(HALVES),
                      {"x": HALVES}),
    "axis": ("softmax_axis", "softmax", {"axis": -1},
             np.exp(T) / np.exp(T).sum(axis=1, keepdims=True), {"x": T}),
    "scale": ("attention_scale", "attention", ATTENTION,
              port("attention_scale").attention(Q, K, V, heads=4), QKV),
    "no causal mask": ("missing_mask", "attention", {**ATTENTION, "causal": True},
                       RIGHT.attention(Q, K, V, heads=4), QKV),
    "softmax over queries": ("softmax_axis", "attention", ATTENTION,
                             port("softmax_axis").attention(Q, K, V, heads=4), QKV),
    "heads": ("head_order", "attention", ATTENTION,
              port("head_order").attention(Q, K, V, heads=4), QKV),
    "keys and values": ("swapped_inputs", "attention", ATTENTION,
                        RIGHT.attention(Q, V, K, heads=4), QKV),
    "residual": ("no_residual", "add", None, X, {"a": X, "b": EPS}),
    "skip order": ("swapped_inputs", "concat", {"axis": 1},
                   np.concatenate([EPS, X[:, :5]], axis=1), {"arrays": [X[:, :5], EPS]}),
    "ids from 1": ("off_by_one", "embedding", None, L[(np.arange(12).reshape(2, 6) + 1) % 8],
                   {"ids": np.arange(12).reshape(2, 6) % 8, "weight": L}),
    "sines first": ("sincos_order", "timestep_embedding", TIME,
                    port("sin_cos_order").timestep_embedding(TIMES, 32), {"timesteps": TIMES}),
    "time": ("wrong_timestep", "timestep_embedding", TIME,
             RIGHT.timestep_embedding(TIMES - 20, 32), {"timesteps": TIMES}),
    "half a pixel": ("half_pixel", "upsample_nearest", {"height": 14, "width": 12},
                     port("half_pixel").upsample(X, 14, 12), {"x": X}),
    "column by column": ("transposed", "to_tokens", None,
                         X.transpose(0, 3, 2, 1).reshape(2, 42, 8), {"x": X}),
    "guidance swapped": ("swapped_guidance", "guide", GUIDE,
                         port("guidance_swapped").guide(X, EPS, 7.5), PAIR),
    "guidance scale": ("guidance_scale", "guide", GUIDE,
                       port("guidance_scale").guide(X, EPS, 7.5), PAIR),
    "alpha_bar": ("wrong_timestep", "scheduler_step", STEP, X,
                  {"model_output": EPS, "sample": X, "noise": None}),
    "scaling factor": ("missing_scaling_factor", "unscale_latents", {"scaling_factor": 0.18215}, X,
                       {"latents": X}),
    "shift factor": ("missing_shift_factor", "unscale_latents", SHIFTED, X / 1.5305,
                     {"latents": X}),
    "shift factor, subtracted": ("missing_shift_factor", "unscale_latents", SHIFTED,
                                 X / 1.5305 - 0.5, {"latents": X}),
    "scaling factor beside a shift": ("missing_scaling_factor", "unscale_latents", SHIFTED, X,
                                      {"latents": X}),
    "bytes": ("truncated", "to_bytes", None, np.floor(255 * SHARES), {"x": SHARES}),
}


def in_tiles(x):
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -n % 32) for n in x.shape[-2:]])


def zeroed(x):
    x = x.copy()
    x[1, 2, 3, 4] = 0
    return x


ALONE = {
    "nhwc, dumped flat": ("nhwc", X, np.ascontiguousarray(X.transpose(0, 2, 3, 1)).reshape(
        X.shape)),
    "nhwc": ("nhwc", X, X.transpose(0, 2, 3, 1)),
    "packs of four": ("nc4hw4", X, to_layout(X, "NC4HW4")),
    "a matrix of pixels": ("nhwc", X, to_layout(X, "ROWS")),
    "tiles": ("tile_padding", X, to_layout(X, "TILE32")),
    "faces": ("tile_padding", T, to_layout(T, "FACE16")),
    "padding of tiles left in": ("tile_padding", T, in_tiles(T)),
    "transposed": ("transposed", L, L.T),
    "transposed, not square": ("transposed", T, T.swapaxes(1, 2)),
    "height and width": ("transposed", X[..., :6, :], X[..., :6, :].swapaxes(2, 3)),
    "a factor": ("scale", X, 1.5 * X),
    "the VAE's factor": ("missing_scaling_factor", X, 0.18215 * X),
    "the VAE's factor, inverse": ("missing_scaling_factor", X, X / 0.18215),
    "a constant": ("offset", X, X + 0.25),
    "a constant a channel": ("missing_bias", X, plus(X, B)),
    "signs": ("sign", X, -X),
    "one column to the right": ("off_by_one", X, np.concatenate(
        [np.zeros_like(X[..., :1]), X[..., :-1]], axis=-1)),
    "one row cropped": ("off_by_one", X, X[:, :, 1:]),
    "one column too many": ("off_by_one", X, np.concatenate([X, X[..., :1]], axis=-1)),
    "interleaved heads": ("head_order", T, T.reshape(2, 9, 4, 2).swapaxes(2, 3).reshape(T.shape)),
    "a NaN set to zero": ("nan_masked", X, zeroed(X)),
    "halves": ("swapped_inputs", X, np.concatenate([X[:, 4:], X[:, :4]], axis=1)),
    "samples": ("swapped_guidance", X, X[::-1]),
    "the batch twice": ("repeated_batch", X, np.concatenate([X, X])),
    "the batch three times": ("repeated_batch", T, np.concatenate([T, T, T])),
    "each sample twice": ("repeated_batch", X, np.repeat(X, 2, axis=0)),
    "a batch of one twice": ("repeated_batch", X[:1], np.concatenate([X[:1], X[:1]])),
    "a batch of one twice, tokens": ("repeated_batch", T[:1], np.concatenate([T[:1], T[:1]])),
    "one sample twice": ("repeated_batch", X, X[[1, 1]]),
    "the first sample alone": ("split_batch", X, X[:1]),
    "the second sample alone": ("split_batch", X, X[1:]),
    "a sample without its axis": ("split_batch", T, T[1]),
    "two columns too many": ("off_by_one", X, np.concatenate([X, X[..., :2]], axis=-1)),
    "five columns too many": ("padded", X, np.concatenate([X, X[..., :5]], axis=-1)),
    "fp16": ("fp16_rounding", X, X.astype("float16")),
    "bf16": ("bf16_rounding", X, round_to(X, "bfloat16")),
    "bf16, cut off": ("truncated", X, (X.astype("float32").view("uint32") & np.uint32(
        0xFFFF0000)).view("float32")),
}


ROUNDINGS = ("fp16", "bf16", "bf16, cut off")  # nothing is left of these below other errors


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("name", ALONE)
def test_the_plain_reason_is_named_through_a_ports_own_errors(name, noise):
    """A fit with more freedom always leaves a little less, and is not the better for it."""
    reason, golden, wrong = ALONE[name]
    noise = 0 if name in ROUNDINGS else noise
    random = np.random.default_rng(len(name))
    error = noise * wrong * random.standard_normal(wrong.shape)  # none where it is 0
    found = diagnose(entry("block", golden.shape), golden, (wrong + error).astype("float32"))
    assert is_hidden(wrong, golden, error) and not found or found[0].reason == reason, found


def test_half_of_a_batch_is_no_crop():
    """Two passes of one sample each, for guidance: which half it is, and what to do."""
    for k, half in enumerate(("first half", "second half")):
        found, = diagnose(entry("conv2d", X.shape), X, X[k:k + 1].astype("float32"))
        assert half in found.sentence and "--cfg-scale 1" in found.sentence
    # one of three is no half; of many rows, which are no samples, one less is a crop
    found, = diagnose(entry("conv2d", T.shape), np.concatenate([T, T[:1] + 1]), T[1:])
    assert found.sentence.startswith("it is sample 1 of the golden 3 alone: dump the whole")
    rows = np.concatenate([T[0], T[1]])
    found = diagnose(entry("embedding", rows.shape), rows, rows[1:])
    assert found[0].reason == "off_by_one"


def is_hidden(wrong, golden, error):
    """Less than nine tenths of the squared error are the mistake's, which a reason needs."""
    return wrong.shape == golden.shape and np.square(wrong - golden).sum() < 10 * np.square(
        error).sum()


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-4])
@pytest.mark.parametrize("name", PLANTED)
def test_with_the_inputs_through_a_ports_own_errors(name, noise):
    """The mistake is named, or it is no larger than the errors beside it."""
    reason, op, options, wrong, inputs = PLANTED[name]
    error = noise * np.random.default_rng(len(name)).standard_normal(np.shape(wrong))
    about = entry(op, options=options, inputs=inputs)
    truth = np.asarray(replay(about, inputs), "float64")
    found = diagnose(about, truth, (wrong + error).astype("float32"), inputs=inputs)
    assert is_hidden(wrong, truth, error) and not found or found[0].reason == reason, found
    # float32 rounding of the planted numbers is all that is left of the error
    assert noise or found[0].confidence > 0.999


def test_a_padding_is_shown_as_far_as_windows_reach():
    """Diffusers' (0, 1, 0, 1) before a convolution with stride 2: the second row is never read."""
    x, given = normal(1, 8, 8, 6), {"weight": W, "bias": B}
    wrong = port("padding").conv(x, W, B, stride=2, padding=1)
    found = of("conv2d", wrong, options={"stride": 2, "padding": 1}, x=x, **given)
    assert found[0].reason == "wrong_padding"
    assert "((0, 1), (0, 1)) (top, bottom and left, right)" in found[0].sentence


def test_the_step_before():
    found = diagnose(entry("conv2d", X.shape), X, EPS, previous=EPS)
    assert found[0] == Finding("stale", "it is the tensor of the step before", 1.0)


@pytest.mark.parametrize("key, value", [("prediction_type", "v_prediction"),
                                        ("prediction_type", "sample"),
                                        ("set_alpha_to_one", True)])
@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_an_exact_wrong_version_goes_before_one_that_is_fitted(key, value, format):
    """p x + q eps with both fitted leaves a hair less than any wrong version of a step does."""
    inputs = {"model_output": EPS, "sample": X, "noise": None}
    config = {**DDIM, key: value}
    index = 9 if key == "set_alpha_to_one" else 3
    options = {**STEP, "index": index}
    wrong = replay(entry("scheduler_step", options={**options, "scheduler": config},
                         inputs=inputs), inputs)
    found = of("scheduler_step", round_to(np.asarray(wrong, "float64"), format), options=options,
               **inputs)
    assert found[0].reason == key, found


@pytest.mark.parametrize("index", [0, 3, 6])
def test_an_exact_wrong_version_may_have_other_roundings_of_its_constants(index):
    """A fit takes up a port's own alpha_bar, off by some 1e-6; the exact version cannot."""
    inputs, options = {"model_output": EPS, "sample": X, "noise": None}, {**STEP, "index": index}
    config = {**DDIM, "prediction_type": "v_prediction", "beta_end": 0.012 * (1 + 3e-6)}
    wrong = replay(entry("scheduler_step", options={**options, "scheduler": config},
                         inputs=inputs), inputs)
    found = of("scheduler_step", wrong, options=options, **inputs)
    assert found[0].reason == "prediction_type", found


def test_what_was_left_out_before_an_op():
    about, made = entry("conv2d", options=CONV, inputs=("x", "weight", "bias")), entry("silu")
    given = {"x": RIGHT.silu(X), "weight": W, "bias": B}
    found = diagnose(about, replay(about, given), RIGHT.conv(X, W, B, padding=1), inputs=given,
                     upstream={"x": (made, {"x": X})})
    assert found[0].reason == "missing_silu" and found[0].sentence == "silu was left out before it"


@pytest.mark.parametrize("value, reason", [(np.nan, "nan"), (np.inf, "overflow")])
def test_a_number_that_is_none(value, reason):
    wrong = X.copy()
    wrong[1, 0, 0, 2] = value
    (found,) = diagnose(entry("add", X.shape), X, wrong)
    assert found.reason == reason and "in 1 place, the first at (1, 0, 0, 2)" in found.sentence


def test_infinities_of_the_other_sign_and_a_nan_that_became_a_number():
    golden, wrong = np.array([np.inf, np.nan, 1]), np.array([-np.inf, 0, 1])
    assert [f.reason for f in diagnose(entry("add", (3,)), golden, wrong)] == [
        "nan_masked", "inf_sign"]


def test_nothing_is_said_where_nothing_explains_it():
    assert diagnose(entry("conv2d", X.shape), X, normal(*X.shape)) == []
    assert diagnose(entry("conv2d", X.shape), X, X + normal(*X.shape, scale=0.1)) == []
    assert diagnose(entry("conv2d", X.shape), X, normal(5, 3)) == []
    assert diagnose(entry("conv2d", X.shape), X, X) == []


@pytest.mark.parametrize("name", PLANTED)
def test_noise_is_no_mistake(name):
    """Errors without a pattern: everywhere alike, in proportion, and in one element."""
    _, op, options, _, inputs = PLANTED[name]
    about = entry(op, options=options, inputs=inputs)
    truth = np.asarray(replay(about, inputs), "float64")
    noise = np.random.default_rng(len(name)).standard_normal(truth.shape)
    one = np.zeros_like(truth)
    one[tuple(n - 1 for n in truth.shape)] = 10
    for size in (1e-5, 1e-2, 1):
        for wrong in (truth + size * noise, truth * (1 + size * noise), truth + size * one):
            found = diagnose(about, truth, wrong.astype("float32"), inputs=inputs)
            assert found == [], (size, found)


def test_rounding_to_the_format_that_is_computed_in_is_no_finding():
    half = X.astype("float16")
    assert diagnose(entry("conv2d", X.shape), X, half, format="fp16") == []


@pytest.mark.parametrize("name", ["sigmoid", "scale", "the bias of a convolution", "halves"])
@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_a_mistake_in_a_short_format(name, format):
    """Mistakes larger than the rounding are named through it; smaller ones are not made up."""
    reason, op, options, wrong, inputs = PLANTED[name]
    found = of(op, round_to(wrong, format), options=options, **inputs)
    assert found[0].reason == reason


def test_guesses_are_tried_one_after_the_other():
    """Over 40 guesses for tokens with their inputs; a dozen arrays of the tensor's size at most."""
    x = normal(2, 512, 64)
    about, inputs = entry("geglu", inputs=("x",)), {"x": np.concatenate([x, x + 1], axis=-1)}
    truth = replay(about, inputs)
    tracemalloc.start()
    diagnose(about, truth, x, inputs=inputs)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 14 * x.nbytes


@pytest.mark.parametrize("x, name", [([1, 0.5], "bfloat16"), ([1 + 2**-10], "float16"),
                                     ([1 + 2**-20], "float32"), ([], "float32")])
def test_the_grid_of_numbers(x, name):
    assert grid(np.array(x)) == name


@pytest.mark.parametrize("kind", ["uint16", "int16"])
@pytest.mark.parametrize("name, ending", [("bfloat16", "bf16"), ("float16", "f16")])
def test_the_bits_of_16_bit_floats_saved_as_integers(kind, name, ending):
    truth = normal(2, 8).astype("float32")
    words = (truth.view("uint32") >> 16).astype("uint16") if ending == "bf16" else (
        truth.astype("float16").view("uint16"))
    found = diagnose(entry("linear", (2, 8)), truth, words.view(kind))[0]
    assert found.reason == "raw_bits" and found.confidence > 0.99
    assert f"bits of {name} numbers" in found.sentence and f".{ending} file" in found.sentence
    assert not any(f.reason == "raw_bits" for f in diagnose(entry("linear", (2, 8)), truth,
                                                            np.arange(16).reshape(2, 8)))


def test_a_tensor_that_was_never_written():
    x, w = normal(3, 8), normal(4, 8)
    for inputs in ({"x": x, "weight": w, "bias": normal(4)}, {"x": 0 * x, "weight": w,
                                                              "bias": normal(4)}):
        assert of("linear", np.zeros((3, 4)), **inputs)[0].reason == "zeros"
