"""The UNet that predicts the noise: down, across and up again, with skips over the same levels.

Source: Ronneberger et al. 2015, Ho et al. 2020, Rombach et al. 2022; names as in diffusers'
UNet2DConditionModel.
"""

from refsd import functional as F
from refsd.contracts import need
from refsd.models.layers import downsample, resnet, transformer, upsample


def unet(sample, timesteps, encoder_hidden_states, *, time_embedding, conv_in, down_blocks,
         up_blocks, conv_norm_out, conv_out, config, mid_block=None, add_embedding=None,
         text_embeds=None, time_ids=None, timestep_cond=None,
         down_block_additional_residuals=None, mid_block_additional_residual=None):
    """eps(x_t, t, text).   (N, 4, H, W), (N,), (N, S, D) -> (N, 4, H, W)

    sample is the noisy latent x_t as the scheduler scales it, timesteps the training steps 0..999,
    encoder_hidden_states the text (an array, or a layers.Text that many calls share). Where there
    is an add_embedding (Podell et al. 2023), text_embeds (N, P) is the text as one vector, time_ids
    (N, K) in float32 the picture's sizes and where it was cropped. timestep_cond (N, C) is the
    guidance embedding of distilled models (LCM). What is predicted (noise, v or x_0) is the
    scheduler's business. Small distilled models (BK-SDM, Kim et al. 2023) have no mid_block. The
    additional residuals are a ControlNet's: one a skip, and one for what the middle gives.
    """
    need(len(down_blocks) == len(up_blocks) == len(config.heads), "unet",
         f"{len(down_blocks)} levels down, {len(up_blocks)} up, heads {config.heads}: wanted as "
         "many of each")
    if config.center_input_sample:
        sample = F.sub(F.mul(sample, 2), 1)
    temb = embed_time(timesteps, timestep_cond, **time_embedding, config=config,
                      dim=conv_in["weight"].shape[0], dtype=str(sample.dtype))
    if add_embedding is not None:
        temb = F.add(temb, embed_added(text_embeds, time_ids, **add_embedding, config=config))
    h = F.conv2d(sample, **conv_in, padding=1)

    skips = [h]
    for block, heads in zip(down_blocks, config.heads):
        h = down(h, temb, encoder_hidden_states, skips, **block, heads=heads, config=config)
    if down_block_additional_residuals is not None:
        skips = added(skips, down_block_additional_residuals)

    if mid_block is not None:
        h = middle(h, temb, encoder_hidden_states, **mid_block, heads=config.heads[-1],
                   config=config)
    if mid_block_additional_residual is not None:
        h = F.add(h, mid_block_additional_residual)

    for block, heads in zip(up_blocks, reversed(config.heads)):
        h = up(h, temb, encoder_hidden_states, skips, **block, heads=heads, config=config)

    h = F.silu(F.group_norm(h, **conv_norm_out, groups=config.groups, eps=config.eps))
    return F.conv2d(h, **conv_out, padding=1)


def embed_time(timesteps, condition, *, linear_1, linear_2, cond_proj=None, dim, config, dtype):
    """W2 silu(W1 (sinusoids(t) + W_c condition)).   (N,), (N, K) or None -> (N, 4 dim)"""
    h = F.timestep_embedding(timesteps, dim=dim, flip_sin_to_cos=config.flip_sin_to_cos,
                             freq_shift=config.freq_shift, dtype=dtype)
    if condition is not None:
        h = F.add(h, F.linear(condition, **cond_proj))
    return F.linear(F.silu(F.linear(h, **linear_1)), **linear_2)


def embed_added(text_embeds, time_ids, *, linear_1, linear_2, config):
    """W2 silu(W1 [text | sinusoids of each id]).   (N, P), (N, K) -> (N, 4 dim)"""
    (N, K), dim = time_ids.shape, config.addition_time_embed_dim
    h = F.timestep_embedding(F.reshape(time_ids, shape=(N * K,)), dim=dim,
                             flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift,
                             dtype=str(text_embeds.dtype))
    h = F.concat([text_embeds, F.reshape(h, shape=(N, K * dim))], axis=1)
    return F.linear(F.silu(F.linear(h, **linear_1)), **linear_2)


def down(h, temb, context, skips, *, resnets, attentions=None, downsamplers=(), heads, config):
    """One level down; every result is also appended to skips.   (N, C, H, W) -> (N, D, H/2, W/2)"""
    for i, block in enumerate(resnets):
        h = resnet(h, temb, **block, groups=config.groups, eps=config.eps)
        if attentions is not None:
            h = transformer(h, context, **attentions[i], heads=heads, groups=config.groups)
        skips.append(h)
    for block in downsamplers:
        h = downsample(h, **block, padding=1)
        skips.append(h)
    return h


def added(skips, residuals):
    """Each skip plus its residual, whose size it has, or one pixel's.   [(N, C, H, W)] twice"""
    need(len(skips) == len(residuals), "unet",
         f"{len(residuals)} down_block_additional_residuals for {len(skips)} skips: wanted as many "
         "of each")
    return [F.add(skip, residual) for skip, residual in zip(skips, residuals)]


def middle(h, temb, context, *, resnets, attentions=(), heads, config):
    """Resnet, then pairs of transformer and resnet.   (N, C, H, W) -> the same"""
    h = resnet(h, temb, **resnets[0], groups=config.groups, eps=config.eps)
    for attention, block in zip(attentions, resnets[1:]):
        h = transformer(h, context, **attention, heads=heads, groups=config.groups)
        h = resnet(h, temb, **block, groups=config.groups, eps=config.eps)
    return h


def up(h, temb, context, skips, *, resnets, attentions=None, upsamplers=(), heads, config):
    """One level up; each resnet takes the latest skip.   (N, C, H, W) -> (N, D, 2 H, 2 W)"""
    for i, block in enumerate(resnets):
        h = F.concat([h, skips.pop()], axis=1)
        h = resnet(h, temb, **block, groups=config.groups, eps=config.eps)
        if attentions is not None:
            h = transformer(h, context, **attentions[i], heads=heads, groups=config.groups)
    for block in upsamplers:
        # The next skip's size, not twice this one's: odd sizes were rounded up on the way down.
        height, width = skips[-1].shape[2:]
        h = upsample(h, **block, height=height, width=width)
    return h
