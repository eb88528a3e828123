"""Whether refsd computes the model that a config.json describes; otherwise it says why not.

Every option of diffusers' UNet2DConditionModel and AutoencoderKL (0.42.1) and of transformers'
CLIPTextConfig (5.23.0) is in a table below, with the default of that class. An option that would
change numbers in a way that refsd does not compute is refused by name, never ignored.
"""

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from refsd import rules
from refsd.arguments import shown
from refsd.errors import ModelError
from refsd.rules import Rule, anything, as_kind, boolean, integer, number, optional
from refsd.weights.networks import NETWORKS

logger = logging.getLogger(__name__)

MAX_LEVELS = 8
MAX_WIDTH = 16_384

each = partial(rules.each, least=1, most=MAX_LEVELS)  # a value for each level


def only(*allowed: Any) -> Rule:
    """One of these values; the first is what diffusers defaults to."""
    one = rules.only(*allowed)
    return lambda value: one(value) and f"{one(value)}: refsd computes no other"


def one_or_each(rule: Rule) -> Rule:
    """A value for all levels, or one for each."""
    return lambda value: (each(rule) if isinstance(value, (list, tuple)) else rule)(value)


width, count = integer(1, MAX_WIDTH), integer(1, 64)


def silu(value: Any) -> str:
    """SiLU under its two names; diffusers does not mind capitals."""
    return only("silu", "swish")(value.lower() if isinstance(value, str) else value)


cross_down, cross_up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

UNET = {
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

VAE = {
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
    "shift_factor": (None, only(None, 0)),
    "latents_mean": (None, only(None)),
    "latents_std": (None, only(None)),
    "force_upcast": (True, anything),
    "use_quant_conv": (True, boolean),
    "use_post_quant_conv": (True, boolean),
    "mid_block_add_attention": (True, boolean),
}

TEXT_ENCODER = {
    "vocab_size": (49408, integer(1, 1 << 20)),
    "hidden_size": (512, width),
    "intermediate_size": (2048, integer(1, 4 * MAX_WIDTH)),
    "projection_dim": (512, optional(width)),
    "num_hidden_layers": (12, count),
    "num_attention_heads": (8, count),
    "max_position_embeddings": (77, integer(2, 4096)),
    "hidden_act": ("quick_gelu", only("quick_gelu", "gelu")),
    "layer_norm_eps": (1e-5, number(1e-12, 1)),
    "eos_token_id": (49407, integer(0, 1 << 20)),
    "bos_token_id": (49406, anything),
    "pad_token_id": (1, anything),
    "attention_dropout": (0.0, anything),
    "dropout": (0.0, anything),
    "initializer_range": (0.02, anything),
    "initializer_factor": (1.0, anything),
    "architectures": (None, anything),
    "model_type": ("clip_text_model", only("clip_text_model", "clip", None)),
}
# Keys that any transformers configuration may carry and that say nothing about the numbers.
BOOKKEEPING = ("dtype", "torch_dtype", "transformers_version", "return_dict", "use_cache")

TABLES = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER}


def _as_kind(value: Any, default: Any) -> Any:
    """The value as JSON could have said it too, with today's names of blocks."""
    if isinstance(value, (list, tuple)):
        return [_as_kind(item, default) for item in value]
    old = isinstance(value, str) and value.startswith("UNetRes")  # before 2023
    return value.removeprefix("UNetRes") if old else as_kind(value, default)


def validate(component: str, config: Mapping[str, Any], where: str = "",
             table: Mapping[str, tuple[Any, Rule]] | None = None) -> dict[str, Any]:
    """The config of "unet", "vae" or "text_encoder" with all defaults filled in.

    Another network brings its table of options.

    Raises ModelError, naming the option, for a value that is no such option's, too large, or asks
    for something that refsd does not compute. Unknown options are logged.
    """
    where = where or f"the config of the {component}"
    if not isinstance(config, Mapping):
        raise ModelError(f"{where}: got {type(config).__name__}, expected a JSON object")
    check_class(component, _label(config), where)

    table = TABLES[component] if table is None else table
    filled = {name: _as_kind(config.get(name, default), default)
              for name, (default, _) in table.items()}
    for name, (_, rule) in table.items():
        if why := rule(filled[name]):
            raise ModelError(f"{where}: {name} is {shown(filled[name])}, expected {why}")
    unknown = [n for n in config if n not in table and n not in BOOKKEEPING and n[:1] != "_"]
    if unknown:
        logger.warning("%s: ignoring unknown options %s", where, shown(unknown))
    _check_fit(component, filled, where)
    return {name: config[name] for name in config if name not in table} | filled


def per_level(value: Any, levels: int) -> tuple:
    """A value for each level, of a list of them or of one for all."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels


def check_class(component: str, name: Any, where: str) -> None:
    """ModelError for the name of a class that refsd does not compute; None is no name."""
    if name is not None and name not in NETWORKS[component].classes:
        wanted = " or ".join(NETWORKS[component].classes)
        raise ModelError(f"{where}: the class is {shown(name)}, expected {wanted}")


def relabelled(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config as of the class that model_index.json names, whatever it says of itself."""
    if _label(config) == name:
        return config
    labels = ("_class_name", "architectures", "model_type")
    return {"_class_name": name} | {k: v for k, v in config.items() if k not in labels}


def _label(config: Mapping[str, Any]) -> Any:
    """The class that a config names, one of one or of a list."""
    found = config.get("_class_name") or (config.get("architectures") or [None])
    return found[0] if isinstance(found, list) else found


def _check_fit(component: str, config: dict[str, Any], where: str) -> None:
    """What one option says about another."""
    if component == "text_encoder":
        divisions = {"num_attention_heads": (config["hidden_size"], config["num_attention_heads"])}
    elif "norm_num_groups" not in config:
        return  # a network of other options, which looks at them itself
    else:
        widths = config["block_out_channels"]
        levels = len(widths)
        for name in ("down_block_types", "up_block_types", "layers_per_block", "attention_head_dim",
                     "cross_attention_dim", "only_cross_attention", "transformer_layers_per_block"):
            value = config.get(name)
            if isinstance(value, (list, tuple)) and len(value) != levels:
                raise ModelError(
                    f"{where}: {name} has {len(value)} entries, expected {levels}, as "
                    "block_out_channels has"
                )
        divisions = {"norm_num_groups": (math.gcd(*widths), config["norm_num_groups"])}
        if component in ("unet", "controlnet"):
            heads = per_level(config["attention_head_dim"], levels)
            wrong = [(w, h) for w, h in zip(widths, heads) if w % h]
            divisions["attention_head_dim"] = wrong[0] if wrong else (1, 1)
    for name, (whole, part) in divisions.items():
        if whole % part:
            raise ModelError(f"{where}: {name} is {part}, expected a divisor of the width {whole}")
