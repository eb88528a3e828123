"""The shapes of the blocks that the networks are made of, as refsd.models takes them apart."""

from typing import Any

from refsd.networks.network import Shape


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


def transformer(width: int, context: int, as_linear: bool, depth: int) -> dict[str, Any]:
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
        "transformer_blocks": [block] * depth,
        "proj_out": project,
    }
