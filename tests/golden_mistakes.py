"""The mistakes that the stand-in port can make: what is wrong, where it first shows, and why.

`reasons` are the keys of comparing.diagnose that say it rightly. `after` mistakes damage one
tensor on its way out: f(array) -> (what is dumped, what the port goes on with).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CLIP = "text/000/text_model.encoder.layers.0"
DOWN, UP = "unet/000/down_blocks", "unet/000/up_blocks"
BLOCK = f"{DOWN}.0.attentions.0.transformer_blocks.0"
TIME = "unet/000/time_embedding"


class Mistake(NamedTuple):
    """The stages it is made in, the first op that it makes wrong, and the right reasons."""

    where: str
    first: str
    reasons: tuple[str, ...]
    after: Callable | None = None


def both(change):
    """The port dumps the damaged tensor and goes on with it."""
    return lambda x: (change(x),) * 2


def dumped(change):
    """Only the dump is damaged."""
    return lambda x: (change(x), x)


def one_zero(x):
    """What is left of a NaN that somebody replaced."""
    x = x.copy()
    x[np.unravel_index(np.argmax(np.abs(x)), x.shape)] = 0
    return x


def in_tiles(x):
    """The last two axes filled up to multiples of 32, as tiled memory has them."""
    widths = [(0, 0)] * (x.ndim - 2) + [(0, -n % 32) for n in x.shape[-2:]]
    return np.pad(x, widths)


def shifted(x):
    """One column too far to the right."""
    return np.concatenate([np.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(x.shape)


MISTAKES = {
    # text encoder
    "token_off_by_one": Mistake("text", "text/000/text_model.embeddings.token_embedding",
                                ("off_by_one",)),
    "layer_norm_eps": Mistake("text", f"{CLIP}.layer_norm1", ("wrong_eps",)),
    "unbiased_variance": Mistake("text", f"{CLIP}.layer_norm1", ("biased_variance",)),
    "linear_transposed": Mistake("text", f"{CLIP}.self_attn.q_proj", ("transposed_weight",)),
    "linear_bias": Mistake("text", f"{CLIP}.self_attn.q_proj", ("missing_bias",)),
    "head_order": Mistake("text", f"{CLIP}.self_attn.attention", ("head_order",)),
    "attention_scale": Mistake("text", f"{CLIP}.self_attn.attention", ("attention_scale",)),
    "no_causal_mask": Mistake("text", f"{CLIP}.self_attn.attention", ("missing_mask",)),
    "erf_for_quick": Mistake("text", f"{CLIP}.mlp.quick_gelu", ("gelu_erf",)),
    "no_residual": Mistake("text", f"{CLIP}.self_attn.add", ("no_residual",)),
    # UNet
    "sin_cos_order": Mistake("unet", f"{TIME}.timestep_embedding", ("sincos_order",)),
    "timestep": Mistake("", f"{TIME}.timestep_embedding", ("wrong_timestep",)),
    "no_silu": Mistake("unet", f"{TIME}.silu", ("missing_silu",)),
    "sigmoid": Mistake("unet", f"{TIME}.silu", ("sigmoid",)),
    "conv_bias": Mistake("unet", "unet/000/conv_in", ("missing_bias",)),
    "flipped_kernel": Mistake("unet", "unet/000/conv_in", ("flipped_kernel",)),
    "group_norm_eps": Mistake("unet", f"{DOWN}.0.resnets.0.norm1", ("wrong_eps",)),
    "softmax_axis": Mistake("unet", f"{BLOCK}.attn1.attention", ("softmax_axis",)),
    "tanh_for_erf": Mistake("unet", f"{BLOCK}.ff.geglu", ("gelu_tanh",)),
    "geglu_halves": Mistake("unet", f"{BLOCK}.ff.geglu", ("geglu_swapped",)),
    "padding": Mistake("unet", f"{DOWN}.0.downsamplers.0.conv", ("wrong_padding", "off_by_one")),
    "concat_order": Mistake("unet", f"{UP}.0.resnets.0.concat", ("swapped_inputs",)),
    "half_pixel": Mistake("unet", f"{UP}.0.upsamplers.0.upsample_nearest", ("half_pixel",)),
    "nhwc": Mistake("", f"{DOWN}.1.resnets.0.conv1", ("nhwc",), dumped(nhwc)),
    "tile_padding": Mistake("", f"{BLOCK}.attn2.to_q", ("tile_padding",), dumped(in_tiles)),
    # sampling
    "guidance_swapped": Mistake("denoise", "denoise/000/guided", ("swapped_guidance",)),
    "guidance_scale": Mistake("denoise", "denoise/000/guided", ("guidance_scale",)),
    "alpha_bar": Mistake("denoise", "denoise/000/latents", ("wrong_timestep",)),
    # decoder
    "no_scaling_factor": Mistake("decode", "decode/latents", ("missing_scaling_factor",)),
    "groups": Mistake("decode", "decode/decoder.mid_block.resnets.0.norm1", ("wrong_groups",)),
    "nan_masked": Mistake("", "decode/decoder.mid_block.resnets.0.conv2", ("nan_masked",),
                          both(one_zero)),
    "offset": Mistake("", "decode/decoder.up_blocks.0.resnets.0.conv1", ("offset",),
                      both(lambda x: x + np.float32(0.25))),
    "sign": Mistake("", "decode/decoder.up_blocks.1.resnets.0.add", ("sign",), both(np.negative)),
    "shifted": Mistake("", "decode/decoder.conv_out", ("off_by_one",), both(shifted)),
    "truncated_bytes": Mistake("picture", "picture/pixels", ("truncated",)),
}
