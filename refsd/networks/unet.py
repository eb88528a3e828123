"""The UNet's options, and the shapes of its tensors (diffusers' UNet2DConditionModel)."""

from collections.abc import Collection, Mapping
from typing import Any

from refsd.arguments import shown
from refsd.errors import ModelError
from refsd.networks.blocks import conv, linear, norm, resnet, transformer
from refsd.networks.network import (
    MAX_WIDTH,
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
    # of a level, or of each of its layers; the latter is of the way down alone
    "transformer_layers_per_block": (1, one_or_each(one_or_each(count))),
    "reverse_transformer_layers_per_block": (None, optional(each(one_or_each(count)))),
    "encoder_hid_dim": (None, only(None)),
    "encoder_hid_dim_type": (None, only(None)),
    "attention_head_dim": (8, one_or_each(integer(1, 1024))),
    "num_attention_heads": (None, only(None)),
    "dual_cross_attention": (False, only(False)),
    "use_linear_projection": (False, boolean),
    "class_embed_type": (None, only(None)),
    "addition_embed_type": (None, only(None, "text_time")),
    "addition_time_embed_dim": (None, optional(integer(2, MAX_WIDTH))),
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
    "projection_class_embeddings_input_dim": (None, optional(integer(1, 4 * MAX_WIDTH))),
    "attention_type": ("default", only("default", None)),
    "class_embeddings_concat": (False, only(False)),
    "mid_block_only_cross_attention": (None, only(None, False)),
    "cross_attention_norm": (None, only(None, False)),
    "addition_embed_type_num_heads": (64, anything),
}
# Options with a value for each level.
LISTS = ("down_block_types", "up_block_types", "layers_per_block", "attention_head_dim",
         "cross_attention_dim", "only_cross_attention", "transformer_layers_per_block",
         "reverse_transformer_layers_per_block")


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a UNet2DConditionModel."""
    widths = config["block_out_channels"]
    levels, first = len(widths), widths[0]
    layers = per_level(config["layers_per_block"], levels)
    time = config["time_embedding_dim"] or 4 * first

    time_embedding = {"linear_1": linear(time, first), "linear_2": linear(time, time)}
    if config["time_cond_proj_dim"]:
        time_embedding["cond_proj"] = linear(first, config["time_cond_proj_dim"], bias=False)
    down_blocks, mid_block, skips = way_down(config, time)

    up_blocks, channels = [], widths[-1]
    for up, kind in enumerate(config["up_block_types"]):
        i = levels - 1 - up
        block = {"resnets": []}
        for _ in range(layers[i] + 1):
            block["resnets"].append(resnet(channels + skips.pop(), widths[i], time))
            channels = widths[i]
        if kind.startswith("CrossAttn"):
            block["attentions"] = attentions(config, i, _depths_up(config, up, layers[i] + 1))
        if i > 0:
            block["upsamplers"] = [{"conv": conv(channels, channels)}]
        up_blocks.append(block)

    return {
        "conv_in": conv(first, config["in_channels"]),
        "time_embedding": time_embedding,
        **add_embedding(config, time),
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
    depths = per_level(config["transformer_layers_per_block"], levels)

    down_blocks, skips = [], [first]
    for i, kind in enumerate(config["down_block_types"]):
        inputs = [widths[max(i - 1, 0)]] + [widths[i]] * (layers[i] - 1)
        block = {"resnets": [resnet(c, widths[i], time) for c in inputs]}
        if kind.startswith("CrossAttn"):
            block["attentions"] = attentions(config, i, per_level(depths[i], layers[i]))
        skips += [widths[i]] * layers[i]
        if i < levels - 1:
            block["downsamplers"] = [{"conv": conv(widths[i], widths[i])}]
            skips.append(widths[i])
        down_blocks.append(block)

    deepest = widths[-1]
    mid_block = {"resnets": [resnet(deepest, deepest, time)]}
    if config["mid_block_type"] == "UNetMidBlock2DCrossAttn":
        mid_block["attentions"] = attentions(config, levels - 1, per_level(depths[-1], 1)[:1])
        mid_block["resnets"] *= 2
    return down_blocks, mid_block, skips


def attentions(config: Mapping[str, Any], level: int, depths: tuple[int, ...]) -> list[Any]:
    """The transformers of a level's layers, of so many blocks each."""
    widths = config["block_out_channels"]
    context = per_level(config["cross_attention_dim"], len(widths))[level]
    return [transformer(widths[level], context, config["use_linear_projection"], depth)
            for depth in depths]


def _depths_up(config: Mapping[str, Any], up: int, layers: int) -> tuple[int, ...]:
    """How many blocks the transformers of an up block's layers have; as on the way down, if unsaid.
    """
    levels = len(config["block_out_channels"])
    depths = config["reverse_transformer_layers_per_block"] or (
        per_level(config["transformer_layers_per_block"], levels)[::-1])
    return per_level(depths[up], layers)


def add_embedding(config: Mapping[str, Any], time: int) -> dict[str, Any]:
    """What a pooled text and time ids are read by, if there is such a thing."""
    if config["addition_embed_type"] is None:
        return {}
    reads = config["projection_class_embeddings_input_dim"]
    return {"add_embedding": {"linear_1": linear(time, reads), "linear_2": linear(time, time)}}


def fits(config: Mapping[str, Any], where: str) -> None:
    """ModelError for lists that differ in length, groups or heads that divide no width, and sizes
    that are not said."""
    check_levels(config, LISTS, where)
    check_groups(config, where)
    _check_depths(config, where)
    for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        if config["addition_embed_type"] is not None and config[name] is None:
            raise ModelError(f"{where}: {name} is null, expected the integer that an "
                             "addition_embed_type needs")
    widths = config["block_out_channels"]
    for wide, heads in zip(widths, per_level(config["attention_head_dim"], len(widths))):
        check_divides(config, "attention_head_dim", wide, heads, where)


def _check_depths(config: Mapping[str, Any], where: str) -> None:
    """ModelError where the transformers' depths are said for a wrong number of layers."""
    levels = len(config["block_out_channels"])
    layers = per_level(config["layers_per_block"], levels)
    depths = {"transformer_layers_per_block": layers,
              "reverse_transformer_layers_per_block": [n + 1 for n in reversed(layers)]}
    for name, wanted in depths.items():
        for found, many in zip(per_level(config.get(name), levels), wanted):
            if isinstance(found, (list, tuple)) and len(found) != many:
                raise ModelError(f"{where}: {name} has {shown(found)} for a level, expected "
                                 f"{many} entries, one for each of its layers")
    listed = any(isinstance(found, (list, tuple))
                 for found in per_level(config["transformer_layers_per_block"], levels))
    if listed and config.get("reverse_transformer_layers_per_block", ()) is None:
        raise ModelError(f"{where}: reverse_transformer_layers_per_block is null, expected a list: "
                         "transformer_layers_per_block is one for each layer")


def together(part: str, configs: Mapping[str, Mapping], elsewhere: Collection[str],
             where: str) -> None:
    """ModelError for text of another width than the encoders give, side by side.

    Not asked where one of them lies elsewhere.
    """
    widths = configs[part]["cross_attention_dim"]
    widths = set(widths) if isinstance(widths, (list, tuple)) else {widths}
    given = [config["hidden_size"] for name, config in configs.items()
             if name.startswith("text_encoder")]
    whole = not any(name.startswith("text_encoder") for name in elsewhere)
    if whole and given and widths != {sum(given)}:
        raise ModelError(
            f"{where}: the UNet reads text of width {', '.join(map(str, sorted(widths)))}, "
            f"the text encoder gives {sum(given)}. Give parts of one model"
        )


UNET = Network("UNet", ("UNet2DConditionModel",), ("diffusion_pytorch_model",),
               ("time_embedding.linear_1.weight",), OPTIONS, shapes,
               "refsd.pipelines.components:UNet", fits, together)
PARTS = {"unet": UNET}
