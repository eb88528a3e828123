"""UNet and VAE under the names of the latent diffusion code (CompVis 2022), and its noise.

Stable Diffusion 1.x, 2.x and XL share them, 3 has the VAE. That code counts blocks in the order in
which it runs them.
"""

from collections.abc import Mapping
from typing import Any

from refsd.families.family import Layout, Location
from refsd.families.inputs import input_of
from refsd.tree import flatten

NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_VAE = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
_VAE_HALF = {
    "conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out",
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q", "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
}  # fmt: skip


def unet_modules(tree: Mapping[str, Any]) -> dict[str, str]:
    """Module here -> module there: a block is a residual block and what follows it at its size."""
    modules = dict(_UNET)
    for j, _ in enumerate(tree.get("mid_block", {}).get("resnets", ())):
        modules |= _resnet(f"mid_block.resnets.{j}", f"middle_block.{2 * j}")
    modules["mid_block.attentions.0"] = "middle_block.1"

    for side, there, index in (("down", "input_blocks", 1), ("up", "output_blocks", 0)):
        for i, block in enumerate(tree.get(f"{side}_blocks", ())):
            here = f"{side}_blocks.{i}"
            for j, _ in enumerate(block["resnets"]):
                modules |= _resnet(f"{here}.resnets.{j}", f"{there}.{index}.0")
                modules[f"{here}.attentions.{j}"] = f"{there}.{index}.1"
                index += 1
            if "downsamplers" in block:  # a block of its own
                modules[f"{here}.downsamplers.0.conv"] = f"{there}.{index}.0.op"
                index += 1
            if "upsamplers" in block:  # the end of its level's last block
                last = 2 if "attentions" in block else 1
                modules[f"{here}.upsamplers.0"] = f"{there}.{index - 1}.{last}"
    return modules


def unet_config(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what a file's tensors say: channels, LCM's condition, blocks, matrices."""
    config, shapes = dict(config), {name: tensor.shape for name, tensor in tensors.items()}
    if "input_blocks.0.0.weight" not in shapes:
        return config
    first = shapes["input_blocks.0.0.weight"]
    if len(first) == 4 and input_of(first[1], config["out_channels"]):
        config["in_channels"] = first[1]
    condition = shapes.get("time_embed.cond_proj.weight", ())
    if len(condition) == 2:
        config["time_cond_proj_dim"] = condition[1]
    if not any(name.startswith("middle_block.") for name in shapes):
        config["mid_block_type"] = None
    if len(shapes.get("input_blocks.1.1.proj_in.weight", ())) == 2:
        config["use_linear_projection"] = True
    return config


def controlnet_modules(tree: Mapping[str, Any]) -> dict[str, str]:
    """Module here -> module there of a ControlNet (Zhang et al. 2023), whose code is of this."""
    hint = "controlnet_cond_embedding"
    order = ["conv_in", *(f"blocks.{i}" for i, _ in enumerate(tree[hint]["blocks"])), "conv_out"]
    modules = unet_modules(tree) | {"controlnet_mid_block": "middle_block_out.0"}
    modules |= {f"{hint}.{ours}": f"input_hint_block.{2 * i}" for i, ours in enumerate(order)}
    return modules | {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0"
                      for i, _ in enumerate(tree["controlnet_down_blocks"])}


def vae_modules(tree: Mapping[str, Any]) -> dict[str, str]:
    """Module here -> module there; the decoder's levels too are counted from the finest there."""
    modules = dict(_VAE)
    for half, side in (("encoder", "down"), ("decoder", "up")):
        modules |= {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in _VAE_HALF.items()}
        blocks = tree[half][f"{side}_blocks"]
        for i, block in enumerate(blocks):
            here = f"{half}.{side}_blocks.{i}"
            there = f"{half}.{side}.{i if side == 'down' else len(blocks) - 1 - i}"
            for j, _ in enumerate(block["resnets"]):
                modules[f"{here}.resnets.{j}"] = f"{there}.block.{j}"
                modules[f"{here}.resnets.{j}.conv_shortcut"] = f"{there}.block.{j}.nin_shortcut"
            modules[f"{here}.{side}samplers.0"] = f"{there}.{side}sample"
    return modules


def _resnet(here: str, there: str) -> dict[str, str]:
    return {f"{here}.{ours}": f"{there}.{theirs}" for ours, theirs in _RESNET.items()}


def renamed(tree: Mapping[str, Any], modules: Mapping[str, str | Location]) -> dict[str, Location]:
    """Every name of the tree by the longest beginning of it that is among the modules.

    KeyError for one that none begins: no rule was made for it.
    """
    found = {}
    for name in flatten(tree):
        here = name
        while here not in modules:
            here, dot, _ = here.rpartition(".")
            if not dot:
                raise KeyError(name)
        there = modules[here]
        found[name] = (there if isinstance(there, Location)
                       else Location(there + name.removeprefix(here)))
    return found


UNET = Layout("model.diffusion_model.", "input_blocks.0.0.weight",
              lambda tree: renamed(tree, unet_modules(tree)), adapt=unet_config)
VAE = Layout("first_stage_model.", "decoder.mid.block_1.conv1.weight",
             lambda tree: renamed(tree, vae_modules(tree)))
CONTROLNET = Layout("control_model.", "input_hint_block.0.weight",
                    lambda tree: renamed(tree, controlnet_modules(tree)))
