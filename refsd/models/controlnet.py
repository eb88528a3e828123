"""ControlNet: a copy of the UNet's way down that reads a picture, and is added to its skips.

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models"; names as
in diffusers' ControlNetModel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refsd import functional as F
from refsd.contracts import need
from refsd.models.config import heads_of
from refsd.models.unet import down, embed_added, embed_time, middle


@dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet (diffusers' ControlNetModel); `heads` has one entry a level, as a UNet's."""

    heads: tuple[int, ...]
    groups: int
    eps: float
    flip_sin_to_cos: bool
    freq_shift: int
    addition_time_embed_dim: int | None
    channel_order: str
    global_pool: bool

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "ControlNetConfig":
        return cls(
            heads=heads_of(config),
            groups=config["norm_num_groups"],
            eps=config["norm_eps"],
            flip_sin_to_cos=config["flip_sin_to_cos"],
            freq_shift=config["freq_shift"],
            addition_time_embed_dim=config["addition_time_embed_dim"],
            channel_order=config["controlnet_conditioning_channel_order"],
            global_pool=config["global_pool_conditions"],
        )


def controlnet(sample, timesteps, encoder_hidden_states, hint, *, time_embedding, conv_in,
               down_blocks, mid_block, controlnet_down_blocks, controlnet_mid_block, config,
               add_embedding=None, text_embeds=None, time_ids=None):
    """What a UNet adds to its skips and to its middle.   -> [(N, C_i, H_i, W_i)], (N, C, h, w)

    sample (N, 4, H, W), timesteps (N,), the text and what add_embedding reads are the UNet's; hint
    (N or 1, C_0, H, W) is the picture as `embed_hint` reads it. Each skip passes through a 1 x 1
    convolution of its own, whose weights were 0 when training began.
    """
    temb = embed_time(timesteps, None, **time_embedding, config=config,
                      dim=conv_in["weight"].shape[0], dtype=str(sample.dtype))
    if add_embedding is not None:
        temb = F.add(temb, embed_added(text_embeds, time_ids, **add_embedding, config=config))
    h = F.add(F.conv2d(sample, **conv_in, padding=1), hint)

    skips = [h]
    for block, heads in zip(down_blocks, config.heads):
        h = down(h, temb, encoder_hidden_states, skips, **block, heads=heads, config=config)
    h = middle(h, temb, encoder_hidden_states, **mid_block, heads=config.heads[-1], config=config)

    need(len(skips) == len(controlnet_down_blocks), "controlnet",
         f"{len(controlnet_down_blocks)} controlnet_down_blocks for {len(skips)} skips: wanted as "
         "many of each")
    residuals = [F.conv2d(s, **block) for s, block in zip(skips, controlnet_down_blocks)]
    return residuals, F.conv2d(h, **controlnet_mid_block)


def embed_hint(picture, *, conv_in, blocks, conv_out, config):
    """The picture at the latents' size: convolutions, of which every second one halves it.

    picture (N, 3, 8 H, 8 W) in [0, 1] -> (N, C_0, H, W) with the seven of Stable Diffusion's
    """
    if config.channel_order == "bgr":
        channels = reversed(range(picture.shape[1]))
        picture = F.concat([F.slice(picture, axis=1, start=i, stop=i + 1) for i in channels],
                           axis=1)
    h = F.silu(F.conv2d(picture, **conv_in, padding=1))
    for i, block in enumerate(blocks):
        h = F.silu(F.conv2d(h, **block, stride=1 + i % 2, padding=1))
    return F.conv2d(h, **conv_out, padding=1)
