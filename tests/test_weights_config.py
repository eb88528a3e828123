"""config.json: what refsd does not compute is refused by name, and nothing is allocated for it."""

import json
import os

import numpy as np
import pytest
from weights_samples import TINY, refused, tiny_tensors, write_folder

from refsd.errors import ModelError
from refsd.networks import NETWORKS, shapes_of, validate
from refsd.weights import checkpoint, load_checkpoint, to_tree

BAD_CONFIGS = [
    ("unet", "sample_size", -1),
    ("unet", "block_out_channels", [10**9]),
    ("unet", "block_out_channels", [8] * 1000),
    ("unet", "block_out_channels", []),
    ("unet", "block_out_channels", 8),
    ("unet", "use_linear_projection", 2),
    ("unet", "layers_per_block", 10**9),
    ("unet", "layers_per_block", [1]),
    ("unet", "in_channels", -4),
    ("unet", "attention_head_dim", 3),
    ("unet", "attention_head_dim", None),
    ("unet", "norm_num_groups", 5),
    ("unet", "norm_num_groups", None),
    ("unet", "norm_eps", 1e308),
    ("unet", "down_block_types", ["DownBlock2D"]),
    ("unet", "down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
    ("unet", "up_block_types", ["os.system", "UpBlock2D"]),
    ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
    ("unet", "transformer_layers_per_block", 0),
    ("unet", "transformer_layers_per_block", [1, 2, 3]),
    ("unet", "transformer_layers_per_block", [[1, 1], 1]),  # of one layer
    ("unet", "transformer_layers_per_block", [[1], 1]),  # and none for the way up
    ("unet", "reverse_transformer_layers_per_block", 1),
    ("unet", "reverse_transformer_layers_per_block", [1]),
    ("unet", "reverse_transformer_layers_per_block", [1, [1, 2, 3]]),  # of two layers
    ("unet", "reverse_transformer_layers_per_block", [1, [1, 0]]),
    ("unet", "addition_time_embed_dim", 1),
    ("unet", "projection_class_embeddings_input_dim", "2816"),
    ("unet", "_class_name", "FluxTransformer2DModel"),
    ("unet", "_class_name", "os.system"),
    ("unet", "_class_name", 7),
    ("vae", "scaling_factor", 0),
    ("vae", "shift_factor", "0.1"),
    ("vae", "latent_channels", [4]),
    ("vae", "block_out_channels", [8, 16, 32]),
    ("vae", "sample_size", -1),
    ("vae", "_class_name", "AutoencoderTiny"),
    ("text_encoder", "hidden_size", 13),
    ("text_encoder", "hidden_size", 1 << 40),
    ("text_encoder", "vocab_size", 10**12),
    ("text_encoder", "hidden_act", "relu"),
    ("text_encoder", "eos_token_id", None),
    ("text_encoder", "model_type", "t5"),
    ("text_encoder", "architectures", ["T5EncoderModel"]),
]


@pytest.mark.parametrize("component, option, value", BAD_CONFIGS)
def test_bad_configs_are_refused_by_option(tmp_path, monkeypatch, component, option, value):
    monkeypatch.setattr(checkpoint, "iter_tensors", lambda *a, **k: pytest.fail("tensors read"))
    write_folder(tmp_path)
    file = tmp_path / component / "config.json"
    file.write_text(json.dumps({**TINY[component], option: value}))
    option = {"_class_name": "class", "architectures": "class"}.get(option, option)
    other = {"hidden_size": "num_attention_heads"}.get(option, option)
    with pytest.raises(ModelError, match=f"{option}|{other}"):
        load_checkpoint(tmp_path)
    refused(lambda: load_checkpoint(tmp_path), str(file))


CHANGES_NUMBERS = {
    "unet": {
        "only_cross_attention": True, "downsample_padding": 0, "mid_block_scale_factor": 2,
        "act_fn": "gelu", "encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj",
        "num_attention_heads": 8, "dual_cross_attention": True, "class_embed_type": "timestep",
        "addition_embed_type": "text", "num_class_embeds": 10, "resnet_skip_time_act": True,
        "resnet_time_scale_shift": "scale_shift", "resnet_out_scale_factor": 2.0,
        "time_embedding_type": "fourier", "time_embedding_act_fn": "silu",
        "timestep_post_act": "silu", "conv_in_kernel": 5, "conv_out_kernel": 1,
        "attention_type": "gated", "class_embeddings_concat": True, "cross_attention_norm": "layer",
        "mid_block_only_cross_attention": True, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    },
    "vae": {
        "act_fn": "relu", "latents_mean": [0, 0, 0, 0],
        "latents_std": [1, 1, 1, 1], "in_channels": 4, "out_channels": 1,
    },
    "text_encoder": {"hidden_act": "gelu_new", "model_type": "bert"},
}  # fmt: skip


@pytest.mark.parametrize(
    "component, option, value",
    [(c, *item) for c, options in CHANGES_NUMBERS.items() for item in options.items()],
)
def test_options_that_refsd_does_not_compute_are_refused_by_name(component, option, value):
    config = {**TINY[component], option: value}
    with pytest.raises(ModelError, match=f"{option} is .*, expected") as caught:
        validate(component, config)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("lacking", ["addition_time_embed_dim",
                                     "projection_class_embeddings_input_dim"])
@pytest.mark.parametrize("component", ["unet", "controlnet"])
def test_an_added_embedding_needs_its_sizes(component, lacking):
    whole = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4,
             "projection_class_embeddings_input_dim": 30}
    config = {key: value for key, value in TINY["unet"].items() if key != "_class_name"} | whole
    shapes = shapes_of(component, config)
    assert shapes["add_embedding.linear_1.weight"] == (32, 30)
    assert shapes["add_embedding.linear_2.weight"] == (32, 32)
    with pytest.raises(ModelError, match=f"{lacking} is null, expected the integer that an"):
        validate(component, {**config, lacking: None})


def test_the_way_up_has_the_depths_of_the_way_down_unless_it_says_its_own():
    levels = {"block_out_channels": [8, 16], "down_block_types": ["CrossAttnDownBlock2D"] * 2,
              "up_block_types": ["CrossAttnUpBlock2D"] * 2, "norm_num_groups": 4,
              "attention_head_dim": 2, "layers_per_block": 2}

    def depths(**options):
        found = to_tree(shapes_of("unet", {**levels, **options}))
        return [[len(one["transformer_blocks"]) for one in block["attentions"]]
                for block in (*found["down_blocks"], found["mid_block"], *found["up_blocks"])]

    assert depths() == [[1, 1], [1, 1], [1], [1] * 3, [1] * 3]
    assert depths(transformer_layers_per_block=4) == [[4, 4], [4, 4], [4], [4] * 3, [4] * 3]
    assert depths(transformer_layers_per_block=[1, 3]) == [[1, 1], [3, 3], [3], [3] * 3, [1] * 3]
    assert depths(transformer_layers_per_block=[[2, 1], [3, 5]],
                  reverse_transformer_layers_per_block=[[4, 1, 2], 6]) == [
        [2, 1], [3, 5], [3], [4, 1, 2], [6] * 3]


# The first T5, which is transformers' default, is not computed.
NEEDED = {"text_encoder_3": {"feed_forward_proj": "gated-gelu"}}


@pytest.mark.parametrize("component", NETWORKS)
def test_null_is_false_and_numbers_may_be_written_as_floats(component):
    needed = NEEDED.get(component, {})
    for name, (default, rule) in NETWORKS[component].options.items():
        if isinstance(default, bool):
            if name == "scale_attn_weights":  # false is refused, and null is false
                assert rule(True) == "" != rule(False)
                continue
            for value in (None, 0, 0.0, False):
                assert validate(component, needed | {name: value})[name] is False
        elif isinstance(default, int):
            found = validate(component, needed | {name: float(default)})[name]
            assert found == default and type(found) is int
    found = validate("unet", {**TINY["unet"], "block_out_channels": [8.0, 16.0]})
    assert found["block_out_channels"] == [8, 16]


@pytest.mark.parametrize("component, option, value", [
    ("unet", "act_fn", "SiLU"), ("vae", "act_fn", "Swish"), ("vae", "shift_factor", 0.0),
    ("unet", "only_cross_attention", [False, None]), ("text_encoder", "model_type", "clip"),
    ("unet", "down_block_types", ["UNetResCrossAttnDownBlock2D", "UNetResDownBlock2D"]),
])
def test_other_spellings_of_the_same_are_read(component, option, value):
    changed = validate(component, {**TINY[component], option: value})
    assert shapes_of(component, changed) == shapes_of(component, TINY[component])


@pytest.mark.parametrize("component, option", [
    ("unet", "sample_size"), ("unet", "num_attention_heads"), ("unet", "attention_type"),
    ("unet", "resnet_out_scale_factor"), ("unet", "time_cond_proj_dim"), ("vae", "sample_size"),
    ("vae", "shift_factor"), ("vae", "latents_mean"), ("text_encoder", "projection_dim"),
    ("text_encoder", "pad_token_id"), ("text_encoder", "model_type"),
    ("text_encoder", "architectures"),
])
def test_null_is_read_where_diffusers_reads_it(component, option):
    assert validate(component, {**TINY[component], option: None})[option] is None


@pytest.mark.parametrize("component", NETWORKS)
def test_every_default_is_accepted(component):
    found = validate(component, NEEDED.get(component, {}))
    assert found.keys() == NETWORKS[component].options.keys()


@pytest.mark.parametrize("channels, kind", [
    (5, "a depth model, its UNet takes 5 channels; refsd draws with none"),
    (7, "an upscaler, its UNet takes 7 channels; refsd draws with none"),
    (6, "the UNet takes 6 channels, the VAE's latents have 4. Give parts of one model")])
def test_models_that_read_what_refsd_has_not_are_named(tmp_path, channels, kind):
    tensors = tiny_tensors("unet")
    tensors["conv_in.weight"] = np.zeros((8, channels, 3, 3), "f4")
    write_folder(tmp_path, unet=tensors)
    (tmp_path / "unet" / "config.json").write_text(json.dumps(
        {**TINY["unet"], "in_channels": channels}))
    refused(lambda: load_checkpoint(tmp_path), str(tmp_path), kind)


def test_unknown_options_are_logged(caplog):
    validate("vae", {**TINY["vae"], "new_option": 1, "_diffusers_version": "9"})
    assert "ignoring unknown options ['new_option']" in caplog.text


def test_a_model_says_once_which_options_are_unknown(tmp_path, caplog):
    write_folder(tmp_path)
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps({**TINY["vae"], "new_option": 1, "_diffusers_version": "9"}))
    found = load_checkpoint(tmp_path)["vae"].config
    assert "new_option" not in found and found["_diffusers_version"] == "9"
    assert caplog.messages == [f"{file}: ignoring unknown options ['new_option']"]


def test_a_huge_config_is_refused_by_its_size(tmp_path):
    write_folder(tmp_path)
    file = tmp_path / "vae" / "config.json"
    os.truncate(file, 100_000_000)
    refused(lambda: load_checkpoint(tmp_path), str(file), "at most 1,048,576")


def test_a_config_of_too_many_parameters_is_refused():
    config = {"block_out_channels": [16_384] * 4, "layers_per_block": 8, "norm_num_groups": 32}
    refused(lambda: shapes_of("unet", config), "the config of the unet", "at most 17,179,869,184")
