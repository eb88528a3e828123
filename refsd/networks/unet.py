"""The UNet's options, and the shapes of its tensors (diffusers' UNet2DConditionModel)."""

from collections.abc import Mapping
from typing import Any

from refsd.networks.blocks import conv, linear, norm, resnet, transformer
from refsd.networks.network import (
    Network,
    check_divides,
    check_groups,
    check_levels,
    count,
    each,
    one_or_each,
    only,
    per_level,
    silu,
    width,
)
from refsd.rules import anything, boolean, integer, number, optional

cross_down, cross_up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

OPTIONS = {
    "sample_size": (None, optional(one_or_each(integer(1, 4096)))),
    "in_channels": (4, count),
    "out_channels": (4, count),
    "center_input_sample": (False, boolean),
    "flip_sin_to_cos": (True, boolean),
    "freq_shift": (0, number(0, 1)),
    "down_block_types": (
        (cross_down, cross_down, cross_down, "DownBlock2D"),
        each(only(cross_down, "DownBlock2D")),
    ),
    "mid_block_type": (
        "UNetMidBlock2DCrossAttn",
        only("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    ),
    "up_block_types": (
        ("UpBlock2D", cross_up, cross_up, cross_up),
        each(only(cross_up, "UpBlock2D")),
    ),
    "only_cross_attention": (False, one_or_each(only(False))),
    "block_out_channels": ((320, 640, 1280, 1280), each(width)),
    "layers_per_block": (2, one_or_each(count)),
    "downsample_padding": (1, only(1)),
    "mid_block_scale_factor": (1, only(1)),
    "dropout": (0.0, anything),
    "act_fn": ("silu", silu),
    "norm_num_groups": (32, count),
    "norm_eps": (1e-5, number(1e-12, 1)),
    "cross_attention_dim": (1280, one_or_each(width)),
    "transformer_layers_per_block": (1, one_or_each(only(1))),
    "reverse_transformer_layers_per_block": (None, only(None)),
    "encoder_hid_dim": (None, only(None)),
    "encoder_hid_dim_type": (None, only(None)),
    "attention_head_dim": (8, one_or_each(integer(1, 1024))),
    "num_attention_heads": (None, only(None)),
    "dual_cross_attention": (False, only(False)),
    "use_linear_projection": (False, boolean),
    "class_embed_type": (None, only(None)),
    "addition_embed_type": (None, only(None)),
    "addition_time_embed_dim": (None, anything),
    "num_class_embeds": (None, only(None)),
    "upcast_attention": (False, boolean),
    "resnet_time_scale_shift": ("default", only("default")),
    "resnet_skip_time_act": (False, only(False)),
    "resnet_out_scale_factor": (1.0, only(1.0, None)),
    "time_embedding_type": ("positional", only("positional")),
    "time_embedding_dim": (None, optional(width)),
    "time_embedding_act_fn": (None, only(None)),
    "timestep_post_act": (None, only(None)),
    "time_cond_proj_dim": (None, optional(width)),
    "conv_in_kernel": (3, only(3)),
    "conv_out_kernel": (3, only(3)),
    "projection_class_embeddings_input_dim": (None, anything),
    "attention_type": ("default", only("default", None)),
    "class_embeddings_concat": (False, only(False)),
    "mid_block_only_cross_attention": (None, only(None, False)),
    "cross_attention_norm": (None, only(None, False)),
    "addition_embed_type_num_heads": (64, anything),
}
# Options with a value for each level.
LISTS = ("down_block_types", "up_block_types", "layers_per_block", "attention_head_dim",
         "cross_attention_dim", "only_cross_attention", "transformer_layers_per_block")


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a UNet2DConditionModel."""
    widths = config["block_out_channels"]
    levels, first = len(widths), widths[0]
    layers = per_level(config["layers_per_block"], levels)
    contexts = per_level(config["cross_attention_dim"], levels)
    as_linear = config["use_linear_projection"]
    time = config["time_embedding_dim"] or 4 * first

    time_embedding = {"linear_1": linear(time, first), "linear_2": linear(time, time)}
    if config["time_cond_proj_dim"]:
        time_embedding["cond_proj"] = linear(first, config["time_cond_proj_dim"], bias=False)
    down_blocks, mid_block, skips = way_down(config, time)

    up_blocks, channels = [], widths[-1]
    for i, kind in zip(reversed(range(levels)), config["up_block_types"]):
        block = {"resnets": []}
        for _ in range(layers[i] + 1):
            block["resnets"].append(resnet(channels + skips.pop(), widths[i], time))
            channels = widths[i]
        if kind.startswith("CrossAttn"):
            attentions = [transformer(channels, contexts[i], as_linear) for _ in block["resnets"]]
            block["attentions"] = attentions
        if i > 0:
            block["upsamplers"] = [{"conv": conv(channels, channels)}]
        up_blocks.append(block)

    return {
        "conv_in": conv(first, config["in_channels"]),
        "time_embedding": time_embedding,
        "down_blocks": down_blocks,
        **({"mid_block": mid_block} if config["mid_block_type"] else {}),
        "up_blocks": up_blocks,
        "conv_norm_out": norm(first),
        "conv_out": conv(config["out_channels"], first),
    }  # fmt: skip


def way_down(config: Mapping[str, Any], time: int) -> tuple[list, dict[str, Any], list[int]]:
    """The down blocks and the middle of a UNet or a ControlNet, and the channels of the skips."""
    widths = config["block_out_channels"]
    levels, first = len(widths), widths[0]
    layers = per_level(config["layers_per_block"], levels)
    contexts = per_level(config["cross_attention_dim"], levels)
    as_linear = config["use_linear_projection"]

    down_blocks, skips = [], [first]
    for i, kind in enumerate(config["down_block_types"]):
        inputs = [widths[max(i - 1, 0)]] + [widths[i]] * (layers[i] - 1)
        block = {"resnets": [resnet(c, widths[i], time) for c in inputs]}
        if kind.startswith("CrossAttn"):
            block["attentions"] = [transformer(widths[i], contexts[i], as_linear) for _ in inputs]
        skips += [widths[i]] * layers[i]
        if i < levels - 1:
            block["downsamplers"] = [{"conv": conv(widths[i], widths[i])}]
            skips.append(widths[i])
        down_blocks.append(block)

    deepest = widths[-1]
    mid_block = {"resnets": [resnet(deepest, deepest, time)]}
    if config["mid_block_type"] == "UNetMidBlock2DCrossAttn":
        mid_block["attentions"] = [transformer(deepest, contexts[-1], as_linear)]
        mid_block["resnets"] *= 2
    return down_blocks, mid_block, skips


def fits(config: Mapping[str, Any], where: str) -> None:
    """ModelError for lists that differ in length, and groups or heads that divide no width."""
    check_levels(config, LISTS, where)
    check_groups(config, where)
    widths = config["block_out_channels"]
    for wide, heads in zip(widths, per_level(config["attention_head_dim"], len(widths))):
        check_divides(config, "attention_head_dim", wide, heads, where)


UNET = Network("UNet", ("UNet2DConditionModel",), ("diffusion_pytorch_model",),
               ("time_embedding.linear_1.weight",), OPTIONS, shapes, fits)
