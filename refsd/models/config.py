"""What a model's shapes cannot tell: heads, epsilons, activation, scaling.

Each class reads the keys it needs, under the checkpoint's own names, from a config in which every
key is there: refsd.networks fills in the defaults of the library that wrote it, and refuses
what these models do not compute. There are no defaults here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CLIPTextConfig:
    """A CLIP text encoder (transformers' CLIPTextConfig)."""

    heads: int
    activation: str
    eps: float
    eos_token_id: int
    max_length: int

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "CLIPTextConfig":
        return cls(
            heads=config["num_attention_heads"],
            activation=config["hidden_act"],
            eps=config["layer_norm_eps"],
            eos_token_id=config["eos_token_id"],
            max_length=config["max_position_embeddings"],
        )


@dataclass(frozen=True)
class UNetConfig:
    """A UNet that reads text (diffusers' UNet2DConditionModel); `heads` has one entry a level."""

    heads: tuple[int, ...]
    groups: int
    eps: float
    flip_sin_to_cos: bool
    freq_shift: int
    sample_size: int
    center_input_sample: bool
    addition_time_embed_dim: int | None

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "UNetConfig":
        size = config["sample_size"] or 64  # diffusers' own answer where a config says null
        return cls(
            heads=heads_of(config),
            groups=config["norm_num_groups"],
            eps=config["norm_eps"],
            flip_sin_to_cos=config["flip_sin_to_cos"],
            freq_shift=config["freq_shift"],
            sample_size=size[0] if isinstance(size, (list, tuple)) else size,
            center_input_sample=config["center_input_sample"],
            addition_time_embed_dim=config["addition_time_embed_dim"],
        )


def heads_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The heads of each level of a UNet or a ControlNet: attention_head_dim is their number."""
    heads = config["attention_head_dim"]
    levels = len(config["block_out_channels"])
    return tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * levels


@dataclass(frozen=True)
class VAEConfig:
    """A variational autoencoder with a KL-regularised latent space (diffusers' AutoencoderKL).

    The diffusion works on (latents - shift_factor) scaling_factor; latents are `downscale` times
    smaller than the picture along each side. sample_size is the side of a picture that it was
    trained on. force_upcast: whether it is known to overflow in float16.
    """

    groups: int
    scaling_factor: float
    shift_factor: float
    latent_channels: int
    downscale: int
    sample_size: int
    force_upcast: bool

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "VAEConfig":
        size = config["sample_size"] or 32  # diffusers' own answer where a config says null
        return cls(
            groups=config["norm_num_groups"],
            scaling_factor=config["scaling_factor"],
            shift_factor=config["shift_factor"] or 0.0,
            latent_channels=config["latent_channels"],
            downscale=2 ** (len(config["block_out_channels"]) - 1),
            sample_size=size[0] if isinstance(size, (list, tuple)) else size,
            force_upcast=bool(config["force_upcast"]),
        )
