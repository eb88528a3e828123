"""A ControlNet's options, and the shapes of its tensors (diffusers' ControlNetModel)."""

from collections.abc import Mapping
from typing import Any

from refsd.networks import unet
from refsd.networks.blocks import conv, linear
from refsd.networks.network import Network, count, each, only, width
from refsd.rules import boolean

# Of a UNet's options those of its way down.
_NONE_OF = ("sample_size", "out_channels", "center_input_sample", "up_block_types",
            "reverse_transformer_layers_per_block", "time_cond_proj_dim", "time_embedding_dim",
            "conv_in_kernel", "conv_out_kernel")
OPTIONS = {key: rule for key, rule in unet.OPTIONS.items() if key not in _NONE_OF} | {
    "layers_per_block": (2, count),
    "cross_attention_dim": (1280, width),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",
                       only("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")),
    "conditioning_channels": (3, count),
    "controlnet_conditioning_channel_order": ("rgb", only("rgb", "bgr")),
    "conditioning_embedding_out_channels": ((16, 32, 96, 256), each(width)),
    "global_pool_conditions": (False, boolean),
}


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a ControlNetModel."""
    first, hints = config["block_out_channels"][0], config["conditioning_embedding_out_channels"]
    down_blocks, mid_block, skips = unet.way_down(config, 4 * first)
    blocks = [conv(c, previous) for pair in zip(hints, hints[1:])
              for previous, c in ((pair[0], pair[0]), pair)]
    return {
        "conv_in": conv(first, config["in_channels"]),
        "time_embedding": {"linear_1": linear(4 * first, first),
                           "linear_2": linear(4 * first, 4 * first)},
        **unet.add_embedding(config, 4 * first),
        "controlnet_cond_embedding": {
            "conv_in": conv(hints[0], config["conditioning_channels"]), "blocks": blocks,
            "conv_out": conv(first, hints[-1])},
        "down_blocks": down_blocks,
        "controlnet_down_blocks": [conv(c, c, 1) for c in skips],
        "controlnet_mid_block": conv(*2 * (config["block_out_channels"][-1],), 1),
        "mid_block": mid_block,
    }  # fmt: skip


CONTROLNET = Network("ControlNet", ("ControlNetModel",), ("diffusion_pytorch_model",),
                     ("controlnet_cond_embedding.conv_in.weight",), OPTIONS, shapes,
                     "refsd.pipelines.controlnet:ControlNet", unet.fits)
PARTS = {"controlnet": CONTROLNET}
