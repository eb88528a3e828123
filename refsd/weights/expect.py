"""Every tensor that a model must have, from its config alone.

The shapes are written as the trees that refsd.models takes apart, so the two can be read side by
side. Planning a model on Specs cannot make them: models take their structure from what is present
(conv_shortcut where two widths differ), so names must be there before a model runs, and contracts
infer results from weights, not weights from results. Tests plan the models on these trees instead:
every tensor must be read, and every shape fit. This is the one description of the topology beside
the models; names of single files are walked out of these trees. Names and shapes are those of
diffusers 0.42.1 and transformers 5.23.0; the text encoder's carry the prefix "text_model." of the
published checkpoints.
"""

import math
from collections.abc import Mapping
from typing import Any

from refsd.errors import ModelError
from refsd.weights.tree import flatten
from refsd.weights.validate import per_level, validate

MAX_PARAMETERS = 1 << 34

Shape = tuple[int, ...]


def unet_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """name -> shape of a UNet2DConditionModel.

    Raises ModelError for a config that refsd does not compute, or beyond 2^34 parameters.
    """
    config = validate("unet", config)
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

    return flat("unet", {
        "conv_in": conv(first, config["in_channels"]),
        "time_embedding": time_embedding,
        "down_blocks": down_blocks,
        **({"mid_block": mid_block} if config["mid_block_type"] else {}),
        "up_blocks": up_blocks,
        "conv_norm_out": norm(first),
        "conv_out": conv(config["out_channels"], first),
    })  # fmt: skip


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


def vae_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """name -> shape of an AutoencoderKL; raises as `unet_shapes`."""
    config = validate("vae", config)
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    latent, last = config["latent_channels"], len(widths) - 1

    mid_block = {"resnets": [resnet(widths[-1], widths[-1]) for _ in range(2)]}
    if config["mid_block_add_attention"]:
        mid_block["attentions"] = [attention_over_pixels(widths[-1])]

    down_blocks = []
    for i, width in enumerate(widths):
        inputs = [widths[max(i - 1, 0)]] + [width] * (layers - 1)
        block = {"resnets": [resnet(c, width) for c in inputs]}
        if i < last:
            block["downsamplers"] = [{"conv": conv(width, width)}]
        down_blocks.append(block)

    up_blocks = []
    for i, width in reversed(list(enumerate(widths))):
        inputs = [widths[min(i + 1, last)]] + [width] * layers
        block = {"resnets": [resnet(c, width) for c in inputs]}
        if i > 0:
            block["upsamplers"] = [{"conv": conv(width, width)}]
        up_blocks.append(block)

    tree = {
        "encoder": {
            "conv_in": conv(widths[0], config["in_channels"]),
            "down_blocks": down_blocks,
            "mid_block": mid_block,
            "conv_norm_out": norm(widths[-1]),
            "conv_out": conv(2 * latent, widths[-1]),
        },
        "decoder": {
            "conv_in": conv(widths[-1], latent),
            "mid_block": mid_block,
            "up_blocks": up_blocks,
            "conv_norm_out": norm(widths[0]),
            "conv_out": conv(config["out_channels"], widths[0]),
        },
    }
    if config["use_quant_conv"]:
        tree["quant_conv"] = conv(2 * latent, 2 * latent, 1)
    if config["use_post_quant_conv"]:
        tree["post_quant_conv"] = conv(latent, latent, 1)
    return flat("vae", tree)


def clip_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """name -> shape of a CLIPTextModel; of one WithProjection where `architectures` says so."""
    config = validate("text_encoder", config)
    width, inner = config["hidden_size"], config["intermediate_size"]
    layer = {
        "self_attn": {f"{part}_proj": linear(width, width) for part in ("q", "k", "v", "out")},
        "layer_norm1": norm(width),
        "mlp": {"fc1": linear(inner, width), "fc2": linear(width, inner)},
        "layer_norm2": norm(width),
    }
    tree = {
        "text_model": {
            "embeddings": {
                "token_embedding": {"weight": (config["vocab_size"], width)},
                "position_embedding": {"weight": (config["max_position_embeddings"], width)},
            },
            "encoder": {"layers": [layer] * config["num_hidden_layers"]},
            "final_layer_norm": norm(width),
        }
    }
    if "CLIPTextModelWithProjection" in (config["architectures"] or ()):
        tree["text_projection"] = linear(config["projection_dim"] or width, width, bias=False)
    return flat("text_encoder", tree)


SHAPES = {"unet": unet_shapes, "vae": vae_shapes, "text_encoder": clip_shapes}


def linear(outputs: int, inputs: int, bias: bool = True) -> dict[str, Shape]:
    return {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {})


def conv(outputs: int, inputs: int, size: int = 3) -> dict[str, Shape]:
    return {"weight": (outputs, inputs, size, size), "bias": (outputs,)}


def norm(channels: int) -> dict[str, Shape]:
    return {"weight": (channels,), "bias": (channels,)}


def resnet(inputs: int, outputs: int, time: int | None = None) -> dict[str, Any]:
    tree = {"norm1": norm(inputs), "conv1": conv(outputs, inputs)}
    if time is not None:
        tree["time_emb_proj"] = linear(outputs, time)
    tree |= {"norm2": norm(outputs), "conv2": conv(outputs, outputs)}
    if inputs != outputs:
        tree["conv_shortcut"] = conv(outputs, inputs, 1)
    return tree


def attention(width: int, context: int, bias: bool = False) -> dict[str, Any]:
    return {
        "to_q": linear(width, width, bias),
        "to_k": linear(width, context, bias),
        "to_v": linear(width, context, bias),
        "to_out": [linear(width, width)],
    }


def attention_over_pixels(width: int) -> dict[str, Any]:
    return {"group_norm": norm(width), **attention(width, width, bias=True)}


def transformer(width: int, context: int, as_linear: bool) -> dict[str, Any]:
    block = {
        "norm1": norm(width),
        "attn1": attention(width, width),
        "norm2": norm(width),
        "attn2": attention(width, context),
        "norm3": norm(width),
        "ff": {"net": {"0": {"proj": linear(8 * width, width)}, "2": linear(width, 4 * width)}},
    }
    project = linear(width, width) if as_linear else conv(width, width, 1)
    return {
        "norm": norm(width),
        "proj_in": project,
        "transformer_blocks": [block],
        "proj_out": project,
    }


def flat(component: str, tree: dict[str, Any]) -> dict[str, Shape]:
    shapes = flatten(tree)
    total = sum(math.prod(shape) for shape in shapes.values())
    if total > MAX_PARAMETERS:
        raise ModelError(f"the config of the {component}: {total:,} parameters, at most "
                         f"{MAX_PARAMETERS:,} are allowed")
    return shapes
