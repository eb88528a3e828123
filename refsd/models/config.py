"""What a model's shapes cannot tell: heads, epsilons, activation, scaling. Read from config.json.

Each class reads the keys it needs under the checkpoint's own names and diffusers' (transformers')
defaults for absent ones; refsd.weights refuses configurations that would need anything else.
"""

from dataclasses import dataclass
from typing import Any

# diffusers 0.42.1 AutoencoderKL's default, the scale of SD 1.x latents.
SD1_SCALING_FACTOR = 0.18215


@dataclass(frozen=True)
class CLIPTextConfig:
    """A CLIP text encoder (transformers' CLIPTextConfig)."""

    heads: int = 12
    activation: str = "quick_gelu"
    eps: float = 1e-5
    eos_token_id: int = 2
    max_length: int = 77

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> "CLIPTextConfig":
        return cls(
            heads=config.get("num_attention_heads", 8),
            activation=config.get("hidden_act", "quick_gelu"),
            eps=config.get("layer_norm_eps", 1e-5),
            eos_token_id=config.get("eos_token_id", 49407),
            max_length=config.get("max_position_embeddings", 77),
        )


@dataclass(frozen=True)
class UNetConfig:
    """A conditional UNet of the SD 1.x family (diffusers' UNet2DConditionModel).

    `heads` has one entry a level. (diffusers' key `attention_head_dim` is the number of heads.)
    """

    heads: tuple[int, ...] = (8, 8, 8, 8)
    groups: int = 32
    eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_padding: int = 1
    sample_size: int = 64
    center_input_sample: bool = False

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> "UNetConfig":
        levels = len(config.get("block_out_channels", (320, 640, 1280, 1280)))
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        size = config.get("sample_size") or 64
        return cls(
            heads=tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * levels,
            groups=config.get("norm_num_groups", 32),
            eps=config.get("norm_eps", 1e-5),
            flip_sin_to_cos=config.get("flip_sin_to_cos", True),
            freq_shift=config.get("freq_shift", 0),
            down_padding=config.get("downsample_padding", 1),
            sample_size=size[0] if isinstance(size, (list, tuple)) else size,
            center_input_sample=config.get("center_input_sample", False),
        )


@dataclass(frozen=True)
class VAEConfig:
    """A variational autoencoder with a KL-regularised latent space (diffusers' AutoencoderKL)."""

    groups: int = 32
    scaling_factor: float = SD1_SCALING_FACTOR
    latent_channels: int = 4
    downscale: int = 8

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> "VAEConfig":
        return cls(
            groups=config.get("norm_num_groups", 32),
            scaling_factor=config.get("scaling_factor", SD1_SCALING_FACTOR),
            latent_channels=config.get("latent_channels", 4),
            downscale=2 ** (len(config.get("block_out_channels", (64,))) - 1),
        )
