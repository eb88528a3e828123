"""Names: the tree of a checkpoint, older names, and the single files of Stable Diffusion 1.x."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_samples import TINY, entry, file_of, refused, tiny_tensors

from refsd.errors import ModelError, UsageError
from refsd.families import SD1
from refsd.networks import NETWORKS, shapes_of
from refsd.weights import flatten, load_checkpoint, to_tree, write_safetensors
from refsd.weights.ldm import ema_name, ldm_locations, to_ldm

# The tree.


def test_tree_of_names():
    a, b, c, d = (np.full(1, i) for i in range(4))
    tree = to_tree({"conv.weight": a, "blocks.1.x": c, "blocks.0.x": b, "net.2.w": d, "net.0.w": d})
    assert tree["conv"]["weight"] is a
    assert tree["blocks"] == [{"x": b}, {"x": c}]
    assert tree["net"] == {"2": {"w": d}, "0": {"w": d}}  # 1 is a dropout, which has no tensors


keys = st.text("abc012", min_size=1, max_size=2)
trees = st.recursive(
    st.integers(), lambda child: st.dictionaries(keys, child, min_size=1, max_size=4), max_leaves=12
)


@settings(deadline=None)
@given(tree=st.dictionaries(keys, trees, max_size=4))
def test_flatten_is_the_inverse_of_to_tree(tree):
    names = flatten(tree)
    assert flatten(to_tree(names)) == names


def test_names_that_contradict_each_other_are_refused():
    refused(lambda: to_tree({"a": 1, "a.b": 2}), "'a.b' lies below another")
    refused(lambda: to_tree({"a.b": 1, "a": 2}), "'a' is also the beginning")
    refused(lambda: to_tree({"." * 1000: 1}), "more than 64 levels")


# Older names.


def test_old_names_become_todays():
    mid = "decoder.mid_block.attentions.0."
    vae, text, unet = (NETWORKS[part].today for part in ("vae", "text_encoder", "unet"))
    assert vae(mid + "query.weight") == mid + "to_q.weight"
    assert vae(mid + "proj_attn.bias") == mid + "to_out.0.bias"
    assert vae(mid + "group_norm.bias") == mid + "group_norm.bias"
    assert text("final_layer_norm.bias") == "text_model.final_layer_norm.bias"
    assert text("text_projection.weight") == "text_projection.weight"
    assert text("text_model.embeddings.position_ids") is None
    assert unet("mid_block.attentions.0.key") == "mid_block.attentions.0.key"


@pytest.mark.parametrize("component", TINY)
def test_todays_names_stay(component):
    today = NETWORKS[component].today
    assert all(today(name) == name for name in shapes_of(component, TINY[component]))


# Single files.

# The structure of the published checkpoint, block by block: input_blocks and output_blocks count
# 12 each; level i of the VAE's decoder is counted from the finest in the file.
KNOWN = {
    "unet": {
        "conv_in.weight": "input_blocks.0.0.weight",
        "time_embedding.linear_1.bias": "time_embed.0.bias",
        "time_embedding.linear_2.weight": "time_embed.2.weight",
        "down_blocks.0.resnets.0.norm1.weight": "input_blocks.1.0.in_layers.0.weight",
        "down_blocks.0.resnets.1.time_emb_proj.bias": "input_blocks.2.0.emb_layers.1.bias",
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight":
            "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",
        "down_blocks.0.downsamplers.0.conv.bias": "input_blocks.3.0.op.bias",
        "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
        "down_blocks.2.downsamplers.0.conv.weight": "input_blocks.9.0.op.weight",
        "down_blocks.3.resnets.1.conv2.weight": "input_blocks.11.0.out_layers.3.weight",
        "mid_block.resnets.0.conv1.weight": "middle_block.0.in_layers.2.weight",
        "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
        "mid_block.resnets.1.norm2.bias": "middle_block.2.out_layers.0.bias",
        "up_blocks.0.resnets.2.conv1.bias": "output_blocks.2.0.in_layers.2.bias",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.2.upsamplers.0.conv.bias": "output_blocks.8.2.conv.bias",
        "up_blocks.3.attentions.2.norm.weight": "output_blocks.11.1.norm.weight",
        "conv_norm_out.bias": "out.0.bias",
        "conv_out.weight": "out.2.weight",
    },
    "vae": {
        "encoder.conv_in.weight": "encoder.conv_in.weight",
        "encoder.down_blocks.1.resnets.0.conv_shortcut.bias":
            "encoder.down.1.block.0.nin_shortcut.bias",
        "encoder.down_blocks.2.downsamplers.0.conv.bias": "encoder.down.2.downsample.conv.bias",
        "encoder.mid_block.resnets.1.norm1.weight": "encoder.mid.block_2.norm1.weight",
        "encoder.mid_block.attentions.0.to_q.weight": "encoder.mid.attn_1.q.weight",
        "encoder.conv_norm_out.weight": "encoder.norm_out.weight",
        "decoder.mid_block.attentions.0.to_out.0.bias": "decoder.mid.attn_1.proj_out.bias",
        "decoder.mid_block.attentions.0.group_norm.bias": "decoder.mid.attn_1.norm.bias",
        "decoder.up_blocks.0.resnets.2.conv1.weight": "decoder.up.3.block.2.conv1.weight",
        "decoder.up_blocks.0.upsamplers.0.conv.bias": "decoder.up.3.upsample.conv.bias",
        "decoder.up_blocks.3.resnets.0.conv_shortcut.weight":
            "decoder.up.0.block.0.nin_shortcut.weight",
        "decoder.conv_out.bias": "decoder.conv_out.bias",
        "quant_conv.weight": "quant_conv.weight",
        "post_quant_conv.bias": "post_quant_conv.bias",
    },
    "text_encoder": {
        "text_model.encoder.layers.11.mlp.fc2.bias": "text_model.encoder.layers.11.mlp.fc2.bias",
    },
}  # fmt: skip
PREFIX = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}


@pytest.mark.parametrize(
    "component, parameters",
    [("unet", 859_520_964), ("vae", 83_653_863), ("text_encoder", 123_060_480)],
)
def test_stable_diffusion_15_has_the_published_number_of_parameters(component, parameters):
    shapes = shapes_of(component, SD1.configs[component])
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


@pytest.mark.parametrize("component, count", [("unet", 686), ("vae", 248), ("text_encoder", 196)])
def test_names_of_stable_diffusion_15_are_a_bijection(component, count):
    names = ldm_locations(component, SD1.configs[component])
    assert len(names) == len(set(names.values())) == count
    for ours, theirs in KNOWN[component].items():
        assert names[ours].name == PREFIX[component] + theirs
    if component == "unet":
        blocks = {name.split(".")[3] for name, *_ in names.values() if "output_blocks" in name}
        assert blocks == {str(i) for i in range(12)}


def single_file(path, *, dtype="f4", **changes):
    """The tiny model as a single file; changes: name=None drops a prefix, other names are added."""
    tensors = {}
    for component, config in TINY.items():
        tensors |= to_ldm(component, tiny_tensors(component, dtype=dtype), config)
    tensors["alphas_cumprod"] = np.ones(1000, "f4")
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(8)[None]
    for name, value in changes.items():
        if value is None:
            tensors = {n: t for n, t in tensors.items() if not n.startswith(PREFIX[name])}
        else:
            tensors |= value
    write_safetensors(path, tensors)
    return path


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_a_single_file_gives_the_tensors_it_was_made_of(tmp_path, dtype):
    path = single_file(tmp_path / "x.safetensors", dtype=dtype)
    found = load_checkpoint(path, configs=TINY)
    for component in TINY:
        expected = tiny_tensors(component, dtype=dtype)
        assert list(found[component].tensors) == list(expected)
        for name, array in expected.items():
            mine = found[component].tensors[name]
            assert mine.dtype == np.float32 and (mine == array).all() and mine.shape == array.shape
    assert found["unet"].tree["conv_in"]["weight"] is found["unet"].tensors["conv_in.weight"]


def test_the_text_encoder_is_found_without_its_prefix(tmp_path):
    with_prefix = to_ldm("text_encoder", tiny_tensors("text_encoder"), TINY["text_encoder"])
    bare = {name.replace("text_model.", ""): t for name, t in with_prefix.items()}
    path = single_file(tmp_path / "x.safetensors", text_encoder=None, more=bare)
    found = load_checkpoint(path, configs=TINY)["text_encoder"]
    for name, array in tiny_tensors("text_encoder").items():
        assert (found.tensors[name] == array).all()


def test_moving_averages_are_taken_when_asked(tmp_path):
    names = to_ldm("unet", tiny_tensors("unet", seed=1), TINY["unet"])
    averages = {ema_name(name): array for name, array in names.items()}
    averages |= {"model_ema.decay": np.ones(1, "f4"), "model_ema.num_updates": np.ones(1, "i4")}
    path = single_file(tmp_path / "x.safetensors", more=averages)
    for ema, seed in ((False, 0), (True, 1)):
        found = load_checkpoint(path, configs=TINY, ema=ema)
        for name, array in tiny_tensors("unet", seed=seed).items():
            assert (found["unet"].tensors[name] == array).all()
        bias = found["vae"].tensors["quant_conv.bias"]
        assert (bias == tiny_tensors("vae")["quant_conv.bias"]).all()
    assert ema_name("model.diffusion_model.input_blocks.0.0.weight") == (
        "model_ema.diffusion_modelinput_blocks00weight"
    )


def test_moving_averages_that_are_absent_are_refused(tmp_path):
    path = single_file(tmp_path / "x.safetensors")
    refused(lambda: load_checkpoint(path, configs=TINY, ema=True), str(path), "no moving averages",
            error=UsageError)  # fmt: skip


@pytest.mark.parametrize("component", ["vae", "text_encoder"])
def test_a_single_file_without_a_component_is_refused(tmp_path, component):
    path = single_file(tmp_path / "x.safetensors", **{component: None})
    option = f"--{component.replace('_', '-')} PATH"
    refused(lambda: load_checkpoint(path, configs=TINY), str(path), "there is no", option)


def test_unknown_tensors_of_a_single_file_are_logged(tmp_path, caplog):
    path = single_file(tmp_path / "x.safetensors",
                       more={"first_stage_model.lost.w": np.ones(2, "f4")})  # fmt: skip
    load_checkpoint(path, configs=TINY)
    assert "ignoring 1 tensor unexpected: first_stage_model.lost.w" in caplog.text
    assert caplog.text.count("ignoring") == 1


UNET = "model.diffusion_model."
KEY = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FAMILIES = {
    "Flux of diffusers' names": ({"single_transformer_blocks.0.x": (1,)}, "Flux"),
    "GPT-2": ({"h.0.attn.c_attn.weight": (24, 8)}, "GPT-2, whose folder refsd text -m takes"),
    "GPT-2 with its head": ({"transformer.h.0.x": (1,)}, "GPT-2, whose folder"),
    "Flux": ({UNET + "double_blocks.0.x": (1,)}, "Flux"),
    "video": ({KEY: (320, 1024), "conditioner.embedders.0.open_clip.model.x": (1,)}, "Video"),
    "depth": (
        {KEY: (320, 768), UNET + "input_blocks.0.0.weight": (320, 5, 3, 3)},
        "a depth model",
    ),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "a ControlNet"),
    "LoRA": ({"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}, "a LoRA"),
    "diffusers LoRA": ({"unet.down_blocks.0.to_k.lora_A.weight": (4, 320)}, "a LoRA"),
    "a component": ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "there is no UNet in it"),
    "something else": ({"bert.embeddings": (1,)}, "no Stable Diffusion checkpoint", "bert"),
    "nothing": ({}, "it holds no tensor"),
}


@pytest.mark.parametrize("shapes, words", [(s, w) for s, *w in FAMILIES.values()], ids=FAMILIES)
def test_other_families_are_named(tmp_path, shapes, words):
    header, end = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        header[name] = entry("U8", shape, (end, end + size))
        end += size
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(header, b"\0" * end))
    refused(lambda: load_checkpoint(path), str(path), *words)


def test_tensors_without_one_cannot_be_written():
    refused(lambda: to_ldm("vae", {"quant_conv.bias": 0}, TINY["vae"]), "of the vae missing")


def test_two_tensors_of_one_name_are_refused():
    from refsd.weights.names import canonical_names

    mid = "encoder.mid_block.attentions.0."
    both = [mid + "query.weight", mid + "to_q.weight"]
    with pytest.raises(ModelError, match="are the same tensor"):
        canonical_names(NETWORKS["vae"], both, "model")
