"""Drawing in a dialect, against the same by hand: vectors, guidance, changes, noise and bytes."""

import logging

import numpy as np
import pytest
import tiny

from refsd.dialects import chunks
from refsd.errors import UsageError
from refsd.pipelines import composed, stages
from refsd.pipelines.drawing import Drawing
from refsd.pipelines.guidance import Guidance
from refsd.pipelines.resume import SaveState
from refsd.pipelines.spoken import generators, guidance_of
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.random import PhiloxGenerator, TorchGenerator
from refsd.random.philox import philox
from refsd.schedulers import EulerAncestralDiscreteScheduler


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")
    return StableDiffusionPipeline.from_pretrained(folder, backend="numpy")


@pytest.fixture
def pipe(loaded):
    """A pipeline of its own, whose noise is torch's on the CPU in every dialect."""
    return StableDiffusionPipeline.from_pipe(loaded)


def speak(pipe, name):
    pipe.dialect, pipe.make_generator = name, TorchGenerator
    return pipe


def draw(pipe, prompt="red cat", steps=4, **options):
    options = {"generator": 3, "output_type": "latent", "num_inference_steps": steps} | options
    return pipe(prompt, **options).images


def states(pipe, text, clip_skip=None):
    return pipe.text_encoder(pipe.tokenizer([text]), clip_skip=clip_skip).last_hidden_state[0]


def vectors(pipe, text, **options):
    """The vectors of a prompt at the first step, in the pipeline's dialect."""
    return guidance_of(pipe, [text], [""], **{
        "copies": 1, "clip_skip": None, "guided": False, "steps": 4} | options)[0][0]


@pytest.mark.parametrize("name", ["a1111", "comfy", "a1111,emphasis=none,pad=yes"])
@pytest.mark.parametrize("options", [{}, {"negative_prompt": "cat"}])
def test_a_prompt_without_syntax_is_the_same_to_the_bit(pipe, name, options):
    plain = draw(pipe, **options)
    np.testing.assert_array_equal(draw(speak(pipe, name), **options), plain)


def test_weights_of_a1111(pipe):
    """z w, and then the mean of the chunk as it was; a short prompt is one chunk."""
    z = states(pipe, "red cat")
    w = np.ones((tiny.LENGTH, 1), "f4")
    w[1] = 1.5
    got = vectors(speak(pipe, "a1111"), "(red:1.5) cat")
    np.testing.assert_allclose(got, z * w * (z.mean(dtype="f8") / (z * w).mean(dtype="f8")),
                               rtol=2e-7)  # one product is rounded twice
    np.testing.assert_array_equal(vectors(speak(pipe, "a1111,emphasis=no-norm"), "(red:1.5) cat"),
                                  z * w)
    for name, text in (("ignore", "(red:1.5) cat"), ("none", "red cat")):
        np.testing.assert_array_equal(vectors(speak(pipe, f"a1111,emphasis={name}"), text), z)


def test_weights_of_comfyui(pipe):
    """From the empty prompt's vector to the text's, and beyond; weight 1 is left alone."""
    z, empty = states(pipe, "red cat"), states(pipe, "")
    wanted = z.copy()
    wanted[2] = (z[2] - empty[2]) * np.float32(0.5) + empty[2]
    np.testing.assert_array_equal(vectors(speak(pipe, "comfy"), "red (cat:0.5)"), wanted)


def test_the_mean_is_that_of_all_texts_of_a_prompt(pipe):
    """A1111 encodes them together, and each as often as it comes up."""
    speak(pipe, "a1111")
    first, second = states(pipe, "red"), states(pipe, "cat red")
    w = np.ones((tiny.LENGTH, 1), "f4")
    w[2] = 2
    wanted = first * ((first.mean(dtype="f8") + second.mean(dtype="f8"))
                      / (first.mean(dtype="f8") + (second * w).mean(dtype="f8")))
    np.testing.assert_allclose(vectors(pipe, "[red:cat (red:2):2]"), wanted,
                               rtol=2e-7)  # the factor and its product are rounded


def test_a_long_prompt_is_chunks_side_by_side(pipe):
    speak(pipe, "a1111")
    room = tiny.LENGTH - 2
    long = vectors(pipe, "red " * (room + 2))
    np.testing.assert_array_equal(long[:tiny.LENGTH], states(pipe, "red " * room))
    np.testing.assert_array_equal(long[tiny.LENGTH:], states(pipe, "red red"))


def test_clip_skip_is_for_both_prompts(pipe):
    speak(pipe, "a1111")
    positive, negative, _ = guidance_of(pipe, ["red"], ["cat"], copies=1, clip_skip=1, guided=True,
                                        steps=4)
    np.testing.assert_array_equal(positive[0], states(pipe, "red", 1))
    np.testing.assert_array_equal(negative[0], states(pipe, "cat", 1))


def replacing(pipe, changes):
    """A callback that puts other vectors in the prompt's place after a call of the model."""
    def callback(pipe, index, timestep, tensors):
        return {"prompt_embeds": states(pipe, changes[index])[None]} if index in changes else {}
    return {"callback_on_step_end": callback,
            "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


@pytest.mark.parametrize("prompt, first, changes", [
    ("[red:cat:1]", "red", {1: "cat"}),  # two calls of the model read the first text
    ("red [cat:0.25]", "red ", {1: "red cat"}),
    ("[red|cat]", "red", {1: "cat", 2: "red"}),
])
@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0}, {"guidance_rescale": 0.5}])
def test_prompt_editing(pipe, prompt, first, changes, options):
    by_hand = draw(pipe, first, **replacing(pipe, changes), **options)
    np.testing.assert_array_equal(draw(speak(pipe, "a1111"), prompt, **options), by_hand)


def test_a_text_that_comes_again_is_not_made_again(pipe, monkeypatch):
    made = []
    monkeypatch.setattr(composed, "as_text", lambda *parts: made.append(1) or _as_text(*parts))
    draw(speak(pipe, "a1111"), "[red|cat]", 8)
    assert len(made) == 2


_as_text = composed.as_text


def test_prompts_joined_by_and(pipe):
    """eps(negative) + sum of w s (eps(text) - eps(negative))"""
    speak(pipe, "a1111")
    *texts, make = guidance_of(pipe, ["red AND cat red:-0.5"], ["cat"], copies=1, clip_skip=None,
                               guided=True, steps=4)
    x = TorchGenerator(1).randn(1, 4, 4, 4)
    away, one, two = pipe.unet(np.concatenate([x] * 3), 500, np.stack(
        [states(pipe, text) for text in ("cat", "red", "cat red")]))[:, None]
    np.testing.assert_array_equal(make(pipe.unet, *texts, scale=7)(x, 500, 0),
                                  away + 7 * (one - away) - 3.5 * (two - away))


def test_pictures_of_one_call_may_join_other_numbers_of_prompts(pipe):
    """With a model of one product a row, so that a batch has the bits of its rows."""
    def unet(x, timestep, text, timestep_cond=None):
        return x * getattr(text, "states", text).mean(axis=(1, 2))[:, None, None, None]

    unet.time_cond_dim = None
    speak(pipe, "a1111")
    x, prompts = TorchGenerator(1).randn(2, 4, 4, 4), ["red AND cat:2", "cat"]

    def predict(prompts, x):
        *texts, make = guidance_of(pipe, prompts, [""], copies=1, clip_skip=None, guided=True,
                                   steps=4)
        return (make or Guidance)(unet, *texts, scale=7)(x, 500, 0)

    both = predict(prompts, x)
    for i, text in enumerate(prompts):
        np.testing.assert_array_equal(both[i:i + 1], predict([text], x[i:i + 1]))


@pytest.mark.parametrize("name", ["a1111", "comfy"])
def test_prompts_of_two_lengths_are_asked_for_alone(pipe, name):
    speak(pipe, name)
    long = "red " * tiny.LENGTH
    *texts, make = guidance_of(pipe, ["red"], [long], copies=1, clip_skip=None, guided=True,
                               steps=4)
    assert [text.shape[1] for text in texts] == [tiny.LENGTH, 2 * tiny.LENGTH]
    x = TorchGenerator(1).randn(1, 4, 4, 4)
    away = pipe.unet(x, 500, texts[1])
    wanted = away + 7 * (pipe.unet(x, 500, texts[0]) - away)
    np.testing.assert_array_equal(make(pipe.unet, *texts, scale=7)(x, 500, 0), wanted)


def test_padding_is_with_the_empty_prompt(pipe):
    speak(pipe, "a1111,pad=yes")
    positive, negative, make = guidance_of(
        pipe, ["red"], ["red " * tiny.LENGTH], copies=1, clip_skip=None, guided=True, steps=4)
    assert make is None and positive.shape == negative.shape
    np.testing.assert_array_equal(positive[0, tiny.LENGTH:], states(pipe, ""))


def test_shorter_prompts_beside_longer_ones_repeat_their_last_vector(pipe):
    """A1111, reconstruct_multicond_batch."""
    short, long = np.arange(6.0).reshape(3, 2), np.zeros((5, 2))
    even = composed.even([short, long])
    np.testing.assert_array_equal(even[0], short[[0, 1, 2, 2, 2]])


def test_scales_below_one_guide(pipe):
    options = {"negative_prompt": "cat", "guidance_scale": 0.5}
    alone = draw(pipe, guidance_scale=1.0)
    np.testing.assert_array_equal(draw(pipe, **options), alone)
    assert not np.array_equal(draw(speak(pipe, "a1111"), **options), alone)
    np.testing.assert_array_equal(draw(speak(pipe, "comfy"), guidance_scale=1.0), alone)


def test_a1111_asks_for_both_at_a_scale_of_one_too(pipe, caplog):
    """There the negative prompt cancels out of one prompt, but not of several."""
    caplog.set_level(logging.WARNING, "refsd")
    speak(pipe, "a1111")
    options = {"prompt": "red AND cat", "guidance_scale": 1.0}
    assert not np.array_equal(draw(pipe, **options), draw(pipe, negative_prompt="cat", **options))
    assert caplog.messages == []


def seeds(generator):
    return [one.seed for one in generator] if isinstance(generator, list) else generator.seed


@pytest.mark.parametrize("name, kind, start, steps", [
    ("diffusers", TorchGenerator, 7, 7), ("comfy", TorchGenerator, 7, 8),
    ("a1111", PhiloxGenerator, [7, 8], [7, 8]),
    ("a1111,ensd=31337", PhiloxGenerator, [7, 8], [31344, 31345]),
])
def test_whose_noise_a_seed_makes(pipe, name, kind, start, steps):
    pipe.dialect = name
    first, later = generators(pipe, np.int64(7), 2)
    assert (seeds(first), seeds(later)) == (start, steps)
    assert {type(one) for one in (first if isinstance(first, list) else [first])} == {kind}
    own = TorchGenerator(5)
    assert generators(pipe, own, 2) == (own, own)


def test_comfyui_on_a_gpu_draws_the_steps_noise_there(pipe):
    pipe.dialect = "comfy,step-noise=cuda"
    first, later = generators(pipe, 7, 1)
    assert isinstance(first, TorchGenerator) and isinstance(later, PhiloxGenerator)
    assert later.seed == 7


def test_ancestral_steps_draw_from_the_generators_of_the_steps(pipe):
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    got = draw(speak(pipe, "a1111,ensd=5"), num_images_per_prompt=2, generator=7)
    stages.make_schedule(pipe.scheduler, 4)
    noise = stages.initial_latents(pipe.scheduler, (2, 4, 4, 4), "float32",
                                   [TorchGenerator(7), TorchGenerator(8)])
    text, empty = (np.repeat(states(pipe, t)[None], 2, axis=0) for t in ("red cat", ""))
    for step in stages.denoise_with(Guidance(pipe.unet, text, empty, scale=7.5), pipe.scheduler,
                                    noise, generator=[TorchGenerator(12), TorchGenerator(13)]):
        latents = step.latents
    np.testing.assert_array_equal(got, latents)


def test_bytes_are_cut(pipe):
    x = np.array([0, 0.5, 0.9999, 1.0], "f4").reshape(1, 2, 2, 1)
    assert pipe.to_bytes(x).ravel().tolist() == [0, 128, 255, 255]
    assert speak(pipe, "comfy").to_bytes(x).ravel().tolist() == [0, 127, 254, 255]


def test_a_dialect_passes_on_to_other_pipelines(pipe):
    pipe.dialect = "a1111,ensd=3"
    other = StableDiffusionPipeline.from_pipe(pipe)
    assert other.dialect.step_seed == 3 and other.make_generator is PhiloxGenerator


def test_only_what_a_dialect_does_not_read_is_said(pipe, caplog):
    caplog.set_level(logging.WARNING, "refsd")
    pipe._said = set()
    draw(speak(pipe, "a1111"), "(red:1.2) [cat:2] " + "red " * 20)
    assert caplog.messages == []
    draw(speak(pipe, "comfy"), "(red:1.2) [cat:2]")
    assert len(caplog.messages) == 1 and "compat a1111" in caplog.messages[0]
    draw(speak(pipe, "a1111"), "red <lora:x:0.5>")
    assert "'<lora:x:0.5>': left out and not applied: " in caplog.messages[1]
    draw(pipe, "red", negative_prompt="cat <lora:y:1>")  # a negative prompt's is text
    assert "'<lora:y:1>': taken literally and not applied: tags are for" in caplog.messages[2]


def test_what_cannot_be_drawn_is_refused(pipe):
    speak(pipe, "a1111")
    with pytest.raises(UsageError, match="the steps are not counted here; give num_inference_st"):
        draw(pipe, "[red:cat:2]", None, timesteps=[900, 500])
    with pytest.raises(UsageError, match="negative_prompt: texts of several lengths"):
        draw(pipe, ["red", "cat"], negative_prompt=["", "red " * tiny.LENGTH])
    with pytest.raises(UsageError, match="negative_prompt_embeds has 3 texts for 2 prompts"):
        draw(pipe, ["red", "cat"], negative_prompt_embeds=np.zeros((3, tiny.LENGTH, 16), "f4"))
    with pytest.raises(UsageError, match=f"give at most {chunks.MAX_CHUNKS}"):
        draw(pipe, "red " * 1000)
    with pytest.raises(UsageError, match="did you mean comfy"):
        pipe.dialect = "comfyui"
    with pytest.raises(UsageError, match="prompt: texts of several lengths"):
        draw(speak(pipe, "comfy"), ["red", "red " * tiny.LENGTH])


def test_a_distilled_model_has_no_guidance_to_weigh_with(pipe, monkeypatch):
    monkeypatch.setattr(pipe.unet, "time_cond_dim", 8)
    with pytest.raises(UsageError, match="this model is distilled"):
        guidance_of(speak(pipe, "a1111"), ["red AND cat"], [""], copies=1, clip_skip=None,
                    guided=False, steps=4)


def test_a_callback_may_replace_what_is_composed(pipe):
    speak(pipe, "a1111")
    got = draw(pipe, "red AND cat:2", **replacing(pipe, {0: "cat"}))
    assert np.isfinite(got).all()
    with_cat = draw(pipe, "red AND cat:2", **replacing(pipe, {0: "cat red"}))
    assert not np.array_equal(got, with_cat)


def test_a_drawing_goes_on_with_its_changes_and_its_noise(pipe, tmp_path):
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    state = tmp_path / "half.safetensors"
    speak(pipe, "a1111,ensd=5")
    whole = draw(pipe, "[red|cat]", callback_on_step_end=SaveState(state, 2))
    np.testing.assert_array_equal(draw(pipe, "[red|cat]", resume=state), whole)
    with pytest.raises(UsageError, match="the prompt, the negative prompt or the text encoder"):
        draw(pipe, "[red|red cat]", resume=state)
    with pytest.raises(UsageError, match="dialect differs: 'a1111'"):
        draw(speak(pipe, "a1111"), "[red|cat]", resume=state)


@pytest.mark.parametrize("before, first", [(11, 14), (12, 12), (14, 14)])
def test_the_vectors_of_an_embedding_stay_in_one_chunk(tmp_path, before, first):
    """A1111: what does not fit whole begins the next chunk; of 14 tokens three are the word's."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny.write_model(tmp_path / "m"),
                                                   backend="numpy")
    pipe.load_textual_inversion(np.ones((3, 16), "f4"), token="style-x")
    found = chunks.of_fragments(pipe.tokenizer, [("red " * before + "style-x red", 1.0)])
    assert [len(chunk.texts) for chunk in found] == [first, before + 4 - first]
    for vectors in (1, tiny.LENGTH):  # one is as any token; what fits into no chunk is cut
        other = StableDiffusionPipeline.from_pipe(pipe)
        other.unload_textual_inversion()
        other.load_textual_inversion(np.ones((vectors, 16), "f4"), token="style-x")
        found = chunks.of_fragments(other.tokenizer, [("red " * before + "style-x", 1.0)])
        assert len(found[0].texts) == min(before + vectors, 14)


def test_a_control_is_given_the_rows_of_each_call(pipe):
    seen = []

    def control(x, timestep, text, index):
        seen.append((x.shape[0], text.states.shape[0], index))
        return {}

    speak(pipe, "a1111")
    *texts, make = guidance_of(pipe, ["red AND cat"], ["red " * tiny.LENGTH], copies=2,
                               clip_skip=None, guided=True, steps=4)
    make(pipe.unet, *texts, scale=7, control=control)(TorchGenerator(1).randn(2, 4, 4, 4), 500, 3)
    assert seen == [(2, 2, 3), (4, 4, 3)]
    control.guess_mode = True
    with pytest.raises(UsageError, match="guess_mode is not for prompts that are composed"):
        make(pipe.unet, *texts, scale=7, control=control)


def test_seeds_of_a_list_are_added_to_and_generators_are_not(pipe, caplog):
    caplog.set_level(logging.WARNING, "refsd")
    pipe.dialect = "a1111,ensd=10"
    first, later = generators(pipe, [5, 7], 2)
    assert (seeds(first), seeds(later)) == ([5, 7], [15, 17]) and caplog.messages == []
    generators(pipe, TorchGenerator(5), 1)
    assert "goes on with them, not with new ones as in a1111,ensd=10" in caplog.messages[0]


def test_a1111_skips_no_layers_of_an_encoder_padded_otherwise(pipe, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "refsd")
    speak(pipe, "a1111")
    monkeypatch.setattr(pipe.tokenizer, "pad_token_id", 0)
    np.testing.assert_array_equal(vectors(pipe, "red", clip_skip=1), vectors(pipe, "red"))
    assert "A1111 skips no layers" in caplog.messages[0]


def test_more_than_fits_is_refused(pipe):
    speak(pipe, "a1111")
    with pytest.raises(UsageError, match="33 prompts joined by AND; give at most 32"):
        draw(pipe, " AND ".join(["red"] * 33))
    words = "|".join(f"cat{i}" for i in range(300))
    with pytest.raises(UsageError, match="make 300 texts of 4 chunks; give at most 1024"):
        draw(pipe, f"[{words}] " + "red " * 40, 300)


def test_a1111s_noise_nv_is_that_of_a_gpu():
    """The numbers in modules/rng_philox.py, which computes in float64 what a GPU has in float32."""
    published = [[-0.92466259, -0.42534415, -2.6438457, 0.14518388],
                 [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
                 [-1.07454231, -0.36314407, -1.67105067, 2.26550497]]
    # Of eight digits, and numbers up to 2.7 of which four functions of float32 are rounded.
    bound = 5e-9 + 2.7 * 4 * 2.0**-24
    np.testing.assert_allclose(PhiloxGenerator(0).randn(3, 4), published, rtol=0, atol=bound)


def test_a1111s_noise_nv_within_roundings():
    """u, its logarithm, the root, v, its sine and the product are rounded once each in float32."""
    bits = philox(11, 0, np.arange(100_000))
    inverse, turn = np.float32(2.3283064e-10), np.float32(2.3283064e-10 * 6.2831855)
    u = bits[0].astype("f8") * inverse + inverse / 2
    v = bits[1].astype("f8") * turn + turn / 2
    exact = np.sqrt(-2 * np.log(u)) * np.sin(v)
    got = PhiloxGenerator(11).randn(100_000)
    radius = np.sqrt(-2 * np.log(u))
    eps = 2.0**-24
    # of log u: eps for u's rounding and its own; of the radius 1 / radius of that and its own;
    # of v up to 2 pi eps, of the sine and of the product one more each
    bound = eps * ((1 + np.abs(np.log(u))) / radius + radius * (2 * np.pi + 3))
    assert (np.abs(got - exact) <= bound).all()


def begun(pipe, prompt):
    return Drawing.begin(
        pipe, 32, 32, prompt=prompt, negative_prompt=None, prompt_embeds=None,
        negative_prompt_embeds=None, num_images_per_prompt=1, guidance_scale=7.0, eta=0.0,
        generator=1, output_type="latent", return_dict=True, clip_skip=None,
        callback_on_step_end=None, callback_on_step_end_tensor_inputs=(), steps=4)


def test_a_guidance_of_its_own_composes_nothing(pipe):
    with pytest.raises(UsageError, match="this pipeline does not compose prompts"):
        begun(speak(pipe, "a1111"), "red AND cat").finish(None, guidance=object)


def test_memory_is_asked_for_with_the_rows_of_all_prompts(pipe, monkeypatch):
    asked = []
    monkeypatch.setattr("refsd.pipelines.drawing.working_bytes",
                        lambda pipe, width, height, batch: asked.append(batch) or 0)
    for prompt in ("red", "red AND cat", "red AND cat AND red"):
        begun(speak(pipe, "a1111"), prompt)
    assert asked == [1, 2, 2]


def test_texts_are_kept_within_bounds_and_may_be_replaced(pipe):
    speak(pipe, "a1111")
    words = "|".join("red" + " cat" * i for i in range(11))
    *texts, make = guidance_of(pipe, [f"[{words}]"], ["cat"], copies=1, clip_skip=None, guided=True,
                               steps=20)
    x, predict = TorchGenerator(1).randn(1, 4, 4, 4), make(pipe.unet, *texts, scale=7)
    for call in range(11):
        predict(x, 500, call)
    assert len(predict._texts) == composed.KEPT
    red, cat = (states(pipe, text)[None] for text in ("red", "cat"))
    predict.change({"prompt_embeds": cat, "negative_prompt_embeds": red, "guidance_scale": 3.0})
    np.testing.assert_array_equal(predict(x, 500, 11), Guidance(pipe.unet, cat, red, scale=3.0)(
        x, 500, 11))
