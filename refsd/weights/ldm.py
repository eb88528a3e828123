"""The single-file checkpoints of Stable Diffusion 1.x: where each tensor of ours lies in them.

The rules go from diffusers' names to those of the latent diffusion code (CompVis 2022); names a
config does not have need no rule, so reading them back is the inverse over the config's names.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from refsd.errors import ModelError
from refsd.weights import sd1
from refsd.weights.expect import FAMILY_OF_WIDTH, SHAPES
from refsd.weights.header import Header
from refsd.weights.names import canonical
from refsd.weights.validate import validate

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
PREFIXES = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
_VAE_PARTS = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "conv_norm_out": "norm_out",
}  # fmt: skip
_VAE_LEAVES = {
    "conv_shortcut": "nin_shortcut", "group_norm": "norm",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_BLOCK = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<block>\d+)"
    r"\.(?P<part>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)


def ldm_names(component: str, config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers name -> name in a single file, for every tensor of the config. A bijection.

    Raises ModelError for a config that such files cannot hold: they count blocks in a way that
    needs one number of layers at all levels.
    """
    config = validate(component, config)
    names = SHAPES[component](config)
    if component == "text_encoder":
        return {name: TEXT + name for name in names}
    if component == "vae":
        levels = len(config["block_out_channels"])
        return {name: VAE + _vae_name(name, levels) for name in names}
    if not isinstance(config["layers_per_block"], int):
        raise ModelError("a single file needs one layers_per_block for all levels of the UNet")
    return {name: UNET + _unet_name(name, config) for name in names}


def _unet_name(name: str, config: dict[str, Any]) -> str:
    match = _BLOCK.fullmatch(name)
    if match is None:
        for ours, theirs in _UNET_ENDS.items():
            if name.startswith(ours + "."):
                rest = name.removeprefix(ours + ".")
                return f"{theirs}.{_inside_resnet(rest) if 'resnets' in ours else rest}"
        raise ModelError(f"{name!r} has no place in a Stable Diffusion 1.x file")

    block, layer, rest = int(match["block"]), int(match["layer"]), match["rest"]
    layers = config["layers_per_block"]
    if match["side"] == "down":  # block 0 is conv_in, and each level ends with a downsampler
        place = block * (layers + 1) + 1 + layer
        if match["part"] == "downsamplers":
            return f"input_blocks.{place + layers}.0.op.{rest.removeprefix('conv.')}"
        side = "input_blocks"
    else:
        place = block * (layers + 1) + layer
        if match["part"] == "upsamplers":  # the last part of its level's last block
            before = 2 if config["up_block_types"][block].startswith("CrossAttn") else 1
            return f"output_blocks.{place + layers}.{before}.{rest}"
        side = "output_blocks"
    if match["part"] == "attentions":
        return f"{side}.{place}.1.{rest}"
    return f"{side}.{place}.0.{_inside_resnet(rest)}"


def _inside_resnet(rest: str) -> str:
    part, leaf = rest.split(".")
    return f"{_RESNET[part]}.{leaf}"


def _vae_name(name: str, levels: int) -> str:
    match = re.fullmatch(r"(encoder|decoder)\.(.+)", name)
    if match is None:
        return name  # quant_conv and post_quant_conv
    half, rest = match.groups()

    block = _BLOCK.fullmatch(rest)
    if block is not None:
        # the decoder's levels are counted from the finest here, from the coarsest there
        level = int(block["block"]) if half == "encoder" else levels - 1 - int(block["block"])
        part = f"block.{block['layer']}" if block["part"] == "resnets" else f"{block['side']}sample"
        rest = f"{block['side']}.{level}.{part}.{block['rest']}"
    for ours, theirs in _VAE_PARTS.items():
        if rest.startswith(ours + "."):
            rest = theirs + rest.removeprefix(ours)
    for ours, theirs in _VAE_LEAVES.items():
        rest = rest.replace(f".{ours}.", f".{theirs}.")
    return f"{half}.{rest}"


def ema_name(name: str) -> str:
    """Where the training code keeps the moving average of one of the UNet's tensors."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def to_ldm(
    component: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """A component's tensors under the names, and in the shapes, of a single file.

    Without a config those of Stable Diffusion 1.x. Raises ModelError when tensors lacks one.
    """
    today = {canonical(component, name): array for name, array in tensors.items()}
    names = ldm_names(component, sd1.CONFIGS[component] if config is None else config)
    if missing := [name for name in names if name not in today]:
        raise ModelError(f"{len(missing)} tensors of the {component} missing, first {missing[0]!r}")
    found = {theirs: today[ours] for ours, theirs in names.items()}
    pixels = re.compile(re.escape(VAE) + r".*\.mid\.attn_1\.(q|k|v|proj_out)\.weight")
    return {
        name: array.reshape(array.shape[:2] + (1, 1)) if pixels.fullmatch(name) else array
        for name, array in found.items()
    }


def from_ldm(
    component: str, names: Mapping[str, Any], config: Mapping[str, Any], *, ema: bool = False,
    prefix: str | None = None,
) -> dict[str, str]:  # fmt: skip
    """diffusers name -> name in this file, for the tensors of a component that it has.

    names are the file's; ema takes the moving averages of the UNet. The text encoder is also found
    without "text_model."; prefix is what stands before the names in this file. Names of the
    component that no rule gives stand for themselves.
    """
    found = {}
    usual = PREFIXES[component]
    prefix = usual if prefix is None else prefix
    for ours, theirs in ldm_names(component, config).items():
        if ema and component == "unet":
            theirs = prefix.removesuffix(usual) + ema_name(theirs)
        else:
            theirs = prefix + theirs.removeprefix(usual)
        older = theirs.replace(prefix + "text_model.", prefix, 1)
        if theirs in names or older in names:
            found[ours] = theirs if theirs in names else older
    known = set(found.values())
    if not (ema and component == "unet"):
        own = (n for n in names if n.startswith(prefix) and n not in known)
        found |= {name: name for name in own if canonical(component, name) is not None}
    return found


def check_family(header: Header, text_width: int, outer: str = "") -> None:
    """ModelError, naming what the file is, unless it is a text-to-image SD 1.x checkpoint.

    outer is what stands before all its names.
    """
    tensors = {name.removeprefix(outer): info for name, info in header.tensors.items()}
    if kind := _family(tensors, text_width):
        raise ModelError(
            f"{header.path}: this is {kind}. "
            "Only whole Stable Diffusion 1.x checkpoints are supported"
        )


def _family(tensors: Mapping[str, Any], text_width: int) -> str:
    """What a file is that is not Stable Diffusion 1.x; empty where it is."""
    starts = (
        (UNET + "joint_blocks.", "Stable Diffusion 3"),
        (UNET + "double_blocks.", "Flux"),
        ("double_blocks.", "Flux"),
        ("conditioner.embedders.", "SDXL"),
        ("cond_stage_model.model.", "Stable Diffusion 2.x"),
        ("lora_", "a LoRA, not a whole model"),
        ("control_model.", "a ControlNet"),
    )
    for prefix, kind in starts:
        if any(name.startswith(prefix) for name in tensors):
            return kind
    if any(".lora_" in name for name in tensors):
        return "a LoRA, not a whole model"
    parts = ("down_blocks.", "text_model.", "encoder.", "decoder.", "embeddings.",
             "input_blocks.", "first_stage_model.", "cond_stage_model.", "unet.", "vae.",
             "text_encoder.", "model_ema.")  # fmt: skip
    if not any(name.startswith((UNET, *parts)) for name in tensors):
        names = ", ".join(ascii(name)[1:-1][:60] for name in list(tensors)[:3])
        return f"no Stable Diffusion checkpoint (it holds {names or 'no tensor'})"

    if any(name.startswith("controlnet_cond_embedding.") for name in tensors):
        return "a ControlNet"
    first = tensors.get(UNET + "input_blocks.0.0.weight")
    channels = first.shape[1] if first and len(first.shape) == 4 else 4
    if channels in (5, 8, 9):
        return {5: "a depth model", 8: "InstructPix2Pix", 9: "an inpainting model"}[channels]
    keys = (t for name, t in tensors.items() if name.endswith("attn2.to_k.weight"))
    for width in (tensor.shape[-1] for tensor in keys if tensor.shape):
        if width != text_width and width in FAMILY_OF_WIDTH:
            return f"{FAMILY_OF_WIDTH[width]} (text width {width})"
    return ""
