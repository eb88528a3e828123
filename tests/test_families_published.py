"""What the published single files are, by their tensors' names and shapes (tests/published.py)."""

import math
from pathlib import Path

import pytest
from published import published

from refsd.errors import ModelError
from refsd.families import SD1, other_family, recognise, sd2, sd3, sdxl
from refsd.networks import shapes_of
from refsd.weights.header import Header, TensorInfo
from refsd.weights.ldm import ldm_locations
from refsd.weights.names import without_kernel
from refsd.weights.plan import plan_file

PREFIX = "model.diffusion_model."
# What the published config.json of each has, that the other two have not.
OWN = {
    "sd3_medium": {},
    "sd3.5_medium": {"qk_norm": "rms_norm", "pos_embed_max_size": 384,
                     "dual_attention_layers": list(range(13))},
    "sd3.5_large": {"qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38,
                    "caption_projection_dim": 2432},
}  # fmt: skip


# Of OpenCLIP's text encoder the last layer, whose output the UNet does not read, and more.
LAST = {f"transformer.resblocks.23.{name}" for name in (
    "ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight",
    "attn.out_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias")} | {"text_projection", "logit_scale"}
# List, family and part -> the tensors of the list that are not read.
PARTS = {
    ("sd1", "SD1", "text_encoder"): {"text_model.embeddings.position_ids"},
    ("sd1", "SD1", "unet"): set(),
    ("vae_4_channels", "SD1", "vae"): set(),
    ("sd2", "SD2", "text_encoder"): LAST,
    ("sd2", "SD2", "unet"): set(),
    ("vae_4_channels", "SD2", "vae"): set(),
    ("sdxl_base", "SDXL", "unet"): set(),
    ("sdxl_refiner", "REFINER", "unet"): set(),
    ("sdxl_base", "SDXL", "text_encoder"): {"text_model.embeddings.position_ids"},
    ("sdxl_base", "SDXL", "text_encoder_2"): {"logit_scale"},
    ("sdxl_refiner", "REFINER", "text_encoder_2"): {"logit_scale"},
    ("vae_4_channels", "SDXL", "vae"): set(),
    ("vae_4_channels", "REFINER", "vae"): set(),
    ("vae_16_channels", "SD3", "vae"): set(),
    ("sd3_text_encoders", "SD3", "text_encoder"): set(),
    ("sd3_text_encoders", "SD3", "text_encoder_2"): set(),
    ("sd3_text_encoders", "SD3", "text_encoder_3"): {"encoder.embed_tokens.weight"},
    ("sd3_medium", "SD3", "transformer"): set(),
    ("sd3.5_medium", "SD3", "transformer"): set(),
    ("sd3.5_large", "SD3", "transformer"): set(),
}  # fmt: skip


def infos(shapes, prefix=""):
    return {name.removeprefix(prefix): TensorInfo("F16", shape, 0, 0)
            for name, shape in shapes.items() if name.startswith(prefix)}


@pytest.mark.parametrize("file, family, part", PARTS)
def test_every_tensor_of_a_published_file_is_used_exactly_once(file, family, part):
    """In the shape that the network has: what refsd plans a file by is all that it holds."""
    unused, listed = PARTS[file, family, part], published(file)
    family = {"SD1": SD1, "SD2": sd2.SD2, "SD3": sd3.SD3}.get(family) or getattr(sdxl, family)
    layout, config = family.layouts[part], family.configs[part]
    stored = infos(listed, layout.prefix)
    config = config if layout.adapt is None else layout.adapt(config, stored)
    found, shapes = ldm_locations(part, config, family), shapes_of(part, config)
    for name, location in found.items():
        there = location.shape(listed[location.name])
        assert without_kernel(name, there) == shapes[name], name
    counts = {location.name: location.parts for location in found.values()}
    assert sorted((location.name, location.part) for location in found.values()) == sorted(
        (name, i) for name, count in counts.items() for i in range(count))
    assert {layout.prefix + name for name in stored} - counts.keys() == {
        layout.prefix + name for name in unused}


@pytest.mark.parametrize("lists, prefixes, name", [
    (("sd1", "vae_4_channels"), ("",), "Stable Diffusion 1.x"),
    (("sd2", "vae_4_channels"), ("", "model.", "cond_stage_model."), "Stable Diffusion 2.x"),
    (("sdxl_base", "vae_4_channels"), ("", "model.", "conditioner.embedders.1."),
     "Stable Diffusion XL"),
    (("sdxl_refiner", "vae_4_channels"), ("", "model.", "conditioner."),
     "Stable Diffusion XL refiner"),
    (("sd3_medium", "vae_16_channels"), ("", "model."), "Stable Diffusion 3"),
    (("sd3.5_medium", "vae_16_channels", "sd3_text_encoders"),
     ("", "model.", "text_encoders.t5xxl."), "Stable Diffusion 3"),
    (("sd3.5_large",), ("",), "Stable Diffusion 3"),
], ids=lambda found: found[0] if isinstance(found, tuple) else None)
@pytest.mark.parametrize("outer", ["", "state_dict."])
def test_the_published_files_are_recognised(lists, prefixes, name, outer):
    """Whole, or one network alone; nothing else claims them."""
    whole = published(*lists)
    for prefix in prefixes:
        part = {outer + tensor: shape for tensor, shape in whole.items()
                if tensor.startswith(prefix)}
        assert recognise(infos(part)).name == name
    assert other_family(infos(whole)) == ""


@pytest.mark.parametrize("file", OWN)
def test_norms_that_scale_and_shift_alone_lie_exchanged(file):
    """The last one's, and that of the text in the last block: the shift stands first there."""
    config = sd3.TRANSFORMER | OWN[file]
    found = ldm_locations("transformer", config, sd3.SD3)
    last = f"transformer_blocks.{config['num_layers'] - 1}.norm1_context.linear."
    assert {name for name, location in found.items() if location.exchanged} == {
        before + leaf for before in (last, "norm_out.linear.") for leaf in ("weight", "bias")}


@pytest.mark.parametrize("lists, unread", [
    (("sd1", "vae_4_channels"), 1), (("sd2", "vae_4_channels"), len(LAST)),
    (("sdxl_base", "vae_4_channels"), 2), (("sdxl_refiner", "vae_4_channels"), 1),
    *(((name, "vae_16_channels", "sd3_text_encoders"), 1) for name in OWN),
], ids=lambda found: found[0] if isinstance(found, tuple) else None)
def test_a_published_file_is_planned_whole(monkeypatch, caplog, lists, unread):
    """Every part of its family, from every tensor but those that none has, without a word."""
    tensors = infos(published(*lists))
    wanted = recognise(tensors).networks
    tensors |= infos({"text_encoders.clip_l.logit_scale": ()})  # as ComfyUI adds it
    header = Header("x.safetensors", tensors, {}, 0, ())
    monkeypatch.setattr("refsd.weights.plan.read_header", lambda path: header)
    plans = plan_file(Path("x.safetensors"))
    assert {*plans} == {*wanted} and not caplog.records
    read = {source.location.name for plan in plans.values() for source in plan.sources.values()}
    assert read < tensors.keys() and len(tensors) - 1 - len(read) == unread


def test_a_file_without_text_encoders_is_planned_where_they_come_from_elsewhere(monkeypatch):
    """T5 is no more asked for than where the file of all parts lacks it."""
    header = Header("x.safetensors", infos(published("sd3_medium", "vae_16_channels")), {}, 0, ())
    monkeypatch.setattr("refsd.weights.plan.read_header", lambda path: header)
    with pytest.raises(ModelError, match="no text encoder in it, only the transformer and the VAE"):
        plan_file(Path("x.safetensors"))
    plans = plan_file(Path("x.safetensors"), without=("text_encoder", "text_encoder_2"))
    assert {*plans} == {"transformer", "vae"}

    header.tensors.clear()
    header.tensors.update(infos(published("sd3_text_encoders")))
    with pytest.raises(ModelError, match="no transformer in it.* Give the file that has it, and"):
        plan_file(Path("x.safetensors"))


@pytest.mark.parametrize("file", OWN)
def test_a_transformers_config_is_read_from_its_shapes(file):
    tensors = infos(published(file), PREFIX)
    assert sd3.transformer_config({**sd3.TRANSFORMER, "in_channels": 3, "patch_size": 1},
                                  tensors) == sd3.TRANSFORMER | OWN[file]


@pytest.mark.parametrize("name, shape", [
    ("pos_embed", (36864, 1536)), ("x_embedder.proj.weight", (1536, 16, 0, 0)),
    ("joint_blocks.first.x_block.attn.qkv.bias", (1,)), ("context_embedder.weight", None)])
def test_of_a_file_of_another_form_the_config_is_left_as_it_is(name, shape):
    shapes = published("sd3_medium")
    shapes.pop(PREFIX + name, None)
    shapes |= {} if shape is None else {PREFIX + name: shape}
    given = {**sd3.TRANSFORMER, "num_layers": 5}
    assert sd3.transformer_config(given, infos(shapes, PREFIX)) == given


@pytest.mark.parametrize("metadata, kind, spacing", [
    ({}, "EulerDiscreteScheduler", "leading"),
    ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "EulerDiscreteScheduler",
     "leading"),
    ({"modelspec.architecture": "stable-diffusion-xl-turbo-v1"}, "EulerAncestralDiscreteScheduler",
     "trailing"),
    ({"modelspec.title": "SDXL Lightning, 4 steps"}, "EulerDiscreteScheduler", "trailing"),
])
def test_a_distilled_sdxl_is_told_by_its_metadata(metadata, kind, spacing):
    found = sdxl.SDXL.scheduler_for(metadata)
    assert (found["_class_name"], found["timestep_spacing"]) == (kind, spacing)
    assert found["steps_offset"] == 1 and found["beta_end"] == 0.012


# What torch's modules of the published configs hold.
@pytest.mark.parametrize("config, component, parameters", [
    (sdxl.UNET, "unet", 2_567_463_684), (sdxl.REFINER_UNET, "unet", 2_259_526_660),
    (sdxl.VAE, "vae", 83_653_863), (sdxl.TEXT_ENCODER, "text_encoder", 123_060_480),
    (sdxl.TEXT_ENCODER_2, "text_encoder", 694_659_840),
    ({**sd2.UNET, "in_channels": 9}, "unet", 865_910_724 + 5 * 320 * 9),
])
def test_the_number_of_parameters(config, component, parameters):
    assert sum(math.prod(shape) for shape in shapes_of(component, config).values()) == parameters


# Published numbers that no shape shows; all their heads are 64 channels wide.
def test_what_no_shape_shows_is_as_published():
    assert (sdxl.VAE["scaling_factor"], sd3.VAE["scaling_factor"], sd3.VAE["shift_factor"]) == (
        0.13025, 1.5305, 0.0609)
    for config in (sdxl.UNET, sdxl.REFINER_UNET):
        assert [width // heads for width, heads in zip(
            config["block_out_channels"], config["attention_head_dim"])] == [64] * len(
                config["attention_head_dim"])
    for config, activation in ((sdxl.TEXT_ENCODER, "quick_gelu"), (sdxl.TEXT_ENCODER_2, "gelu")):
        assert config["hidden_size"] == 64 * config["num_attention_heads"]
        assert (config["hidden_act"], config["eos_token_id"]) == (activation, 2)
    assert sd3.TEXT_ENCODER_3["d_model"] == 64 * sd3.TEXT_ENCODER_3["num_heads"]
    assert sd3.SCHEDULER["shift"] == 3.0
