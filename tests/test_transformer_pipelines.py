"""Pipelines of a transformer and three text encoders: refusals, files, and what they lack.

tests/parity/test_sd3.py compares their pictures with diffusers'.
"""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import t5_samples
import tiny
import tiny_three
from PIL import Image

import refsd
import refsd.families.sd3
from refsd import families
from refsd.cli.recipe import parse_recipe
from refsd.errors import ModelError, UsageError
from refsd.pipelines.guidance import guided
from refsd.pipelines.loading import bundled_model
from refsd.pipelines.skip_layers import SkipLayerGuidance, pushed
from refsd.schedulers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from refsd.weights import load_checkpoint, write_safetensors
from refsd.weights.ldm import to_ldm

PICTURE = np.random.default_rng(0).random((32, 32, 3), "float32")
MASK = np.pad(np.ones((16, 16), np.float32), 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_three.write_model(tmp_path_factory.mktemp("models") / "three")


@pytest.fixture(scope="module")
def loaded(folder):
    return refsd.StableDiffusion3Pipeline.from_pretrained(folder, backend="numpy")


@pytest.fixture
def pipe(loaded):
    """A pipeline of its own, which has said nothing yet, of the same networks."""
    made = type(loaded).from_pipe(loaded)
    made.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return made


def draw(pipe, prompt="a red cat", **options):
    defaults = {"num_inference_steps": 3, "generator": 1, "output_type": "latent",
                "max_sequence_length": 8}
    return pipe(prompt, **{**defaults, **options}).images


def of(pipe, name):
    return getattr(refsd, f"StableDiffusion3{name}Pipeline").from_pipe(pipe)


# Loading.

def test_the_family_chooses_the_class(folder):
    pipe = refsd.AutoPipelineForText2Image.from_pretrained(folder, backend="numpy")
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    assert type(refsd.AutoPipelineForImage2Image.from_pipe(pipe)).__name__ == (
        "StableDiffusion3Img2ImgPipeline")
    assert type(refsd.AutoPipelineForInpainting.from_pipe(pipe)).__name__ == (
        "StableDiffusion3InpaintPipeline")
    with pytest.raises(ModelError, match="StableDiffusion3Pipeline"):
        refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")


def test_without_t5_its_tokens_are_zeros(tmp_path, folder):
    """Saved without it, or left out: as many tokens, all zeros, behind the same others."""
    bare = tiny_three.write_model(tmp_path / "bare", without=["text_encoder_3"])
    found = refsd.StableDiffusion3Pipeline.from_pretrained(bare, backend="numpy")
    left = refsd.StableDiffusion3Pipeline.from_pretrained(
        folder, backend="numpy", text_encoder_3=None, tokenizer_3=None)
    whole = refsd.StableDiffusion3Pipeline.from_pretrained(folder, backend="numpy")
    embedded = [pipe.embed("a red cat", None, None, None, copies=1, clip_skip=None, guided=False,
                           size=(32, 32), max_sequence_length=7).positive
                for pipe in (found, left, whole)]
    assert found.text_encoder_3 is None and left.tokenizer_3 is None
    for states in embedded[:2]:
        assert states.shape == (1, tiny.LENGTH + 7, 32) and not states[:, tiny.LENGTH:].any()
    assert np.array_equal(embedded[1][:, :tiny.LENGTH], embedded[2][:, :tiny.LENGTH])
    assert (embedded[2][:, tiny.LENGTH:].std(-1) > 0.1).all()


def test_a_part_that_is_left_out_is_not_fetched(monkeypatch):
    asked = []
    monkeypatch.setattr("refsd.pipelines.loading.resolve",
                        lambda path, **options: asked.append(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        refsd.StableDiffusion3Pipeline.from_pretrained("a/b", download=True, vae="c",
                                                       text_encoder_3=None)
    assert asked.pop()["without"] == ["vae", "text_encoder_3"]


def test_t5_without_its_tokenizer_is_refused(tmp_path):
    model = tiny_three.write_model(tmp_path / "m")
    (model / "tokenizer_3").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="tokenizer_3.*text_encoder_3=None"):
        refsd.StableDiffusion3Pipeline.from_pretrained(model, backend="numpy")


def test_a_tokenizer_of_more_pieces_than_t5_has_is_refused(tmp_path):
    pieces = t5_samples.PIECES + [(f"\u2581word{i}", -9.0) for i in range(200)]
    model = tiny_three.write_model(tmp_path / "m")
    t5_samples.write(model / "tokenizer_3", pieces=pieces)
    with pytest.raises(ModelError, match="ids go up to"):
        refsd.StableDiffusion3Pipeline.from_pretrained(model, backend="numpy")


@pytest.mark.parametrize("part, changes, words", [
    ("vae", {"latent_channels": 8}, "takes 16 channels, the VAE's latents have 8"),
    ("transformer", {"in_channels": 33, "out_channels": 16}, "gives 16 channels, and takes 33"),
    ("transformer", {"in_channels": 8, "out_channels": None}, "takes 8 channels, the VAE's .* 16"),
    ("transformer", {"joint_attention_dim": 40}, "reads text of width 40, the third .* gives 32"),
    ("transformer", {"pooled_projection_dim": 20}, "reads a vector of 20 numbers, .* give 16"),
    ("text_encoder", {"architectures": ["CLIPTextModel"]}, "reads a vector of 16 .* give 26"),
    ("text_encoder_2", {"hidden_size": 20}, "reads text of width 32, the two .* give 36"),
], ids=str)
def test_parts_that_do_not_fit_are_refused_by_their_numbers(tmp_path, part, changes, words):
    model = tiny_three.write_model(tmp_path / "m", **{part: changes})
    with pytest.raises(ModelError, match=f"the transformer {words}. Give parts of one model"):
        load_checkpoint(model)


def test_parts_of_another_pipeline(tmp_path, folder, loaded, model):
    other = refsd.StableDiffusionPipeline.from_pretrained(model, backend="numpy")
    load = refsd.StableDiffusion3Pipeline.from_pretrained
    assert load(folder, backend="numpy", vae=loaded.vae).vae is loaded.vae
    with pytest.raises(UsageError, match="vae has latents of 4 channels, the model takes 16"):
        load(folder, backend="numpy", vae=other.vae)
    with pytest.raises(UsageError, match="text encoders of another pipeline are for UNets"):
        load(folder, backend="numpy", text_encoder=loaded.text_encoder)


# A drawing.

def test_sizes(pipe):
    """The model's own by default; whole patches, as far as there are places for them."""
    assert pipe.default_size == 32 and draw(pipe).shape == (1, 16, 4, 4)
    assert draw(pipe, height=48, width=16).shape == (1, 16, 6, 2)
    with pytest.raises(UsageError, match="height is 24; give a multiple of 16"):
        draw(pipe, height=24)
    with pytest.raises(UsageError, match="width is 112, and the transformer has places for 96"):
        draw(pipe, width=112)
    with pytest.raises(UsageError, match="multiple of 16"):
        of(pipe, "Img2Img")("a", image=PICTURE, height=40)
    with pytest.raises(UsageError, match="multiple of 16"):
        of(pipe, "Inpaint")("a", image=PICTURE, mask_image=MASK, width=40)


@pytest.mark.parametrize("options, words", [
    ({"prompt": None}, "give either prompt or prompt_embeds, got neither"),
    ({"prompt_embeds": np.zeros((1, 20, 32), "f4")}, "prompt_embeds is given without pooled"),
    ({"negative_pooled_prompt_embeds": np.zeros((1, 16), "f4")},
     "negative_pooled_prompt_embeds is given without negative_prompt_embeds"),
    ({"prompt_embeds": np.zeros((1, 20, 32), "f4"),
      "pooled_prompt_embeds": np.zeros((1, 16), "f4")}, "give either prompt or prompt_embeds"),
    ({"prompt": None, "prompt_3": "a", "prompt_embeds": np.zeros((1, 20, 32), "f4"),
      "pooled_prompt_embeds": np.zeros((1, 16), "f4")}, "give either prompt_3 or prompt_embeds"),
    ({"prompt": None, "prompt_embeds": np.zeros((1, 20, 32), "f4"),
      "pooled_prompt_embeds": np.zeros((1, 17), "f4")}, r"pooled_prompt_embeds has .* \(1, 17\)"),
    ({"prompt": None, "prompt_embeds": np.zeros((1, 20, 30), "f4"),
      "pooled_prompt_embeds": np.zeros((1, 16), "f4")}, r"prompt_embeds has shape \(1, 20, 30\)"),
    ({"negative_prompt_embeds": np.zeros((1, 20, 32), "f4"),
      "negative_pooled_prompt_embeds": np.zeros((1, 16), "f4")}, "give two of one shape"),
    ({"prompt": ["a", "b"], "prompt_2": "c"}, "prompt_2 has 1 texts for 2 prompts"),
    ({"prompt": ["a", "b"], "negative_prompt_3": ["c"] * 3}, "negative_prompt_3 has 3 texts for 2"),
    ({"max_sequence_length": 513}, "max_sequence_length is 513"),
    ({"clip_skip": 3}, "clip_skip is 3; give an integer from 0 to 2"),
    ({"skip_guidance_layers": [3]}, r"skip_guidance_layers\[0\] is 3; give an integer from 0 to 2"),
    ({"skip_guidance_layers": 1}, "skip_guidance_layers is 1; give a list"),
    ({"skip_layer_guidance_start": 2}, "skip_layer_guidance_start is 2"),
    ({"skip_layer_guidance_stop": -1}, "skip_layer_guidance_stop is -1"),
    ({"skip_layer_guidance_scale": "x"}, "skip_layer_guidance_scale is 'x'"),
    ({"joint_attention_kwargs": {"scale": 1}}, "joint_attention_kwargs.*nothing to scale"),
    ({"ip_adapter_image": 1}, "refsd has no IP-Adapter"),
    ({"skip_layers": [1]}, "did you mean skip_guidance_layers"),
    ({"guidance_rescal": 1}, "did you mean guidance_rescale"),
], ids=lambda found: str(found)[:60])
def test_requests_that_are_refused(pipe, options, words):
    with pytest.raises(UsageError, match=words):
        draw(pipe, **{"prompt": "a red cat", **options})


def test_a_negative_text_for_all_prompts(pipe):
    one = draw(pipe, ["a", "red"], negative_prompt="cat", generator=[1, 2])
    each = draw(pipe, ["a", "red"], negative_prompt=["cat", "cat"], generator=[1, 2])
    assert np.array_equal(one, each)
    assert not np.array_equal(one, draw(pipe, ["a", "red"], generator=[1, 2]))


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("suffix", ["_2", "_3"])
def test_each_encoder_reads_its_own_text(pipe, name, suffix):
    """Where one is given; an empty one is none, as in diffusers."""
    plain = draw(pipe, negative_prompt="red")
    assert not np.array_equal(draw(pipe, negative_prompt="red", **{name + suffix: "sphere"}), plain)
    assert np.array_equal(draw(pipe, negative_prompt="red", **{name + suffix: ""}), plain)


def test_what_is_too_long_is_said(pipe, caplog):
    caplog.set_level(logging.WARNING, "refsd")
    draw(pipe, "red " * 30, max_sequence_length=64)
    assert ["the prompt is longer than 14 tokens" in r.message for r in caplog.records] == [True]
    caplog.clear()
    draw(pipe, "red red red red", max_sequence_length=3)
    assert [r.getMessage() for r in caplog.records] == [
        "the prompt 3 is longer than the 2 tokens that text_encoder_3 reads; dropped: 'red red'"]
    for options in ({"prompt_2": "red " * 30}, {"negative_prompt_2": "red " * 30}):
        caplog.clear()
        draw(pipe, ["a", "b"], generator=[1, 2], max_sequence_length=64,
             **{name: [text] * 2 for name, text in options.items()})
        name, = (name.replace("_", " ") for name in options)
        assert [f"the {name} is longer than 14 tokens" in r.message for r in caplog.records] == (
            [True])


@pytest.mark.parametrize("name", ["prompt", "prompt_2", "prompt_3", "negative_prompt_3"])
def test_syntax_is_said_to_be_literal_in_each_text(pipe, caplog, name):
    caplog.set_level(logging.WARNING, "refsd")
    draw(pipe, **{name: "(red:1.2) <lora:x:1>"}, max_sequence_length=64)
    literal = [r.message for r in caplog.records if "literally" in r.message]
    assert ["weighs nothing" in message for message in literal] == [True, False]
    assert ("tags are for the prompt" in caplog.text) == name.startswith("negative")


@pytest.mark.parametrize("name", ["prompt_3", "negative_prompt_3"])
def test_a_text_for_t5_that_is_not_there(pipe, caplog, name):
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    plain = draw(pipe)
    assert not caplog.records
    assert np.array_equal(draw(pipe, **{name: "sphere"}), plain)
    assert [r.message for r in caplog.records] == [
        f"{name} changes nothing: this model is without T5, which reads it"]


@pytest.mark.parametrize("options, said", [
    ({"guidance_scale": 1.0, "skip_guidance_layers": [1]}, "skip_guidance_layers changes nothing"),
    ({"mu": 0.5}, "mu changes nothing: the scheduler has no use_dynamic_shifting"),
    ({"eta": 0.5}, "eta changes nothing"),
])
def test_what_changes_nothing_is_said(pipe, caplog, options, said):
    caplog.set_level(logging.WARNING, "refsd")
    plain = draw(pipe, **{key: value for key, value in options.items() if key == "guidance_scale"})
    assert np.array_equal(draw(pipe, **options), plain)
    assert [said in record.message for record in caplog.records] == [True]


def test_a_scheduler_for_noise_is_refused(pipe):
    pipe.scheduler = EulerDiscreteScheduler()
    with pytest.raises(UsageError, match="EulerDiscreteScheduler for models that predict noise"):
        draw(pipe)


def test_a_pictures_size_shifts_the_schedule(pipe):
    """mu lies on the line through the shifts: 4 patches have 0.5, 36 have 1.15."""
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=36)
    assert pipe.mu(32, 32, None) == pytest.approx(0.5, abs=1e-12)
    assert pipe.mu(96, 96, None) == pytest.approx(1.15, abs=1e-12)
    assert pipe.mu(96, 96, 0.7) == 0.7
    small = draw(pipe, num_inference_steps=4)
    first = pipe.scheduler.sigmas.copy()
    draw(pipe, num_inference_steps=4, height=64, width=64)
    assert (pipe.scheduler.sigmas[1:4] > first[1:4]).all()
    assert not np.array_equal(small, draw(pipe, num_inference_steps=4, mu=2.0))
    with pytest.raises(UsageError, match="mu is 'x'"):
        draw(pipe, mu="x")


def test_of_a_pictures_steps_as_many_as_there_are_shares_of(pipe):
    """n - int(n - n strength): of 5 steps and 0.3 two, where others make one."""
    seen = []
    of(pipe, "Img2Img")("a", image=PICTURE, strength=0.3, num_inference_steps=5, generator=1,
                        callback_on_step_end=lambda pipe, i, t, x: seen.append(i))
    assert len(seen) == 2
    with pytest.raises(UsageError, match="masked_image_latents"):
        of(pipe, "Inpaint")("a", image=PICTURE, mask_image=MASK,
                            masked_image_latents=np.zeros((1, 16, 4, 4), "f4"))


def test_latents_in_the_place_of_a_picture_have_their_noise(pipe):
    latents = np.random.default_rng(1).standard_normal((1, 16, 4, 4)).astype("f4")
    found = [of(pipe, "Img2Img")("a", image=image, latents=latents, num_inference_steps=3,
                                 output_type="latent").images for image in (PICTURE, None)]
    assert np.array_equal(*found)
    again = of(pipe, "Img2Img")("a", latents=latents.tolist(), num_inference_steps=3,
                                output_type="latent").images
    assert np.array_equal(found[0], again)
    with pytest.raises(UsageError, match="width is 112, and the transformer has places for 96"):
        of(pipe, "Img2Img")("a", latents=np.zeros((1, 16, 4, 14), "f4"))


# Skip-layer guidance.

def test_layers_are_skipped_between_two_shares_of_the_steps(loaded):
    """A third call at the steps 2 and 3 of 5, for the positive text alone."""
    calls, texts = [], np.random.default_rng(2).standard_normal((2, 1, 9, 32)).astype("f4")
    pooled = np.random.default_rng(3).standard_normal((2, 16)).astype("f4")

    def ask(x, timestep, text, *, pooled_projections, skip_layers=()):
        calls.append((len(x), skip_layers, pooled_projections))
        return loaded.transformer(x, timestep, text, pooled_projections, skip_layers=skip_layers)

    ask.time_cond_dim = None
    predict = SkipLayerGuidance(ask, texts[0], texts[1], scale=4.0, layers=[1], skip_scale=2.8,
                                start=1.0, stop=4.0, added={"pooled_projections": pooled})
    x = np.random.default_rng(4).standard_normal((1, 16, 4, 4)).astype("f4")
    for index in range(5):
        calls.clear()
        found = predict(x, 500.0, index)
        skipped = [call for call in calls if call[1]]
        assert len(calls) == 1 + (index in (2, 3)) and len(skipped) == len(calls) - 1
        if skipped:
            (count, layers, vector), = skipped
            assert count == 1 and layers == (1,) and np.array_equal(vector, pooled[1:])
            both = loaded.transformer(np.concatenate([x, x]), 500.0, texts[::-1, 0], pooled)
            less = loaded.transformer(x, 500.0, texts[0], pooled[1:], skip_layers=[1])
            wanted = guided(both[:1], both[1:], 4.0) + np.float32(2.8) * (both[1:] - less)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())
    predict.change({"prompt_embeds": texts[1]})
    assert np.array_equal(predict.alone.states, texts[1])
    predict.change({"negative_prompt_embeds": None})  # a callback's scale of 1
    calls.clear()
    predict(x, 500.0, 2)
    assert [(count, layers) for count, layers, _ in calls] == [(1, ())]


def test_halves_are_pushed_in_float32():
    a, b, c = (np.random.default_rng(i).standard_normal(50).astype("float16") for i in range(3))
    wide = a.astype("f4") + (b.astype("f4") - c.astype("f4")) * np.float32(2.8)
    assert np.array_equal(pushed(a, b, c, 2.8), wide.astype("float16"))


# What other pipelines do.

@pytest.mark.parametrize("ask, words", [
    (lambda pipe: pipe.load_lora_weights("x"), "load_lora_weights: .*for UNets"),
    (lambda pipe: pipe.load_textual_inversion("x"), "textual inversion"),
    (lambda pipe: setattr(pipe, "dialect", "a1111"), "dialect"),
    (refsd.StableDiffusionImg2ImgPipeline.from_pipe, "same family"),
], ids=["adapters", "textual inversion", "dialect", "another class"])
def test_what_it_lacks_is_refused_by_name(pipe, ask, words):
    with pytest.raises(UsageError, match=words):
        ask(pipe)
    assert not hasattr(pipe, "load_lora_weights")


def test_previews_need_the_spaces_factor(pipe):
    small = pipe.preview(np.zeros((1, 16, 4, 4), "f4"))
    assert small[0].size == (32, 32)


def test_halves_and_int8_draw(folder):
    for dtype in ("float16", "bfloat16", "int8"):
        pipe = refsd.StableDiffusion3Pipeline.from_pretrained(folder, backend="numpy", dtype=dtype)
        found = draw(pipe, num_inference_steps=2)
        assert np.isfinite(found.astype("f4")).all(), dtype


# The command line.

def test_the_command_line(folder, tmp_path, capsys):
    from refsd.__main__ import main

    out = str(tmp_path / "a.png")
    common = ["-m", str(folder), "--backend", "numpy", "--steps", "2", "-s", "1"]
    assert main(["a red cat", *common, "-o", out]) == 0
    assert "Stable Diffusion 3" in capsys.readouterr().err
    for width, height in ((32, 32), (48, 16)):
        assert main(["a red cat", *common, "-o", str(tmp_path / f"{width}.png"), "--init-img", out,
                     "-W", str(width), "-H", str(height), "--strength", "0.5"]) == 0
        assert Image.open(tmp_path / f"{width}.png").size == (width, height)
    assert main(["a", *common, "-W", "24", "-o", str(tmp_path / "x.png")]) == 2
    assert "multiple of 16" in capsys.readouterr().err
    assert main(["a", *common, "--compat", "a1111", "-o", str(tmp_path / "x.png")]) == 2
    write_safetensors(tmp_path / "x.safetensors", {"a.lora_down.weight": np.ones((1, 1), "f4"),
                                                   "a.lora_up.weight": np.ones((1, 1), "f4")})
    assert main(["a <lora:x:1>", *common, "--lora-dir", str(tmp_path)]) == 2
    assert "adapters: not with StableDiffusion3Pipeline" in capsys.readouterr().err


def test_the_command_line_leaves_t5_out(tmp_path, capsys):
    """As a model that was saved without it draws; the recipe says so, and is drawn again so."""
    from refsd.__main__ import main

    whole = tiny_three.write_model(tmp_path / "m")
    shutil.rmtree(whole / "tokenizer_3")
    bare = shutil.copytree(whole, tmp_path / "elsewhere" / "m")
    shutil.rmtree(bare / "text_encoder_3")
    common = ["a red cat", "--backend", "numpy", "--steps", "1", "-s", "1"]
    assert main([*common, "-m", str(whole), "-o", str(tmp_path / "x.png")]) == 3
    assert "--without text_encoder_3" in capsys.readouterr().err
    left, lacking = str(tmp_path / "left.png"), str(tmp_path / "lacking.png")
    assert main([*common, "-m", str(whole), "-o", left, "--without", "text_encoder_3"]) == 0
    assert main([*common, "-m", str(bare), "-o", lacking]) == 0
    recipes = [parse_recipe(Image.open(file).text["refsd"], file) for file in (left, lacking)]
    assert recipes[0].pixels == recipes[1].pixels
    assert recipes[0].model == {**recipes[1].model, "without": "text_encoder_3"}
    assert main(["repro", left, "-m", str(whole)]) == 0
    for model, words in ((whole, "Stable Diffusion 3 may lack text_encoder_3"),
                         (bundled_model(), "may lack none of its parts")):
        capsys.readouterr()
        assert main([*common, "-m", str(model), "--without", "vae", "-o",
                     str(tmp_path / "x.png")]) == 2
        assert words in capsys.readouterr().err


def test_the_command_line_draws_with_schedules_that_a_picture_shifts(tmp_path):
    from refsd.__main__ import main

    scheduler = {**tiny_three.SCHEDULER, "use_dynamic_shifting": True}
    model = tiny_three.write_model(tmp_path / "m", scheduler=scheduler, without=["text_encoder_3"])
    assert json.loads((model / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    common = ["-m", str(model), "--backend", "numpy", "--steps", "2", "-s", "1"]
    assert main(["a", *common, "-o", str(tmp_path / "a.png")]) == 0
    assert main(["a", *common, "-o", str(tmp_path / "b.png"), "--init-img",
                 str(tmp_path / "a.png")]) == 0




def test_t5_from_elsewhere(tmp_path, folder):
    """Of another model's folder; a model without T5 keeps its tokenizer_3."""
    other = tiny_three.write_model(tmp_path / "other", seed=5)
    load = refsd.StableDiffusion3Pipeline.from_pretrained
    pipe = load(folder, backend="numpy", text_encoder_3=other)
    wanted = load(other, backend="numpy").text_encoder_3.tree["shared"]["weight"]
    assert np.array_equal(pipe.text_encoder_3.tree["shared"]["weight"], wanted)
    assert not np.array_equal(wanted, load(folder, backend="numpy").text_encoder_3.tree[
        "shared"]["weight"])
    with pytest.raises(UsageError, match="text_encoder_3"):
        refsd.StableDiffusionPipeline.from_pretrained(text_encoder_3=other)


@pytest.fixture
def single(tmp_path, monkeypatch):
    """A single file, with the tensors of a folder, of a family at the tests' sizes; and the folder.

    CLIP's own vocabulary, for a file has none; CLIP-L's pooled vector is not projected.
    """
    sizes = {"vocab_size": 49408, "eos_token_id": 2, "max_position_embeddings": 77}
    first = {**sizes, "architectures": ["CLIPTextModel"]}
    changes = {"text_encoder": first, "text_encoder_2": {**sizes, "hidden_size": 12},
               "transformer": {"pooled_projection_dim": 26}}
    model = tiny_three.write_model(tmp_path / "folder", **changes)
    configs = {part: {**config, **changes.get(part, {})}
               for part, config in tiny_three.CONFIGS.items()}
    family = replace(families.sd3.SD3, configs=configs)
    monkeypatch.setattr(families, "FAMILIES", (families.SD1, family))
    found = {}
    for part, component in load_checkpoint(model).items():
        arrays = {name: np.asarray(leaf) for name, leaf in component.tensors.items()}
        found |= to_ldm(part, arrays, component.config, family)
    (tmp_path / "alone").mkdir()
    write_safetensors(tmp_path / "alone" / "model.safetensors", found)
    for name in ("tokenizer", "tokenizer_2"):  # as a file's are: the second pads with "!"
        shutil.rmtree(model / name)
    return tmp_path / "alone" / "model.safetensors", model


def test_a_single_file_draws_what_its_folder_does(single, tmp_path, caplog):
    file, model = single
    load = refsd.StableDiffusion3Pipeline.from_pretrained
    with pytest.raises(ModelError, match="alone/tokenizer_3: no such folder"):
        load(file, backend="numpy")
    shutil.copytree(model / "tokenizer_3", file.parent / "tokenizer_3")
    alone = load(file, backend="numpy")
    folder = load(model, backend="numpy")
    assert (alone.tokenizer.pad_token_id, alone.tokenizer_2.pad_token_id) == (49407, 0)
    folder.tokenizer_2 = alone.tokenizer_2
    assert alone.scheduler.config.shift == 3.0
    assert np.array_equal(draw(alone), draw(folder))
    without = load(file, backend="numpy", text_encoder_3=None)
    assert not np.array_equal(draw(alone), draw(without))


def test_a_projection_without_a_width_is_as_wide_as_its_encoder(tmp_path):
    model = tiny_three.write_model(tmp_path / "m", text_encoder={"projection_dim": None},
                                   transformer={"pooled_projection_dim": 26})
    pipe = refsd.StableDiffusion3Pipeline.from_pretrained(model, backend="numpy")
    assert draw(pipe).shape == (1, 16, 4, 4)


def test_options_of_the_folders_scheduler_are_taken_as_they_are(tmp_path, caplog):
    """For StableDiffusionPipeline an offset of 0 is of an older form, here it is not."""
    scheduler = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True,
                 "prediction_type": "flow_prediction", "flow_shift": 3.0, "steps_offset": 0}
    model = tiny_three.write_model(tmp_path / "m", scheduler=scheduler)
    pipe = refsd.StableDiffusion3Pipeline.from_pretrained(model, backend="numpy")
    assert pipe.scheduler.config.steps_offset == 0 and not caplog.records
    assert np.isfinite(draw(pipe)).all()


def test_layers_may_be_an_array(pipe):
    options = {"num_inference_steps": 4, "skip_layer_guidance_stop": 1.0}
    found = [draw(pipe, skip_guidance_layers=layers, **options)
             for layers in ([1], np.array([1]), None)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
