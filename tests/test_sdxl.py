"""Stable Diffusion XL's pipelines without torch: what is refused, said, saved and drawn."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny
import tiny_xl
from PIL import Image

import refsd
from refsd import families
from refsd.__main__ import main
from refsd.errors import ModelError, UsageError
from refsd.families import sdxl
from refsd.half import to_float32
from refsd.pipelines.hires import StableDiffusionHiresPipeline
from refsd.pipelines.loading import computes, load_scheduler
from refsd.pipelines.memory import working_bytes
from refsd.pipelines.resume import SaveState
from refsd.random import TorchGenerator
from refsd.schedulers import EulerDiscreteScheduler, HeunDiscreteScheduler
from refsd.weights import to_tree, write_safetensors
from refsd.weights.ldm import to_ldm

STEPS = {"num_inference_steps": 2, "generator": 7, "output_type": "np"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype("u1"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_xl.write_model(tmp_path_factory.mktemp("xl") / "base")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    return tiny_xl.write_model(tmp_path_factory.mktemp("xl") / "refiner", refiner=True)


@pytest.fixture
def pipe(base):
    return refsd.StableDiffusionXLPipeline.from_pretrained(base, backend="numpy")


@pytest.fixture
def refining(refiner):
    return refsd.StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner, backend="numpy")


def refused(call, *words, error=UsageError):
    with pytest.raises(error) as problem:
        call()
    assert all(word in str(problem.value) for word in words), str(problem.value)


def test_a_folder_says_which_class_takes_it(base, refiner, tmp_path):
    first = tiny.write_model(tmp_path / "sd1")
    for folder in (base, refiner):
        refused(partial(refsd.StableDiffusionPipeline.from_pretrained, folder, backend="numpy"),
                "Stable Diffusion XL", "Take StableDiffusionXLPipeline", error=ModelError)
        made = refsd.AutoPipelineForImage2Image.from_pretrained(folder, backend="numpy")
        assert type(made) is refsd.StableDiffusionXLImg2ImgPipeline
    refused(lambda: refsd.StableDiffusionXLPipeline.from_pretrained(first, backend="numpy"),
            "Take StableDiffusionPipeline", error=ModelError)


def test_parts_of_another_family_are_refused(pipe, tmp_path):
    other = refsd.StableDiffusionPipeline.from_pretrained(tiny.write_model(tmp_path / "sd1"),
                                                          backend="numpy")
    for cls, given in ((refsd.StableDiffusionPipeline, pipe),
                       (refsd.StableDiffusionXLPipeline, other),
                       (StableDiffusionHiresPipeline, pipe)):
        refused(partial(cls.from_pipe, given), "other parts", "same family")
    parts = {part: getattr(pipe, part) for part in pipe.parts}
    for wrong in ({**parts, "unet": None}, {**parts, "text_encoder_2": None}, {**parts, "x": 1},
                  {key: parts[key] for key in other.parts}):
        with pytest.raises(TypeError, match="StableDiffusionXLPipeline got the parts"):
            refsd.StableDiffusionXLPipeline(backend="numpy", **wrong)
    assert refsd.StableDiffusionXLPipeline(backend="numpy", **parts).force_zeros_for_empty_prompt
    refused(lambda: refsd.StableDiffusionXLPipeline.from_pretrained(
        refsd.pipelines.loading.bundled_model(), text_encoder_2=pipe.text_encoder_2,
        backend="numpy"), "Take StableDiffusionPipeline", error=ModelError)
    refused(lambda: refsd.StableDiffusionPipeline.from_pretrained(
        text_encoder_2=pipe.text_encoder_2), "text_encoder_2")


def test_settings_are_the_models(base, refiner, refining, pipe, tmp_path):
    """Of model_index.json; None of a negative prompt is zeros only where it says so."""
    assert pipe.force_zeros_for_empty_prompt and not refining.force_zeros_for_empty_prompt
    index = base / "model_index.json"
    assert refsd.StableDiffusionXLImg2ImgPipeline.from_pipe(refining).text_encoder is None
    made = refsd.StableDiffusionXLPipeline.from_pipe(pipe, force_zeros_for_empty_prompt=False)
    assert not made.force_zeros_for_empty_prompt
    assert not refsd.StableDiffusionXLPipeline.from_pipe(made).force_zeros_for_empty_prompt
    none, empty = (pipe("red", negative_prompt=text, **STEPS).images for text in (None, ""))
    assert not np.array_equal(none, empty)
    assert np.array_equal(made("red", **STEPS).images, empty)
    assert json.loads(index.read_text()).keys() == {"_class_name"}


@pytest.mark.parametrize("value, wanted", [
    (True, True), (False, False), (None, False), ("false", ModelError), (0, ModelError)])
def test_a_setting_is_true_or_false(base, tmp_path, value, wanted):
    """null is false, as in diffusers; a text is not cast."""
    folder = shutil.copytree(base, tmp_path / "x")
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": value}
    (folder / "model_index.json").write_text(json.dumps(index))
    load = partial(refsd.StableDiffusionXLPipeline.from_pretrained, folder, backend="numpy")
    if wanted is ModelError:
        refused(load, "model_index.json: force_zeros_for_empty_prompt is", repr(value),
                "expected true or false", error=ModelError)
    else:
        assert load().force_zeros_for_empty_prompt is wanted


def test_a_networks_of_another_pipeline_replace_the_models(base, refiner, pipe):
    made = refsd.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        refiner, backend="numpy", text_encoder_2=pipe.text_encoder_2, vae=pipe.vae)
    assert made.vae is pipe.vae and made.text_encoder_2 is pipe.text_encoder_2
    refused(lambda: refsd.StableDiffusionXLPipeline.from_pretrained(
        base, backend="numpy", text_encoder=pipe.text_encoder_2),
        "text_encoder and text_encoder_2 give text of width 48, the UNet reads 40")
    made = refsd.StableDiffusionXLPipeline.from_pretrained(
        base, backend="numpy", text_encoder_2=pipe.text_encoder_2)
    assert np.array_equal(made("red", **STEPS).images, pipe("red", **STEPS).images)
    refused(lambda: refsd.StableDiffusionXLPipeline.from_pretrained(
        base, backend="numpy", text_encoder_2=pipe.vae), "text_encoder_2 is VAE")


def test_loading_arguments_of_diffusers(base):
    load = partial(refsd.StableDiffusionXLPipeline.from_pretrained, base, backend="numpy")
    load(add_watermarker=False, requires_aesthetics_score=False, tokenizer_2=None)
    refused(partial(load, add_watermarker=True), "no watermark")
    refused(partial(load, tokenizer_2=1), "set pipe.tokenizer_2")
    refused(partial(load, force_zeros_for_empty_prompt=False), "the pipeline's attribute")


def test_schedulers_are_taken_as_they_are(tmp_path, caplog):
    """diffusers replaces old options of Stable Diffusion 1's pipelines, of no other's."""
    old = {**tiny.SCHEDULER, "steps_offset": 0, "clip_sample": True}
    folder = tiny_xl.write_model(tmp_path / "x", scheduler=old)
    made = refsd.StableDiffusionXLPipeline.from_pretrained(folder, backend="numpy")
    assert made.scheduler.config.steps_offset == 0 and made.scheduler.config.clip_sample
    assert load_scheduler(folder).config.steps_offset == 1
    made = refsd.StableDiffusionXLPipeline.from_pretrained(
        folder, backend="numpy", scheduler=EulerDiscreteScheduler)
    assert made.scheduler.config.steps_offset == 0
    assert "older form" in caplog.text and caplog.text.count("older form") == 1


@pytest.mark.parametrize("options, words", [
    ({"prompt": None}, ["neither"]),
    ({"prompt_embeds": np.zeros((1, 16, 40))}, ["either prompt or prompt_embeds", "both"]),
    ({"prompt": None, "prompt_embeds": np.zeros((1, 16, 40))}, ["pooled_prompt_embeds"]),
    ({"prompt": None, "prompt_embeds": np.zeros((1, 16, 40)),
      "pooled_prompt_embeds": np.zeros((2, 12))}, ["pooled_prompt_embeds has shape (2, 12)"]),
    ({"prompt": None, "prompt_2": "x", "prompt_embeds": np.zeros((1, 16, 40)),
      "pooled_prompt_embeds": np.zeros((1, 12))}, ["prompt_2"]),
    ({"negative_prompt_embeds": np.zeros((1, 16, 40))}, ["negative_pooled_prompt_embeds"]),
    ({"negative_prompt": "a", "negative_prompt_embeds": np.zeros((1, 16, 40))},
     ["either negative_prompt or"]),
    ({"negative_prompt_embeds": np.zeros((1, 9, 40)),
      "negative_pooled_prompt_embeds": np.zeros((1, 12))}, ["(1, 9, 40)", "one shape"]),
    ({"prompt": ["a", "b"], "prompt_2": ["a"] * 3}, ["prompt_2 has 3 texts"]),
    ({"negative_prompt": ["a"] * 3}, ["negative_prompt has 3 texts"]),
    ({"original_size": 5}, ["original_size is 5"]),
    ({"target_size": (1, 2, 3)}, ["target_size"]),
    ({"crops_coords_top_left": None}, ["crops_coords_top_left"]),
    ({"negative_original_size": (-1, 2)}, ["negative_original_size[0] is -1"]),
    ({"denoising_end": 0}, ["denoising_end is 0"]),
    ({"denoising_end": 1.5}, ["denoising_end is 1.5"]),
    ({"denoising_end": 0.001}, ["no step comes before"]),
    ({"clip_skip": 2}, ["clip_skip is 2", "0 to 1"]),
    ({"aesthetic_score": 6.0}, ["aesthetic_score"]),
    ({"ip_adapter_image": 1}, ["ip_adapter_image"]),
    ({"callback_on_step_end_tensor_inputs": ["time_ids"]}, ["add_time_ids"]),
], ids=str)  # fmt: skip
def test_calls_that_are_refused(pipe, options, words):
    refused(lambda: pipe(**{"prompt": "red", **STEPS, **options}), *words)


@pytest.mark.parametrize("options, words", [
    ({"denoising_start": 0}, ["denoising_start is 0"]),
    ({"denoising_start": 1}, ["denoising_start is 1"]),
    ({"denoising_start": 0.9999}, ["no step comes after"]),
    ({"denoising_start": 0.6, "denoising_end": 0.6}, ["before the end"]),
    ({"aesthetic_score": "x"}, ["aesthetic_score is 'x'"]),
    ({"negative_aesthetic_score": -1}, ["negative_aesthetic_score is -1"]),
    ({"latents": np.zeros((2, 4, 4, 4)), "image": None, "strength": 1},
     ["latents has shape (2, 4, 4, 4)"]),
    ({"latents": np.zeros((4, 4, 4)), "image": None}, ["latents has shape (4, 4, 4)"]),
])
def test_calls_with_pictures_that_are_refused(refining, options, words):
    refused(lambda: refining(**{"prompt": "red", "image": PICTURE, **STEPS, **options}), *words)


def test_a_refiner_needs_a_picture(refiner):
    made = refsd.StableDiffusionXLPipeline.from_pretrained(refiner, backend="numpy")
    refused(lambda: made("red", **STEPS), "5 numbers", "StableDiffusionXLImg2ImgPipeline")


@pytest.mark.parametrize("change", [
    lambda pipe: setattr(pipe, "dialect", "a1111"), lambda pipe: setattr(pipe, "dialect", "comfy"),
    lambda pipe: pipe.load_textual_inversion("x.safetensors"),
    lambda pipe: pipe.unload_textual_inversion(),
])
def test_what_is_not_drawn_with_it_is_refused_by_name(pipe, change):
    refused(lambda: change(pipe), "not with StableDiffusionXLPipeline")
    pipe.dialect = "diffusers"


@pytest.mark.parametrize("options, word", [
    (["--compat", "a1111"], "dialect"), (["--hires-scale", "2"], "hires"),
    (["--control-net", "nowhere", "--control-image", "PICTURE"], "ControlNet"),
])
def test_what_is_refused_on_the_command_line(base, tmp_path, capfd, options, word):
    PICTURE.save(tmp_path / "p.png")
    options = [str(tmp_path / "p.png") if option == "PICTURE" else option for option in options]
    assert main(["red", "-m", str(base), "--backend", "numpy", "--steps", "2",
                 "-o", str(tmp_path / "x.png"), *options]) == 2
    assert f"{word}: not with StableDiffusionXLPipeline" in capfd.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_what_changes_nothing_is_said(pipe, refining, caplog):
    pictures = refsd.StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    painting = refsd.StableDiffusionXLInpaintPipeline.from_pipe(pipe)
    for drawing, options, said in [
        (painting, {"mask_image": PICTURE, "denoising_start": 0.5,
                    "latents": np.zeros((1, 4, 4, 4))}, "latents changes nothing"),
        (pipe, {"negative_prompt_2": "x"}, "negative_prompt_2 changes nothing"),
        (pipe, {"negative_pooled_prompt_embeds": np.zeros((1, 12))},
         "negative_pooled_prompt_embeds changes nothing"),
        (pipe, {"negative_target_size": (1, 2)}, "the negative sizes change nothing"),
        (pipe, {"prompt": ["a", "b"], "negative_original_size": (1, 2),
                "negative_target_size": (3, 4)}, "read in turns"),
        (pictures, {"aesthetic_score": 7}, "aesthetic_score changes nothing"),
        (pictures, {"negative_crops_coords_top_left": (1, 2)},
         "negative_crops_coords_top_left changes nothing"),
        (refining, {"target_size": (1, 2)}, "target_size changes nothing"),
        (refining, {"prompt_2": "x"}, "prompt_2 changes nothing: the refiner reads prompt"),
    ]:
        image = {} if drawing is pipe else {"image": PICTURE, "strength": 0.9}
        caplog.clear()
        drawing(**{"prompt": "red", **STEPS, **image, **options})
        assert said in caplog.text, options
    caplog.clear()
    pipe("red", prompt_2="nothing " * 40, **STEPS)
    assert caplog.text.count("dropped") == caplog.text.count("the prompt 2 is longer") == 1
    caplog.clear()
    pipe(["nothing " * 40] * 2, **STEPS)
    assert caplog.text.count("dropped") == caplog.text.count("the prompt is longer") == 1


def test_numbers_beside_the_text_are_rounded_as_the_model_computes(base):
    """A size of 1001 in bfloat16 is 1000, as in diffusers; the model reads it as float32."""
    seen = []
    made = refsd.StableDiffusionXLPipeline.from_pretrained(base, backend="numpy", dtype="bfloat16")

    def look(pipe, index, timestep, tensors):
        seen.append(to_float32(tensors["add_time_ids"]))

    made("red", **STEPS, original_size=(1001, 50), crops_coords_top_left=(1, 2),
         callback_on_step_end=look, callback_on_step_end_tensor_inputs=["add_time_ids"])
    assert seen[0].tolist() == [[1000, 50, 1, 2, 32, 32]]


def overflowing():
    """A VAE of float16's numbers, whose decoder's first layer reaches 1e5, and no other."""
    found = tiny.tensors("vae", config=tiny_xl.VAE)
    found["decoder.conv_in.weight"] *= 3e4
    return {name: array.astype("f2").astype("f4") for name, array in found.items()}


def test_a_decoder_that_overflows_in_float16(tmp_path, capfd):
    """Decoded in float32 where the config says so, as in diffusers; the audit names it."""
    folder = tiny_xl.write_model(tmp_path / "x", vae=overflowing())
    wide = refsd.StableDiffusionXLPipeline.from_pretrained(folder, backend="numpy")
    half = refsd.StableDiffusionXLPipeline.from_pretrained(folder, backend="numpy", dtype="float16")
    latents = half("red", **{**STEPS, "output_type": "latent"}).images
    assert latents.dtype == "float16"
    assert np.array_equal(half.to_output(latents, "np"), wide.to_output(latents, "np"))
    assert half.coder("decoder").dtype == "float32" == half.coder("encoder").dtype
    assert half.coder("decoder") is half.coder("decoder")
    assert all(leaf.nbytes <= 2 * leaf.size for leaf in [half.coder("decoder").tree["decoder"][
        "conv_in"]["weight"]])
    assert len(half.preview(latents, vae=True)) == 1
    both = [working_bytes(pipe, 2048, 2048, 1) for pipe in (wide, half)]
    half.vae.config = replace(half.vae.config, force_upcast=False)
    assert both[0] <= both[1] < 1.01 * both[0]  # of which NumPy makes arrays of float32
    assert both[1] > working_bytes(half, 2048, 2048, 1)
    call = ["red", "-m", str(folder), "--backend", "numpy", "--steps", "1", "-o",
            str(tmp_path / "x.png")]
    assert main([*call, "--dtype", "float16"]) == 0
    assert main([*call, "--audit"]) == 0
    said = capfd.readouterr().out
    assert "float16: the first to overflow is conv2d of vae.decoder.conv_in" in said
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    assert main([*call, "--dtype", "float16"]) == 3
    assert "decode: " in capfd.readouterr().err


def test_another_decoder_takes_the_place_of_the_one_in_float32(tmp_path):
    folder = tiny_xl.write_model(tmp_path / "x")
    half = refsd.StableDiffusionXLPipeline.from_pretrained(folder, backend="numpy", dtype="float16")
    first = half.coder("decoder")
    decoder = half.vae.tree["decoder"]["conv_out"]
    decoder["bias"] = decoder["bias"] + np.float16(1)
    assert half.coder("decoder") is not first
    half.vae.tiling = "exact"
    assert half.coder("decoder").tiling == "exact"
    bfloat = refsd.StableDiffusionXLPipeline.from_pretrained(folder, backend="numpy",
                                                             dtype="bfloat16")
    assert bfloat.coder("decoder") is bfloat.vae
    assert bfloat.coder("encoder").dtype == "float32"


def test_a_single_file_draws_as_its_folder(tmp_path, monkeypatch):
    """Its family says how prompts are padded, and what no negative prompt is."""
    words = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    for refiner, of_family in ((False, sdxl.SDXL), (True, sdxl.REFINER)):
        found = {part: config | (words if part.startswith("text") else {})
                 for part, config in tiny_xl.configs(refiner=refiner).items()}
        family = replace(of_family, configs=found)
        monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES[:2], family))
        tensors = {part: tiny.tensors(part, config=config) for part, config in found.items()}
        file = tmp_path / f"{refiner}.safetensors"
        write_safetensors(file, {key: value for part in found for key, value in to_ldm(
            part, tensors[part], found[part], family).items()})
        made = refsd.StableDiffusionXLImg2ImgPipeline.from_pretrained(file, backend="numpy")
        assert made.force_zeros_for_empty_prompt is not refiner
        assert made.tokenizer_2.pad_token_id == 0
        assert refiner or made.tokenizer.pad_token_id == 49407
        assert made.scheduler.config["_class_name"] == "EulerDiscreteScheduler"
        parts = {part: computes(part, found[part])(
            tensors_of(tensors[part]), getattr(made, part).config, "numpy") for part in found}
        again = refsd.StableDiffusionXLImg2ImgPipeline.from_pipe(made, **parts)
        asked = {"image": PICTURE, "strength": 1.0, **STEPS}
        assert np.array_equal(made("red", **asked).images, again("red", **asked).images)
        auto = refsd.AutoPipelineForImage2Image.from_pretrained(file, backend="numpy")
        assert type(auto) is refsd.StableDiffusionXLImg2ImgPipeline


def tensors_of(found):
    """A network's tree; a text encoder's begins below text_model."""
    tree = to_tree(found)
    return {**tree.pop("text_model", {}), **tree}


@pytest.mark.parametrize("name", ["lora_te2_text_projection", "text_encoder_2.text_projection",
                                  "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                                  "lora_te2_text_model_encoder_layers_0_mlp_fc1"])
def test_adapters_of_each_text_encoder(pipe, name):
    """The second one's projection too, which pictures of other models do not depend on."""
    network, wide, deep = (pipe.text_encoder, 32, 16) if "te1" in name else (
        pipe.text_encoder_2, *((12, 24) if "projection" in name else (32, 24)))
    before = pipe("red", **STEPS).images
    pipe.load_lora_weights({f"{name}.lora_down.weight": np.ones((2, deep), "f4"),
                            f"{name}.lora_up.weight": np.ones((wide, 2), "f4")})
    assert list(pipe.get_list_adapters()) == [
        "text_encoder" if network is pipe.text_encoder else "text_encoder_2"]
    assert not np.array_equal(pipe("red", **STEPS).images, before)
    pipe.unload_lora_weights()
    assert np.array_equal(pipe("red", **STEPS).images, before)


def test_adapters_on_the_command_line(base, tmp_path):
    """One weight of the tag is both text encoders'."""
    down, up = np.eye(2, 24, dtype="f4"), 9 * np.ones((24, 2), "f4")
    name = "lora_te2_text_model_encoder_layers_1_self_attn_out_proj"
    write_safetensors(tmp_path / "x.safetensors", {f"{name}.lora_down.weight": down,
                                                   f"{name}.lora_up.weight": up})
    call = ["-m", str(base), "--backend", "numpy", "--steps", "1", "-s", "7",
            "--lora-dir", str(tmp_path)]
    for number, prompt in enumerate(("red", "red <lora:x:0.5>", "red <lora:x:0.5:0>")):
        assert main([prompt, *call, "-o", str(tmp_path / f"{number}.png")]) == 0
    plain, half, both = (np.asarray(Image.open(tmp_path / f"{i}.png")) for i in range(3))
    assert np.array_equal(half, both) and not np.array_equal(half, plain)
    assert main(["repro", str(tmp_path / "1.png"), "-m", str(base), "--lora-dir",
                 str(tmp_path)]) == 0


def test_guidance_ends_and_begins_again(pipe):
    """Without guidance the model is asked of the last rows alone, with it of all."""
    scales = iter([1.0, 5.0, 5.0])

    def change(pipe, index, timestep, tensors):
        pipe._guidance_scale = next(scales)

    pipe("red", callback_on_step_end=change, **{**STEPS, "num_inference_steps": 3})


def test_a_saved_drawing_is_resumed_with_the_same_numbers(pipe, tmp_path):
    path, options = tmp_path / "state.safetensors", {**STEPS, "original_size": (50, 60)}
    whole = pipe("red", **options).images
    pipe("red", callback_on_step_end=SaveState(path, 1), **options)
    assert np.array_equal(pipe("red", resume=path, **options).images, whole)
    refused(lambda: pipe("red", resume=path, **{**options, "original_size": (50, 61)}),
            "saved by another request", "the prompt")


def test_whole_steps_of_a_sampler_of_two_predictions(refining):
    refining.scheduler = HeunDiscreteScheduler.from_config(refining.scheduler.config)
    seen = []

    def count(pipe, index, timestep, tensors):
        seen.append(timestep)

    for start in (0.3, 0.4, 0.5, 0.6, 0.7, 0.9999):
        seen.clear()
        refining("red", image=PICTURE, num_inference_steps=5, denoising_start=start, generator=7,
                 callback_on_step_end=count)
        assert len(seen) % 2 == 1, start  # pairs, and the last step, which is one prediction
    assert len(seen) == 1


def test_the_command_line_draws_and_draws_again(base, refiner, tmp_path, capfd):
    made, again = tmp_path / "a.png", tmp_path / "b.png"
    call = ["--backend", "numpy", "--steps", "2", "-s", "7"]
    assert main(["red", "-m", str(base), *call, "-o", str(made), "--cfg-scale", "5"]) == 0
    assert "Stable Diffusion XL" in capfd.readouterr().err
    pipe = refsd.StableDiffusionXLPipeline.from_pretrained(base, backend="numpy")
    own = pipe("red", num_inference_steps=2, generator=TorchGenerator(7)).images[0]
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(own))  # no -n: zeros
    assert main(["repro", str(made), "-m", str(base)]) == 0
    assert main(["red", "-m", str(refiner), *call, "-i", str(made), "-o", str(again)]) == 0
    assert main(["repro", str(again), "-m", str(refiner)]) == 0
    assert main(["red", "-m", str(refiner), *call]) == 2
    assert "StableDiffusionXLImg2ImgPipeline" in capfd.readouterr().err
