"""Families: recognised by their files, read under their names, and named nowhere else."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from weights_samples import TINY, refused, tiny_tensors

import refsd
from refsd import families
from refsd.errors import UsageError
from refsd.families import DEFAULT, FAMILIES, SD1, Location, recognise, sd3, sdxl
from refsd.families.sd2 import SD2
from refsd.models.config import CLIPTextConfig
from refsd.networks import shapes_of, validate
from refsd.pipelines.components import TextEncoder
from refsd.pipelines.loading import load_scheduler, load_tokenizer
from refsd.pipelines.single_file import scheduler_of_file
from refsd.schedulers import from_config
from refsd.weights import load_checkpoint, write_safetensors
from refsd.weights.header import TensorInfo, read_header
from refsd.weights.ldm import ldm_locations, to_ldm
from refsd.weights.model_index import family_of

CLIP = "cond_stage_model.model."
SMALL = {**TINY, "unet": {**TINY["unet"], "use_linear_projection": True,
                          "attention_head_dim": [2, 4]}}


@pytest.fixture
def small(monkeypatch):
    """Stable Diffusion 2 at the size of the tests' tiny model."""
    family = replace(SD2, configs=SMALL)
    monkeypatch.setattr(families, "FAMILIES", (SD1, family))
    return family


# Two text encoders, side by side; the second is OpenCLIP's, whole.
TWO = {
    "text_encoder": TINY["text_encoder"],
    "text_encoder_2": {**TINY["text_encoder"], "hidden_size": 8, "projection_dim": 6,
                       "architectures": ["CLIPTextModelWithProjection"]},
    "unet": {**TINY["unet"], "cross_attention_dim": 20}, "vae": TINY["vae"],
}  # fmt: skip


@pytest.fixture
def two(monkeypatch):
    """A family whose files hold two text encoders, at the size of the tests' tiny model."""
    family = replace(sdxl.SDXL, configs=TWO, text_width=20)
    monkeypatch.setattr(families, "FAMILIES", (SD1, SD2, family))
    return family


def tensors_of(component, config=None, seed=0):
    random = np.random.default_rng([seed, len(component)])
    shapes = shapes_of(component, config or SMALL[component])
    return {name: random.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def whole(family, **configs):
    found = {}
    for component in family.configs:
        config = configs.get(component, family.configs[component])
        found |= to_ldm(component, tensors_of(component, config), config, family)
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_tensor_has_a_location_of_its_own(family):
    for component in family.configs:
        locations = ldm_locations(component, family.configs[component], family)
        assert len(set(locations.values())) == len(locations)
        assert list(locations) == list(shapes_of(component, family.configs[component]))


# The published numbers; of the text encoder without OpenCLIP's last layer and its projection.
@pytest.mark.parametrize("component, parameters", [
    ("unet", 865_910_724), ("vae", 83_653_863), ("text_encoder", 340_387_840)])
def test_stable_diffusion_2_has_the_published_number_of_parameters(component, parameters):
    shapes = shapes_of(component, SD2.configs[component])
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


def test_a_location_is_a_part_of_a_tensor_or_lies_there_turned():
    stored = np.arange(12.0).reshape(6, 2)
    third, turned = Location("x", 1, 3), Location("x", transposed=True)
    other = Location("x", exchanged=True)
    assert third.shape((6, 2)) == (2, 2) and (third.take(stored) == stored[2:4]).all()
    assert np.shares_memory(third.take(stored), stored)
    assert turned.shape((6, 2)) == (2, 6) and (turned.take(stored) == stored.T).all()
    assert turned.take(stored).flags.c_contiguous
    assert other.shape((6, 2)) == (6, 2)
    assert (other.take(stored) == stored[[3, 4, 5, 0, 1, 2]]).all() and stored[0, 0] == 0
    assert (other.turned(other.take(stored)) == stored).all()
    assert third.shape((7, 2)) == (7, 2)  # no thirds: the check of shapes says so


def test_fused_and_transposed_tensors_are_read_apart(tmp_path, small, caplog):
    """q, k and v out of one matrix, the projection transposed; the unused last layer unsaid."""
    text = {**SMALL["text_encoder"], "architectures": ["CLIPTextModelWithProjection"],
            "projection_dim": 10}
    file = whole(small, text_encoder=text)
    q, k, v = (tensors_of("text_encoder", text)[
        f"text_model.encoder.layers.1.self_attn.{x}_proj.weight"] for x in "qkv")
    fused = CLIP + "transformer.resblocks.1.attn.in_proj_weight"
    assert (file[fused] == np.concatenate([q, k, v])).all()
    assert file[CLIP + "text_projection"].shape == (12, 10)
    last = {n.replace(".1.", ".2."): a for n, a in file.items() if ".resblocks.1." in n}
    write_safetensors(tmp_path / "x.safetensors", {**file, **last, CLIP + "logit_scale":
                                                   np.ones((), "f4")})
    parts = load_checkpoint(tmp_path / "x.safetensors", configs={**SMALL, "text_encoder": text})
    for name, array in tensors_of("text_encoder", text).items():
        assert (parts["text_encoder"].tensors[name] == array).all(), name
    assert not caplog.records


def test_what_is_wrong_with_a_fused_tensor_is_said(tmp_path, small):
    file, path = whole(small), tmp_path / "x.safetensors"
    fused = CLIP + "transformer.resblocks.1.attn.in_proj_bias"
    write_safetensors(path, {name: a for name, a in file.items() if name != fused})
    refused(lambda: load_checkpoint(path), "3 tensors missing", "layers.1.self_attn.q_proj.bias")
    write_safetensors(path, {**file, fused: np.zeros(37, "f4")})
    refused(lambda: load_checkpoint(path), "q_proj.bias is (37,), expected (12,)")


def test_a_file_of_two_text_encoders_is_read_apart(tmp_path, two, caplog):
    """Neither is taken for the other, though both have the names of one network somewhere."""
    file, path = whole(two), tmp_path / "x.safetensors"
    harmless = ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
                "conditioner.embedders.1.model.logit_scale", "denoiser.sigmas",
                "model.model_sampling.sigmas")
    write_safetensors(path, file | dict.fromkeys(harmless, np.ones(1, "f4")))
    parts = load_checkpoint(path)
    assert list(parts) == list(TWO) and not caplog.records
    for component, part in parts.items():
        for name, array in tensors_of(component, TWO[component]).items():
            assert (part.tensors[name] == array).all(), (component, name)

    mark = "conditioner.embedders.1.model.ln_final.bias"
    write_safetensors(path, {name: array for name, array in file.items()
                             if name == mark or ".embedders.1." not in name})
    refused(lambda: load_checkpoint(path), "no second text encoder in it", "text_encoder_2=",
            "--text-encoder-2")


@pytest.mark.parametrize("before", ["", "text_model."])
def test_a_second_text_encoder_from_a_file_of_its_own(tmp_path, two, before):
    """Such a file says nothing of itself: it has the names of any CLIP (clip_g.safetensors)."""
    file, other = tmp_path / "x.safetensors", tmp_path / "clip_g.safetensors"
    write_safetensors(file, {name: a for name, a in whole(two).items()
                             if not name.startswith("conditioner.embedders.1.model.t")})
    mine = tensors_of("text_encoder_2", TWO["text_encoder_2"], seed=1)
    write_safetensors(other, {before + name.removeprefix("text_model.")
                              if "text_model" in name else name: a for name, a in mine.items()})
    parts = load_checkpoint(file, replaced={"text_encoder_2": other})
    for name, array in mine.items():
        assert (parts["text_encoder_2"].tensors[name] == array).all(), name


WRITERS = {
    "diffusers' names": lambda name: None,
    "the training code's": lambda name: name,
    "the same, bare": lambda name: name.removeprefix("model.diffusion_model."),
}


def test_a_second_text_encoder_out_of_a_whole_clip(tmp_path, two):
    """Its config.json keeps the text encoder's inside; the projection belongs to it here."""
    file, folder = tmp_path / "x.safetensors", tmp_path / "clip"
    write_safetensors(file, whole(two))
    folder.mkdir()
    mine = tensors_of("text_encoder_2", TWO["text_encoder_2"], seed=1)
    write_safetensors(folder / "model.safetensors", mine)
    inner = {**TWO["text_encoder_2"], "architectures": None}
    (folder / "config.json").write_text(json.dumps(
        {"architectures": ["CLIPModel"], "model_type": "clip", "text_config": inner}))
    parts = load_checkpoint(file, replaced={"text_encoder_2": folder})
    assert parts["text_encoder_2"].tensors.keys() == mine.keys()


@pytest.mark.parametrize("written", WRITERS.values(), ids=WRITERS)
def test_a_unet_alone_is_of_the_family_that_reads_such_text(tmp_path, two, written):
    """As distilled ones are published: with the other parts from elsewhere it is a whole model."""
    file, rest = tmp_path / "x.safetensors", tmp_path / "rest.safetensors"
    unet = tensors_of("unet", TWO["unet"])
    found = {written(name): array for name, array in to_ldm("unet", unet, None, two).items()}
    write_safetensors(file, unet if None in found else found)
    write_safetensors(rest, whole(two))
    parts = load_checkpoint(file, replaced={part: rest for part in TWO if part != "unet"})
    assert parts.keys() == TWO.keys()
    for name, array in unet.items():
        assert (parts["unet"].tensors[name] == array).all(), name


def test_a_part_that_a_family_has_not_is_not_replaced(tmp_path, two):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, whole(two))
    refused(lambda: load_checkpoint(file, replaced={"text_encoder_3": file}),
            "Stable Diffusion XL, which has no text_encoder_3: leave it out", error=UsageError)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_scheduler_of_a_family_is_one_of_refsds(family):
    for config in (family.scheduler, *family.distilled.values()):
        scheduler = from_config(config)
        assert type(scheduler).__name__ == config["_class_name"]
        assert config.items() <= {"_class_name": config["_class_name"], **scheduler.config}.items()
    assert {*family.pads} <= {*family.tokenizers} and {*family.optional} <= {*family.networks}
    assert family.layouts.keys() == family.configs.keys()


@pytest.mark.parametrize("metadata, wanted, said", [
    ({}, sdxl.SCHEDULER, ""),
    ({"modelspec.architecture": "stable-diffusion-xl-turbo-v1"}, sdxl.DISTILLED["turbo"],
     "its metadata say that it is distilled: drawn with EulerAncestralDiscreteScheduler")])
def test_the_scheduler_of_a_distilled_model(tmp_path, two, caplog, metadata, wanted, said):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, whole(two), metadata)
    config = scheduler_of_file(path)
    assert config == {**wanted, "prediction_type": "epsilon"}
    assert said in caplog.text and bool(said) == bool(caplog.records)


def test_steps_along_straight_paths_predict_no_noise(tmp_path, two, monkeypatch):
    """What the file says of predictions is of another training."""
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    monkeypatch.setattr(families, "FAMILIES", (SD1, replace(two, scheduler=flow)))
    path = tmp_path / "x.safetensors"
    write_safetensors(path, whole(two), {"modelspec.prediction_type": "v"})
    assert scheduler_of_file(path) == flow


KEY = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize("name, shape, family", [
    (KEY, (320, 768), SD1), (KEY, (320, 1024), SD2), (KEY, (320, 12), DEFAULT),
    (f"state_dict.{CLIP}positional_embedding", (77, 12), SD2),
    ("pos_embed.pos_embed", (1, 36, 8), sd3.SD3),  # of a transformer alone, diffusers' name
    ("cond_stage_model.transformer.text_model.final_layer_norm.bias", (12,), DEFAULT)])
def test_a_file_is_recognised_by_its_names_or_the_width_of_its_text(name, shape, family):
    assert recognise({name: TensorInfo("F32", shape, 0, 0)}) is family


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_other_family_takes_its_files(family):
    """A file of all its tensors is recognised as its own."""
    found = {}
    for component, config in family.configs.items():
        shapes = shapes_of(component, config)
        for name, location in ldm_locations(component, config, family).items():
            found[location.name] = TensorInfo("F32", shapes[name], 0, 0)
    assert recognise(found) is family


THREE, SECOND = ("text_encoder", "unet", "vae"), ("text_encoder_2", "unet", "vae")


@pytest.mark.parametrize("parts, width, family", [
    (THREE, 768, SD1), (THREE, 1024, SD2), (THREE, None, SD1),
    ((*THREE, "text_encoder_2"), 2048, sdxl.SDXL), ((*THREE, "text_encoder_2"), 9, sdxl.SDXL),
    (THREE, 2048, sdxl.SDXL), (SECOND, 1280, sdxl.REFINER), (SECOND, 9, sdxl.REFINER),
    (("text_encoder", "text_encoder_2", "transformer", "vae"), None, sd3.SD3)])
def test_a_folder_is_of_the_family_of_its_parts(tmp_path, parts, width, family):
    """Where two have as many, by the width of the text; a model may lack a part, which is said."""
    for part in parts:
        (tmp_path / part).mkdir()
    if width:
        (tmp_path / "unet" / "config.json").write_text(f'{{"cross_attention_dim": {width}}}')
    assert family_of(tmp_path) is family


MARKERS = {
    "nothing": ({}, None, "v_prediction", "its family alone (Stable Diffusion 2.x)"),
    "the base model's step": ({"global_step": np.int64(875_000)}, None, "epsilon", "global_step"),
    "another step": ({"global_step": np.int64(140_000)}, None, "v_prediction", "its family alone"),
    "metadata": ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", "its metadata"),
}  # fmt: skip


@pytest.mark.parametrize("markers, metadata, prediction, why", MARKERS.values(), ids=MARKERS)
def test_what_is_predicted_is_v_unless_the_file_says_noise(tmp_path, caplog, markers, metadata,
                                                           prediction, why):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {KEY: np.zeros((1, 1024), "f4"), **{
        name: np.asarray(value) for name, value in markers.items()}}, metadata)
    config = load_scheduler(file).config
    assert (config["_class_name"], config["prediction_type"]) == ("DDIMScheduler", prediction)
    assert f"predicts {prediction}, says " in caplog.text and why in caplog.text
    assert load_scheduler(file, None, "sample").config["prediction_type"] == "sample"


def test_prompts_are_padded_as_the_family_pads(tmp_path):
    file = tmp_path / "x.safetensors"
    for width, part, pad in (
            (768, "text_encoder", 49407), (1024, "text_encoder", 0), (2048, "text_encoder", 49407),
            (2048, "text_encoder_2", 0), (1280, "text_encoder_2", 0), (None, "text_encoder", 49407),
            (None, "text_encoder_2", 0)):
        write_safetensors(file, {KEY if width else "pos_embed.pos_embed":
                                 np.zeros((1, width or 1), "f4")})
        config = CLIPTextConfig.from_json(validate("text_encoder", SD1.configs["text_encoder"]))
        tree = {"embeddings": {"token_embedding": {"weight": np.zeros((49408, 1))}}}
        encoder = TextEncoder(tree, config, "numpy")
        assert load_tokenizer(file, part, encoder).pad_token_id == pad


def test_a_text_encoder_that_replaces_a_files_is_of_the_files_family(tmp_path, small):
    """It lies in a file that says nothing of itself."""
    file, other = tmp_path / "x.safetensors", tmp_path / "text.safetensors"
    write_safetensors(file, whole(small))
    write_safetensors(other, tiny_tensors("text_encoder", seed=1))
    parts = load_checkpoint(file, replaced={"text_encoder": other})
    for name, array in tiny_tensors("text_encoder", seed=1).items():
        assert (parts["text_encoder"].tensors[name] == array).all()
    assert read_header(file).tensors.keys() == whole(small).keys()


# A family's name: Stable Diffusion 1.5 is a model's, which golden suites and contracts are of.
FAMILY = re.compile(r"(stable diffusion|\bsd)[ _]?[123](\.x|\b(?!\.\d))|sdxl|\bflux\b|openclip",
                    re.IGNORECASE)
EXPLAINED = {"cli/tokenize.py": 1}  # a help text


def test_nothing_outside_names_a_family():
    package = Path(refsd.__file__).parent
    named = {}
    for path in package.rglob("*.py"):
        lines = [line for line in path.read_text().splitlines() if FAMILY.search(line)]
        if lines and path.parent.name != "families":
            named[path.relative_to(package).as_posix()] = lines
    assert {path: len(lines) for path, lines in named.items()} == EXPLAINED, named
