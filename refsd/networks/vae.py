"""The VAE's options, and the shapes of its tensors (diffusers' AutoencoderKL)."""

import re
from collections.abc import Mapping
from typing import Any

from refsd.networks.blocks import attention_over_pixels, conv, norm, resnet
from refsd.networks.network import (
    Network,
    check_groups,
    check_levels,
    count,
    each,
    one_or_each,
    only,
    silu,
    width,
)
from refsd.rules import anything, boolean, integer, number, optional

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")

OPTIONS = {
    "in_channels": (3, only(3)),
    "out_channels": (3, only(3)),
    "down_block_types": (("DownEncoderBlock2D",), each(only("DownEncoderBlock2D"))),
    "up_block_types": (("UpDecoderBlock2D",), each(only("UpDecoderBlock2D"))),
    "block_out_channels": ((64,), each(width)),
    "layers_per_block": (1, count),
    "act_fn": ("silu", silu),
    "latent_channels": (4, count),
    "norm_num_groups": (32, count),
    "sample_size": (32, optional(one_or_each(integer(1, 4096)))),
    "scaling_factor": (0.18215, number(1e-6, 1e6)),
    "shift_factor": (None, optional(number(-1e6, 1e6))),
    "latents_mean": (None, only(None)),
    "latents_std": (None, only(None)),
    "force_upcast": (True, anything),
    "use_quant_conv": (True, boolean),
    "use_post_quant_conv": (True, boolean),
    "mid_block_add_attention": (True, boolean),
}


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of an AutoencoderKL."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    latent, last = config["latent_channels"], len(widths) - 1

    mid_block = {"resnets": [resnet(widths[-1], widths[-1]) for _ in range(2)]}
    if config["mid_block_add_attention"]:
        mid_block["attentions"] = [attention_over_pixels(widths[-1])]

    down_blocks = []
    for i, wide in enumerate(widths):
        inputs = [widths[max(i - 1, 0)]] + [wide] * (layers - 1)
        block = {"resnets": [resnet(c, wide) for c in inputs]}
        if i < last:
            block["downsamplers"] = [{"conv": conv(wide, wide)}]
        down_blocks.append(block)

    up_blocks = []
    for i, wide in reversed(list(enumerate(widths))):
        inputs = [widths[min(i + 1, last)]] + [wide] * layers
        block = {"resnets": [resnet(c, wide) for c in inputs]}
        if i > 0:
            block["upsamplers"] = [{"conv": conv(wide, wide)}]
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
    return tree


def fits(config: Mapping[str, Any], where: str) -> None:
    """ModelError for lists that differ in length, and groups that divide no width."""
    check_levels(config, ("down_block_types", "up_block_types"), where)
    check_groups(config, where)


def today(name: str) -> str:
    """diffusers before 0.14 named the attention's projections otherwise."""
    return _OLD.sub(lambda match: OLD_ATTENTION[match[0]], name)


VAE = Network("VAE", ("AutoencoderKL",), ("diffusion_pytorch_model",),
              ("decoder.mid_block.resnets.0.conv1.weight",), OPTIONS, shapes,
              "refsd.pipelines.autoencoder:VAE", fits, today=today)
PARTS = {"vae": VAE}
