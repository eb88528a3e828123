"""`refsd models`: what a model is made of, and what it lacks."""

import json
import shutil

import numpy as np
import pytest
import tiny
import tiny_three

from refsd.__main__ import main
from refsd.errors import ModelError
from refsd.families import SD1, published
from refsd.networks import shapes_of
from refsd.pipelines.gpt2_loading import bundled_gpt2
from refsd.pipelines.inventory import inventory, types
from refsd.weights import write_safetensors
from refsd.weights.header import read_header
from refsd.weights.ldm import ldm_locations, to_ldm
from refsd.weights.plan import Plan, Source


@pytest.fixture
def model(tmp_path):
    return tiny.write_model(tmp_path / "tiny")


def show(capfd, *args):
    capfd.readouterr()
    code = main(["models", *map(str, args)])
    said = capfd.readouterr()
    return code, said.out, said.err


def test_the_model_in_refsd(capfd):
    code, out, err = show(capfd)
    assert (code, err) == (0, "") and len(out.splitlines()) <= 20
    assert "for refsd.StableDiffusionPipeline" in out and "6,715,588" in out and "DDIM" in out


def test_every_part_with_its_numbers(model, capfd):
    code, out, _ = show(capfd, model, "--json")
    found = json.loads(out)
    assert code == 0 and found["family"] == SD1.name and found["problems"] == []
    assert found["parameters"] == 89_787 and found["bytes"] == 4 * 89_787
    parts = {part["part"]: part for part in found["parts"]}
    assert list(parts) == ["text_encoder", "unet", "vae"]
    assert parts["unet"] == {
        "part": "unet", "word": "UNet", "kind": "UNet2DConditionModel", "parameters": 52_004,
        "types": {"F32": 4 * 52_004}, "optional": False, "problem": "", "bytes": 4 * 52_004,
        "found": True}
    assert found["scheduler"] == "DDIMScheduler" and found["tokenizers"] == {"tokenizer": "its own"}


def test_types_are_counted_by_what_lies_on_the_disk(model):
    tensors = tiny.tensors("unet")
    halves = {name: array.astype("f2") if name.startswith("up_blocks.") else array
              for name, array in tensors.items()}
    write_safetensors(model / "unet" / "diffusion_pytorch_model.safetensors", halves)
    [unet] = [part for part in inventory(str(model)).parts if part.part == "unet"]
    assert unet.types == {kind: sum(array.nbytes for array in halves.values()
                                    if array.dtype == dtype)
                          for kind, dtype in (("F32", "f4"), ("F16", "f2"))}


def test_thirds_of_one_tensor_are_counted_once(tmp_path):
    """OpenCLIP's queries, keys and values lie in one tensor of a single file."""
    family, _ = published("sd2")
    config = {**family.configs["text_encoder"], "vocab_size": 8, "hidden_size": 8,
              "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    arrays = {name: np.zeros(shape, "f4")
              for name, shape in shapes_of("text_encoder", config).items()}
    file = tmp_path / "x.safetensors"
    write_safetensors(file, to_ldm("text_encoder", arrays, config, family))
    header, locations = read_header(file), ldm_locations("text_encoder", config, family)
    plan = Plan(config, {}, {name: Source(header, place) for name, place in locations.items()}, "")
    assert types(plan) == {"F32": sum(array.nbytes for array in arrays.values())}


def test_what_is_missing_and_wrong_is_said_part_for_part(model, capfd):
    shutil.rmtree(model / "vae")
    unet = tiny.tensors("unet")
    write_safetensors(model / "unet" / "diffusion_pytorch_model.safetensors",
                      unet | {"conv_in.bias": np.zeros(3, "f4")})
    for name in ("safety_checker", "extra"):
        (model / name).mkdir()
    (model / "extra" / "config.json").write_text("{}")
    (model / "notes").mkdir()  # no part of a model
    code, out, err = show(capfd, model)
    assert code == 3 and err == ""
    assert "there is no VAE in it" in out and "conv_in.bias is (3,), expected (8,)" in out
    assert "not used          extra, safety_checker" in out and "notes" not in out
    assert "refsd cannot use it" in out and "CLIPTextModel" in out


def test_a_sampler_that_refsd_has_not_is_a_problem_and_the_rest_is_shown(model, capfd):
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "RePaintScheduler"}))
    code, out, _ = show(capfd, model, "--json")
    found = json.loads(out)
    assert code == 3 and found["scheduler"] == "" and "RePaintScheduler" in found[
        "scheduler_problem"]
    assert found["parameters"] == 89_787


@pytest.mark.parametrize("channels, pipeline", [
    (4, "StableDiffusionPipeline"), (9, "StableDiffusionInpaintPipeline"),
    (8, "StableDiffusionInstructPix2PixPipeline")])
def test_the_pipeline_is_chosen_by_what_the_unet_reads(model, channels, pipeline):
    config = json.loads((model / "unet" / "config.json").read_text())
    (model / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": channels}))
    unet = tiny.tensors("unet")
    wide = unet["conv_in.weight"].repeat(3, axis=1)[:, :channels]
    write_safetensors(model / "unet" / "diffusion_pytorch_model.safetensors",
                      unet | {"conv_in.weight": wide})
    assert inventory(str(model)).pipeline == pipeline


def test_an_optional_part_may_be_absent(tmp_path):
    family, _ = published("sd3")
    assert family.optional == ("text_encoder_3",)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "text_encoder_2").mkdir()
    found = inventory(str(tmp_path))
    third = next(part for part in found.parts if part.part == "text_encoder_3")
    assert found.pipeline == family.pipelines["text"]
    assert third.optional and not third.found and not third.problem
    assert sum(bool(part.problem) for part in found.parts) == 4


def test_a_tokenizer_that_is_missing_is_a_problem(tmp_path, capfd):
    """T5's does not come with refsd; without T5 none is wanted."""
    model = tiny_three.write_model(tmp_path / "three")
    found = inventory(str(model))
    assert found.problems == [] and found.tokenizers == dict.fromkeys(
        ("tokenizer", "tokenizer_2", "tokenizer_3"), "its own")
    shutil.rmtree(model / "tokenizer_3")
    code, out, _ = show(capfd, model)
    assert code == 3 and "tokenizer_3       none that fits, see below" in out
    assert "problem: " in out and "text_encoder_3=None" in out and "T5EncoderModel" in out
    shutil.rmtree(model / "text_encoder_3")
    found = inventory(str(model))
    assert found.problems == [] and list(found.tokenizers) == ["tokenizer", "tokenizer_2"]


def test_files_that_are_no_model(tmp_path, capfd):
    lora = tmp_path / "lora.safetensors"
    write_safetensors(lora, {"lora_unet_x.lora_down.weight": np.zeros((2, 2), "f4")})
    code, out, err = show(capfd, lora)
    assert (code, out) == (3, "") and "a LoRA" in err and "refsd info" in err
    with pytest.raises(ModelError, match="none of a model's networks is in it"):
        inventory(str(tmp_path))
    code, _, err = show(capfd, tmp_path / "nothing")
    assert code == 2 and len(err.splitlines()) == 1


def test_a_model_that_writes(capfd):
    code, out, err = show(capfd, bundled_gpt2())
    assert (code, err) == (0, "") and "GPT2LMHeadModel" in out and "scheduler" not in out
