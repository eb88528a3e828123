"""What callers hand in, over the whole class of each kind: numbers, arrays, callbacks, words."""

import json
import logging
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import tiny
from model_samples import CLIPS, UNETS, VAES, tree, values

import refsd.schedulers
from refsd.arguments import as_array, as_integer, as_number, dtype_name
from refsd.errors import UsageError
from refsd.golden.recording.request import Request
from refsd.half import HALVES, to_float32, to_half
from refsd.pipelines import from_diffusers
from refsd.pipelines.autoencoder import VAE
from refsd.pipelines.components import TextEncoder, UNet
from refsd.pipelines.generators import as_generators
from refsd.pipelines.prompts import literal
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.random import PhiloxGenerator, TorchGenerator
from refsd.random.by_name import NumPyGenerator

INTEGERS = [int, *(getattr(np, f"{u}int{n}") for u in ("", "u") for n in (8, 16, 32, 64))]
FLOATS = [float, np.float16, np.float32, np.float64, np.longdouble]
SCALARS = [*INTEGERS, *FLOATS, np.array, lambda n: np.array(n, ">f8"),
           lambda n: np.array(n, object), Decimal, Fraction]
NO_NUMBERS = [True, np.True_, np.array(True), "3", np.str_("3"), np.array("3"), b"3", 3j,
              np.complex64(3), np.ma.masked, np.ma.array(3), [3],
              np.array([3]), np.timedelta64(3, "s"), None, {}, object]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")
    return StableDiffusionPipeline.from_pretrained(folder, backend="numpy")


@pytest.fixture
def draw(pipe, monkeypatch, caplog):
    """Latents of the tiny model, with DDIM and one step; what was said is in caplog."""
    monkeypatch.setattr(pipe, "_said", set())
    caplog.set_level(logging.WARNING, "refsd")

    def call(**options):
        defaults = {"prompt": "a red cat", "num_inference_steps": 1, "generator": 3}
        if "prompt_embeds" in options:
            del defaults["prompt"]
        return pipe(**defaults | {"output_type": "latent"} | options).images

    return call


@pytest.mark.parametrize("kind", SCALARS, ids=lambda kind: getattr(kind, "__name__", "?"))
def test_every_kind_of_scalar_is_a_number(kind):
    assert type(as_number(kind(3))) in (int, float) and as_number(kind(3)) == 3
    assert type(as_integer(kind(3))) is int
    if kind in INTEGERS:
        assert type(as_number(kind(3))) is int


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=repr)
def test_what_is_no_number(bad):
    assert as_number(bad) is None and as_integer(bad) is None


def test_only_whole_floats_are_integers():
    assert as_integer(20.0) == 20
    assert [as_integer(x) for x in (20.5, np.inf, np.nan)] == [None] * 3
    assert as_integer(10**400) == 10**400  # no float is asked on the way


# Every number of a call, with a value that changes the latents.
NUMBERS = [("num_inference_steps", 2), ("height", 40), ("width", 40), ("num_images_per_prompt", 2),
           ("guidance_scale", 3), ("guidance_rescale", 1), ("eta", 1), ("clip_skip", 1)]


@pytest.mark.parametrize("name, value", NUMBERS)
def test_every_number_of_a_call_in_every_kind(draw, name, value):
    expected = draw(**{name: value})
    assert expected.dtype == np.float32 and not np.array_equal(expected, draw())
    for kind in SCALARS:
        assert np.array_equal(draw(**{name: kind(value)}), expected), kind
    for bad in NO_NUMBERS:
        if bad is not None or name not in ("height", "width", "clip_skip"):
            with pytest.raises(UsageError, match=f"^{name} is "):
                draw(**{name: bad})


@pytest.mark.parametrize("make", [TorchGenerator, PhiloxGenerator, NumPyGenerator])
def test_every_kind_of_integer_is_a_seed(make):
    for kind in (*INTEGERS, np.array):
        found = as_generators(kind(7), make, 1)
        assert found.seed == 7 and type(found.seed) is int
        several = as_generators([kind(7), kind(8)], make, 2)
        assert [one.seed for one in several] == [7, 8]
    assert [one.seed for one in as_generators(np.arange(3), make, 3)] == [0, 1, 2]
    for bad in (7.0, np.float32(7), True, "7", b"7", 7j, np.random.default_rng(0), np.random,
                TorchGenerator, np.ma.masked, np.random.RandomState(0)):
        with pytest.raises(UsageError, match="^generator is .*give an integer seed"):
            as_generators(bad, make, 1)


def test_the_seed_of_an_output_is_an_int(pipe):
    found = pipe("a", num_inference_steps=1, generator=np.uint64(2**63), output_type="latent")
    assert found.seed == 2**63 and type(found.seed) is int


# Every number of the schedulers, of which each makes a step of its own.
SCHEDULER_NUMBERS = [
    ("DDIM", {"eta": 1}, {}), ("EulerDiscrete", {"s_churn": 1, "s_noise": 1, "s_tmin": 0,
                                                 "s_tmax": 99}, {}),
    ("LCM", {}, {"original_inference_steps": 40, "strength": 1}), ("DDPM", {}, {}),
    ("DPMSolverMultistep", {}, {}), ("EulerAncestralDiscrete", {}, {}),
    ("PNDM", {}, {}),
]  # fmt: skip


class Halving(TorchGenerator):
    """Noise of a half as float32."""

    def __init__(self, seed, dtype):
        super().__init__(seed)
        self.dtype = dtype

    def randn(self, shape, dtype):
        assert dtype == "float32"
        return to_float32(super().randn(shape, self.dtype))


def stepped(name, options, timesteps, x, scalar=lambda n: n, steps=4, dtype=None):
    scheduler = getattr(refsd.schedulers, f"{name}Scheduler")()
    scheduler.set_timesteps(scalar(steps), **{k: scalar(v) for k, v in timesteps.items()})
    t = scheduler.timesteps[0].item()
    seen = scheduler.scale_model_input(x, t)
    options = {k: scalar(v) for k, v in options.items()}
    if name not in ("PNDM", "DPMSolverMultistep"):
        options["generator"] = TorchGenerator(1) if dtype is None else Halving(1, dtype)
    found = scheduler.step(x, scalar(t) if name not in ("EulerDiscrete", "EulerAncestralDiscrete")
                           else np.float32(t), x, **options).prev_sample
    return seen, found, scheduler.add_noise(x, x, np.atleast_1d(t))


@pytest.mark.parametrize("name, options, timesteps", SCHEDULER_NUMBERS)
def test_every_number_and_array_of_a_scheduler(name, options, timesteps):
    x = values(0, 1, 2, 4, 4)
    expected = stepped(name, options, timesteps, x)
    for scalar in (np.int64, np.float64, np.float32, np.array, Fraction):
        found = stepped(name, options, timesteps, x, scalar)
        assert all(np.array_equal(a, b) and a.dtype == np.float32
                   for a, b in zip(found, expected)), scalar
    for kind, given in (*arrays_of(x), ("tensor", Tensor(x, "torch.float32"))):
        if getattr(given, "dtype", "") == "torch.bfloat16":
            given = Tensor(to_float32(to_half(x, "bfloat16")))
            assert all(a.dtype == HALVES["bfloat16"]
                       for a in stepped(name, options, timesteps, given))
            continue
        found = stepped(name, options, timesteps, given)
        if kind in ("float64", "lists"):  # computed in float64, so other roundings
            assert found[1].dtype == np.float64
        else:
            assert all(np.array_equal(a, b) for a, b in zip(found, expected)), kind
            assert found[1].dtype == np.float32
    for dtype, kind in HALVES.items():
        half = to_half(x, dtype)
        found = stepped(name, options, timesteps, half)
        assert all(array.dtype == kind for array in found)
        wide = stepped(name, options, timesteps, to_float32(half), dtype=dtype)
        for a, b in zip(found, wide):  # as of float32 with the half's noise, rounded once
            np.testing.assert_array_equal(to_float32(a), to_float32(to_half(b, dtype)))


class Tensor:
    """A stand-in for torch's tensor with gradients and a type that NumPy lacks."""

    def __init__(self, array, dtype="torch.bfloat16", detached=False):
        self.array, self.dtype, self.shape, self.detached = array, dtype, array.shape, detached

    def detach(self):
        return Tensor(self.array, self.dtype, True)

    def float(self):
        return Tensor(self.array.astype("float32"), "torch.float32", self.detached)

    def __array__(self, dtype=None, copy=None):
        if not self.detached or self.dtype != "torch.float32":
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return self.array


class Subclass(np.ndarray):
    pass


def arrays_of(x):
    """The same float32 numbers, which float16 holds too, as callers have them."""
    read_only = x.copy()
    read_only.flags.writeable = False
    return [
        ("float64", x.astype("float64")), ("byte-swapped", x.astype(">f4")),
        ("Fortran", np.asfortranarray(x)), ("strided", np.repeat(x, 2, -1)[..., ::2]),
        ("negative strides", x[..., ::-1].copy()[..., ::-1]), ("read-only", read_only),
        ("subclass", x.view(Subclass)), ("tensor", Tensor(x)),
        ("lists", x.astype("float64").tolist()),
    ]  # fmt: skip


def exact(seed, *shape):
    """Numbers of few bits, which every float type holds."""
    return np.round(values(seed, *shape) * 8).astype("float32") / 8


TEXTS = exact(1, 1, tiny.LENGTH, 16)
ARRAYS = [
    ("latents", exact(2, 1, 4, 4, 4)),
    ("prompt_embeds", TEXTS),
    ("negative_prompt_embeds", TEXTS + 1),
]  # fmt: skip


@pytest.mark.parametrize("name, x", ARRAYS, ids=[row[0] for row in ARRAYS])
def test_every_array_of_a_call_in_every_kind(draw, name, x):
    expected = draw(**{name: x})
    for kind, given in (*arrays_of(x), ("float16", x.astype("float16"))):
        found = draw(**{name: given})
        assert found.dtype == np.float32 and np.array_equal(found, expected), kind
    wrong = x[..., :-1] if name != "latents" else x[:, :3]
    with pytest.raises(UsageError, match=f"^{name} has shape "):
        draw(**{name: wrong})
    for bad in (x > 0, x.astype(complex), x.astype(str), "text", object(), [[1], [1, 2]],
                np.ma.masked_array(x, x > 0)):
        with pytest.raises(UsageError, match=f"^{name}"):
            draw(**{name: bad})
    with pytest.raises(UsageError, match=f"^{name}: .* NaN or infinite.*float32"):
        draw(**{name: np.full(x.shape, 1e300)})


@pytest.mark.parametrize("name, x", ARRAYS, ids=[row[0] for row in ARRAYS])
def test_every_array_from_a_callback_in_every_kind(draw, name, x):
    def answer(value):
        return lambda pipe, step, timestep, tensors: {name: value}

    expected = draw(callback_on_step_end=answer(x), num_inference_steps=2)
    assert not np.array_equal(expected, draw(num_inference_steps=2))
    for kind, given in arrays_of(x):
        found = draw(callback_on_step_end=answer(given), num_inference_steps=2)
        assert np.array_equal(found, expected), kind
    for bad in (x[..., :-1], x > 0, None, 1, np.full(x.shape, np.nan)):
        with pytest.raises(UsageError, match=f"^{name} from callback_on_step_end"):
            draw(callback_on_step_end=answer(bad))


def test_every_array_of_the_parts_in_every_kind():
    unet, vae = UNet(*tree("unet", UNETS["two levels"]), "numpy"), VAE(
        *tree("vae", VAES["two levels"]), "numpy")
    encoder = TextEncoder(*tree("text_encoder", CLIPS["quick_gelu"]), "numpy")
    sample, text = exact(1, 2, 4, 4, 4), exact(2, 2, 3, 10)
    image = exact(3, 1, 3, 8, 8)
    expected = unet(sample, 5, text), vae.decode(sample), vae.encode(image).mean
    for (kind, x), (_, y), (_, z) in zip(*map(arrays_of, (sample, text, image))):
        found = unet(x, np.array([5], "f4"), y), vae.decode(x), vae.encode(z).mean
        assert all(np.array_equal(a, b) for a, b in zip(found, expected)), kind
    ids = np.array([[1, 2, 39]])
    states = encoder(ids).last_hidden_state
    for given in (ids.tolist(), ids.astype(">i8"), ids.astype("u1"), ids.astype("i2").T.copy().T):
        assert np.array_equal(encoder(given).last_hidden_state, states)


@pytest.mark.parametrize("part, args, message", [
    ("unet", (np.zeros((1, 3, 4, 4)), 5, np.zeros((1, 3, 10))), r"unet: sample has .*\(N, 4, h, w"),
    ("unet", (np.zeros((1, 4, 4, 4)), 5, np.zeros((1, 3, 9))), "unet: encoder_hidden_states has"),
    ("unet", (np.zeros((2, 4, 4, 4)), 5, np.zeros((1, 3, 10))), r"give \(2, L, 10\)"),
    ("unet", (np.zeros((1, 4, 4, 4)), True, np.zeros((1, 3, 10))), "unet: timestep holds bool"),
    ("encode", (np.zeros((8, 8, 3), np.uint8),), "vae.encode: image holds uint8.*127.5 - 1"),
    ("encode", (np.zeros((1, 8, 8, 3)),), r"give \(N, 3, H, W\)"),
    ("decode", (np.zeros((4, 4, 4)),), r"vae.decode: latents has shape \(4, 4, 4\); give \(N, 4"),
])
def test_the_parts_name_what_is_wrong(part, args, message):
    call = {"unet": UNet(*tree("unet", UNETS["two levels"]), "numpy")} if part == "unet" else {
        name: getattr(VAE(*tree("vae", VAES["two levels"]), "numpy"), name)
        for name in ("encode", "decode")}
    with pytest.raises(UsageError, match=message):
        call[part](*args)


def test_arrays_that_fit_are_not_copied_and_foreign_ones_stay():
    x = np.zeros(3, "float32")
    assert as_array("x", x, "float32") is x and as_array("x", x) is x

    class OfADevice:
        shape, dtype = (3,), np.dtype("float32")

    device = OfADevice()
    assert as_array("x", device, "float32") is device


def test_names_of_dtypes():
    class Torch:
        def __str__(self):
            return "torch.float32"

    for one in ("float32", np.float32, np.dtype("float32"), np.dtype(">f4"), Torch()):
        assert dtype_name(one) == "float32"


@pytest.mark.parametrize("prompt", ["a", ("a",), ["a"], np.str_("a"), np.array("a"),
                                    np.array(["a"]), np.array(["a"], object)], ids=repr)
def test_every_kind_of_prompt(draw, prompt):
    assert np.array_equal(draw(prompt=prompt), draw(prompt="a"))
    assert np.array_equal(draw(negative_prompt=prompt), draw(negative_prompt="a"))


@pytest.mark.parametrize("bad", [[], (), b"a", 3, ["a", 3], {"a": 1}, np.array([1]), [["a"]]],
                         ids=repr)
def test_what_is_no_prompt(draw, bad):
    for name in ("prompt", "negative_prompt"):
        with pytest.raises(UsageError, match=f"^{name}"):
            draw(**{name: bad})


def test_what_callbacks_return(draw):
    for said, message in (({"latent": 1}, "has no tensor 'latent'; did you mean latents"),
                          (3, "returned a int; return a dict"), ([], "returned a list")):
        with pytest.raises(UsageError, match=message):
            draw(callback_on_step_end=lambda *a, said=said: said)
    with pytest.raises(UsageError, match="callback_on_step_end is a int"):
        draw(callback_on_step_end=3)
    with pytest.raises(UsageError, match="no argument 'latent'; did you mean latents"):
        draw(callback_on_step_end_tensor_inputs=["latent"])
    with pytest.raises(UsageError, match="^callback_on_step_end_tensor_inputs is 5; give a list"):
        draw(callback_on_step_end_tensor_inputs=5)
    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    for told in (names, tuple(names), names[0], [], None):
        same = draw(callback_on_step_end=lambda *a: a[3], callback_on_step_end_tensor_inputs=told)
        assert np.array_equal(same, draw())


def test_texts_that_a_callback_gets_cannot_be_changed_unseen(draw):
    def change(pipe, step, timestep, tensors):
        tensors["prompt_embeds"] *= 2

    with pytest.raises(ValueError, match="read-only"):
        draw(callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_stops_with_the_picture_so_far(draw):
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = step == 1

    found = draw(num_inference_steps=4, callback_on_step_end=stop)
    assert len(seen) == 2 and np.array_equal(found, seen[-1])
    assert len(draw(num_inference_steps=4)) and len(seen) == 2  # the next call starts anew


def test_guidance_that_a_callback_turns_off(draw, pipe):
    """As a call without guidance from those latents on."""
    calls = []

    def cut(pipe, step, timestep, tensors):
        pipe._guidance_scale = 0.0

    real = pipe.unet.__class__.__call__

    class Counting(UNet):
        def __call__(self, sample, *args, **options):
            calls.append(len(sample))
            return real(self, sample, *args, **options)

    unet = pipe.unet
    pipe.unet = Counting(unet.tree, unet.config, "numpy")
    try:
        draw(num_inference_steps=3, callback_on_step_end=cut)
    finally:
        pipe.unet = unet
    assert calls == [2, 1, 1]


def test_new_weights_between_two_steps_are_seen(draw, pipe):
    """As if the callback had also given the text again, which makes keys and values anew."""
    attn = pipe.unet.tree["down_blocks"][0]["attentions"][0]["transformer_blocks"][0]["attn2"]
    old = attn["to_v"]["weight"]

    def swap(again):
        def callback(pipe, step, timestep, tensors):
            attn["to_v"]["weight"] = 3 * old
            return {"prompt_embeds": tensors["prompt_embeds"].copy()} if again else {}
        return callback

    found = []
    for again in (False, True):
        found.append(draw(num_inference_steps=2, callback_on_step_end=swap(again),
                          callback_on_step_end_tensor_inputs=["prompt_embeds"]))
        attn["to_v"]["weight"] = old
    assert np.array_equal(*found) and not np.array_equal(found[0], draw(num_inference_steps=2))


@pytest.mark.parametrize("name", sorted(refsd.schedulers.SCHEDULERS))
@pytest.mark.parametrize("own, numbers", [("timesteps", [900, 500, 3]), ("sigmas", [9.0, 2, 0])])
def test_own_timesteps_and_sigmas(pipe, monkeypatch, name, own, numbers):
    takers = {"timesteps": ("DDPM", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete",
                            "HeunDiscrete", "LCM", "TCD", "FlowMatchEulerDiscrete"),
              "sigmas": ("EulerDiscrete", "FlowMatchEulerDiscrete")}
    if (name, own) == ("FlowMatchEulerDiscreteScheduler", "sigmas"):
        numbers = [0.9, 0.5]  # shares of the noise, to which a last one is added
    monkeypatch.setattr(pipe, "scheduler", getattr(refsd.schedulers, name)())
    request = {"prompt": "a", "generator": 1, "output_type": "latent", own: numbers}
    if name.removesuffix("Scheduler") not in takers[own]:
        with pytest.raises(UsageError, match=f"{own} of the caller's own are not for {name}; "):
            pipe(**request)
        return
    seen = []
    pipe(**request, callback_on_step_end=lambda p, i, t, k: seen.append(float(t)))
    steps, order = 3 if own == "timesteps" else 2, pipe.scheduler.order
    assert len(seen) == pipe.num_timesteps == order * steps - (order - 1)
    once = list(dict.fromkeys(seen))  # Heun calls the model twice at each timestep but the first
    assert len(once) == steps and (own == "sigmas" or once == numbers)
    pipe(**request | {own: np.array(numbers)}, num_inference_steps=None)
    with pytest.raises(UsageError, match="give one of them"):
        pipe(**request | {"timesteps": [3], "sigmas": [1, 0]})


IDLE = [
    ({"eta": 0.5}, "EulerDiscrete", "eta changes nothing: EulerDiscreteScheduler takes none"),
    ({"guidance_rescale": 0.5, "guidance_scale": 1}, "DDIM", "guidance_rescale changes nothing"),
    ({"negative_prompt": "x", "guidance_scale": 0.5}, "DDIM", "negative_prompt changes nothing"),
    ({"negative_prompt_embeds": TEXTS, "guidance_scale": 1}, "DDIM", "negative_prompt changes"),
    ({"prompt_embeds": TEXTS, "clip_skip": 1}, "DDIM", "clip_skip changes nothing"),
]  # fmt: skip


@pytest.mark.parametrize("options, sampler, line", IDLE, ids=[row[2][:20] for row in IDLE])
def test_options_without_effect_are_said_once(draw, pipe, monkeypatch, caplog, options, sampler,
                                              line):
    kind = getattr(refsd.schedulers, f"{sampler}Scheduler")
    monkeypatch.setattr(pipe, "scheduler", kind(beta_schedule="scaled_linear"))
    for _ in range(2):
        draw(**options)
    assert sum(line in said for said in caplog.messages) == 1


def test_options_with_an_effect_are_not_warned_of(draw, pipe, caplog):
    draw(eta=0.5, guidance_rescale=0.5, negative_prompt="x", clip_skip=1)
    draw(negative_prompt="", guidance_scale=1)
    assert caplog.messages == []


@pytest.mark.parametrize("text, found", [
    ("a (word:1.2)", "(word:1.2)"), ("(a, b :0.9) c", "(a, b :0.9)"), ("(cat:2)", "(cat:2)"),
    ("[cat:dog:0.5]", "[cat:dog:0.5]"), ("<lora:name:1>", "<lora:name:1>"),
    ("<lyco:x:0.4>", "<lyco:x:0.4>"), (r"\(word:1.2\)", None), ("(16:9)", None), ("(a)", None),
    ("((a))", None), ("[a]", None), ("a: 1.2", None), ("at 12:30", None), ("<b>", None),
    ("(ratio 16:9)", None), ("[a, b: c]", None), ("[cat:0.5]", "[cat:0.5]"),
    ("[cat::5]", "[cat::5]"), ("[cow|horse]", "[cow|horse]"), ("a {red|blue} fox", "{red|blue}"),
    ("a fox BREAK a hen", "BREAK"), ("a fox AND a hen", "AND"), ("CATS AND DOGS", None),
    ("embedding:bad-hands.pt", "embedding:bad-hands.pt"), (r"\[a|b]", None), ("a|b", None),
    ("a fox and a hen", None), ("{a}", None), ("AND", None), ("a BREAKFAST", None),
])
def test_syntax_of_other_tools(text, found):
    assert [piece for piece, _ in literal(text)] == ([found] if found else [])


def test_syntax_of_other_tools_is_said_once(draw, caplog):
    for word in ("cat", "dog"):
        draw(prompt=f"({word}:1.2)")
    assert [said for said in caplog.messages if "literally" in said] == [
        "'(cat:1.2)': a weight in the prompt is taken literally, it weighs nothing; --compat a1111 "
        "reads it"]


@pytest.mark.parametrize("name", sorted(from_diffusers.LOADING))
def test_every_keyword_of_diffusers_loading_is_answered_by_name(name):
    harmless, _ = from_diffusers.LOADING[name]
    if from_diffusers.ANY not in harmless:
        with pytest.raises(UsageError, match=f"^from_pretrained: {name}='x' has no meaning here; "):
            StableDiffusionPipeline.from_pretrained("nowhere", **{name: "x"})
    with pytest.raises(UsageError, match="'no/where/at-all' is neither"):  # keywords passed
        value = None if from_diffusers.ANY in harmless else harmless[0]
        StableDiffusionPipeline.from_pretrained("no/where/at-all", **{name: value})


@pytest.mark.parametrize("name", sorted(from_diffusers.CALLING))
def test_every_keyword_of_diffusers_calls_is_answered_by_name(draw, name):
    with pytest.raises(UsageError, match=f"^StableDiffusionPipeline: {name}='x' has no meaning"):
        draw(**{name: "x"})
    draw(**{name: from_diffusers.CALLING[name][0][0]})


def test_unknown_keywords_are_suggested():
    with pytest.raises(UsageError, match="no argument 'revison'; did you mean revision"):
        StableDiffusionPipeline.from_pretrained("nowhere", revison="x")
    with pytest.raises(UsageError, match="exclude each other"):
        StableDiffusionPipeline.from_pretrained(download=True, local_files_only=True)
    for name in ("dtype", "torch_dtype"):
        with pytest.raises(UsageError, match=f"{name} is 'fp16'; did you mean float16. give one "
                                             "of bfloat16, float16, float32, float64"):
            StableDiffusionPipeline.from_pretrained(**{name: "fp16"})


def test_methods_of_diffusers(pipe, caplog, monkeypatch):
    monkeypatch.setattr(pipe, "_said", set())
    for name, why in from_diffusers.ALREADY.items():
        getattr(pipe, name)()
        getattr(pipe, name)("auto", disable=True)
        assert sum(name in said for said in caplog.messages) == bool(why)
    for name in from_diffusers.INSTEAD:
        assert not hasattr(pipe, name)
        with pytest.raises(UsageError, match=f"^{name}: "):
            getattr(pipe, name)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        pipe.colour  # noqa: B018
    assert pipe.to("cpu") is pipe and pipe.to(dtype=np.float32) is pipe
    assert pipe.to("cpu:0", "float32") is pipe
    for wanted in ("cuda", "cuda:1", "mps", np.float16, "float64", 0):
        with pytest.raises(UsageError, match="^to: "):
            pipe.to(wanted)


def test_a_tuple_where_one_is_wanted(pipe, draw):
    images, nsfw = pipe("a red cat", num_inference_steps=1, generator=3, output_type="latent",
                        return_dict=False)
    assert np.array_equal(images, draw()) and nsfw is None


def test_latents_decide_the_size(draw):
    assert draw(latents=np.zeros((1, 4, 5, 6))).shape == (1, 4, 5, 6)
    with pytest.raises(UsageError, match=r"latents has shape \(1, 4, 5, 6\); give \(1, 4, 4, 6\)"):
        draw(latents=np.zeros((1, 4, 5, 6)), height=32)
    with pytest.raises(UsageError, match="height is 33; give a multiple of 8 .* such as 32 or 40"):
        draw(height=33)


def test_a_golden_recipe_takes_numbers_of_every_kind(pipe):
    """golden make draws by it."""
    config = refsd.schedulers.EulerDiscreteScheduler().config.plain()
    numbers = {"width": 32, "height": 32, "steps": 2, "cfg_scale": 1, "eta": 1, "seed": 3,
               "guidance_rescale": 1, "clip_skip": 1}
    expected = Request("a", scheduler=config, negative_prompt="b", **numbers)
    for kind in (np.uint8, np.float64, np.array):
        found = Request("a", scheduler=config, negative_prompt="b",
                       **{k: kind(v) for k, v in numbers.items()})
        assert json.dumps(found.plain()) and found == expected and type(found.steps) is int
    assert expected.check(pipe) == 2


@pytest.mark.parametrize("name", sorted(refsd.schedulers.SCHEDULERS))
def test_schedulers_as_code_for_diffusers_calls_them(name):
    """With a device, return_dict and torch's kinds of generator; and what is refused, by name."""
    cls, x = getattr(refsd.schedulers, name), exact(1, 2, 4, 4, 4)

    def first_step(*args, **options):
        betas = {"beta_start": np.array(0.0001)} if "beta_start" in cls.DEFAULTS else {}
        scheduler = cls(num_train_timesteps=np.int64(1000), **betas)
        scheduler.set_timesteps(4, *args, **options)
        noise = {"generator": TorchGenerator(0)} if name in NOISY else {}
        return scheduler, scheduler.step(x, scheduler.timesteps[0], x, return_dict=False, **noise)

    scheduler, expected = first_step()
    assert json.dumps(scheduler.config.plain()) and isinstance(expected, tuple)
    for args, options in ((("cpu",), {}), ((None,), {}), ((), {"device": "cuda:0"})):
        assert np.array_equal(first_step(*args, **options)[1][0], expected[0])
    for device in ("mps", 0):
        with pytest.raises(UsageError, match=f"^device is {device!r}; .*leave it out"):
            first_step(device=device)
    if name in NOISY:
        for bad in (3, [3, 4], "3"):
            with pytest.raises(UsageError, match="^generator is .*TorchGenerator"):
                scheduler = cls()
                scheduler.set_timesteps(2)
                scheduler.step(x, scheduler.timesteps[0], x, generator=bad)
    with pytest.raises(UsageError, match=rf"\.from_pretrained\('a/b', scheduler={name}\)"):
        cls.from_pretrained("a/b", subfolder="scheduler")

    t = scheduler.timesteps[0]
    for few in (x[:, :3], x[:, :, :2], np.stack([x, x])):
        with pytest.raises(UsageError, match="^add_noise: noise has shape .*that of original"):
            scheduler.add_noise(x, few, t)
    for times in ([], [t, t, t], [[t], [t]]):
        with pytest.raises(UsageError, match="^timesteps is .*one for each of the 2 samples"):
            scheduler.add_noise(x, x, times)
    assert np.array_equal(scheduler.add_noise(x, x, [t]), scheduler.add_noise(x, x, [t, t]))


NOISY = ("DDPMScheduler", "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler",
         "LCMScheduler", "TCDScheduler")


def test_networks_as_code_for_diffusers_calls_them():
    unet, vae = UNet(*tree("unet", UNETS["two levels"]), "numpy"), VAE(
        *tree("vae", VAES["two levels"]), "numpy")
    encoder = TextEncoder(*tree("text_encoder", CLIPS["quick_gelu"]), "numpy")
    x, text, ids = exact(1, 2, 4, 4, 4), exact(2, 2, 3, 10), [[1, 2]]
    calls = {"unet": lambda **o: unet(x, 5, text, **o),
             "vae.decode": lambda **o: vae.decode(x, **o),
             "vae.encode": lambda **o: vae.encode(exact(1, 1, 3, 8, 8), **o)}
    for call in calls.values():
        (found,) = call(return_dict=False, cross_attention_kwargs=None)
        assert type(found) is type(call(return_dict=True))
    assert len(encoder(ids, return_dict=False, attention_mask=None)) == 2
    calls["text_encoder"] = lambda **o: encoder(ids, **o)
    for function, call in calls.items():
        for name in from_diffusers.NETWORKS:
            own = (function, name) == ("text_encoder", "output_hidden_states")
            if name != "generator" and not own:
                with pytest.raises(UsageError, match=f"^{function}: {name}='x' has no meaning"):
                    call(**{name: "x"})
        with pytest.raises(UsageError, match=f"^{function} has no argument 'retrun_dict'"):
            call(retrun_dict=False)


@pytest.mark.parametrize("name", ["download", "ema", "force", "exact"])
@pytest.mark.parametrize("bad", ["no", 1, None, 0.0])
def test_flags_are_true_or_false(name, bad):
    with pytest.raises(UsageError, match=f"^{name} is .*; give True or False"):
        StableDiffusionPipeline.from_pretrained("no/where", **{name: bad})
    if name == "exact":
        with pytest.raises(UsageError, match="^exact is "), refsd.use("numpy", exact=bad):
            pass


def test_output_type_pt_says_what_to_write(draw):
    with pytest.raises(UsageError, match=r"^output_type is 'pt'; give 'np', and torch.from_numpy"):
        draw(output_type="pt")


def test_the_prompt_that_is_too_long_is_named(draw, caplog):
    draw(negative_prompt="a cat " * 99)
    assert ["the negative prompt is longer" in line for line in caplog.messages] == [True]


@pytest.mark.parametrize("bad", [3, np.nan, ["a/b"], b"a/b", ("a", "b"), {}])
def test_what_is_no_path(bad):
    for name in ("path", "vae", "text_encoder"):
        with pytest.raises(UsageError, match="^model: got .*, expected a path or a hub id"):
            StableDiffusionPipeline.from_pretrained(**{name: bad})


@pytest.mark.parametrize("made", [None, 3, refsd.schedulers.DDIMScheduler])
def test_a_function_that_makes_no_scheduler(made):
    with pytest.raises(UsageError, match="^scheduler=.* makes .*; give a scheduler"):
        StableDiffusionPipeline.from_pretrained(scheduler=lambda config: made)


def test_what_a_callback_reads_of_the_run(pipe, draw):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((pipe.guidance_scale, pipe.interrupt, pipe.num_timesteps))

    draw(callback_on_step_end=look, guidance_scale=3, num_inference_steps=2)
    assert seen == [(3.0, False, 2)] * 2 and pipe.vae_scale_factor == pipe.vae.config.downscale


def test_pipelines_share_their_parts(pipe):
    """from_pipe copies nothing; a part may be replaced, and nothing else given."""
    other = refsd.schedulers.DDIMScheduler.from_config(pipe.scheduler.config)
    shared = StableDiffusionPipeline.from_pipe(pipe, scheduler=other)
    assert shared.scheduler is other and shared.unet is pipe.unet and shared.vae is pipe.vae
    assert (shared.backend, shared.name, shared.exact) == (pipe.backend, pipe.name, pipe.exact)
    with pytest.raises(UsageError, match="from_pipe got 3; give a pipeline"):
        StableDiffusionPipeline.from_pipe(3)
    with pytest.raises(UsageError, match="from_pipe.*unett"):
        StableDiffusionPipeline.from_pipe(pipe, unett=pipe.unet)
