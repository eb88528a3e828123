"""The variational autoencoder between pictures and latents.

Source: Kingma and Welling 2013, Rombach et al. 2022; names as in diffusers' AutoencoderKL.
"""

from refsd import functional as F
from refsd.models import layers

# The logarithm of the variance is held in this range before it is used.
LOGVAR_RANGE = (-30, 20)


def encode(image, *, encoder, quant_conv=None, config):
    """The posterior of the latents.   image (N, 3, H, W) in [-1, 1] -> mean, logvar (N, 4, h, w)

    h = H / 8 with four levels. The latents are not scaled: the diffusion works on
    (a sample - shift_factor) scaling_factor.
    """
    return posterior(moments(image, encoder=encoder, quant_conv=quant_conv, config=config))


def moments(image, *, encoder, quant_conv=None, config):
    """Mean and logarithm of the variance side by side.   (N, 3, H, W) -> (N, 8, h, w)"""
    h = encode_image(image, **encoder, config=config)
    return h if quant_conv is None else F.conv2d(h, **quant_conv)


def posterior(moments):
    """The two apart, the second held in its range.   (N, 8, h, w) -> twice (N, 4, h, w)"""
    channels = moments.shape[1] // 2
    mean = F.slice(moments, axis=1, start=0, stop=channels)
    logvar = F.slice(moments, axis=1, start=channels, stop=2 * channels)
    return mean, F.clamp(logvar, low=LOGVAR_RANGE[0], high=LOGVAR_RANGE[1])


def decode(latents, *, decoder, post_quant_conv=None, config):
    """The picture of unscaled latents.   (N, 4, h, w) -> (N, 3, 8 h, 8 w), about [-1, 1]"""
    if post_quant_conv is not None:
        latents = F.conv2d(latents, **post_quant_conv)
    return decode_latents(latents, **decoder, config=config)


def sample_posterior(mean, logvar, noise):
    """mean + e^(logvar / 2) noise.   three times (N, 4, h, w) -> the same"""
    return F.add(mean, F.mul(F.exp(F.mul(logvar, 0.5)), noise))


def encode_image(x, *, conv_in, down_blocks, mid_block, conv_norm_out, conv_out, config):
    """Half the size at every level but the last.   (N, 3, H, W) -> (N, 8, H / 8, W / 8)"""
    h = F.conv2d(x, **conv_in, padding=1)
    for block in down_blocks:
        h = down(h, **block, config=config)
    h = middle(h, **mid_block, config=config)
    h = F.silu(group_norm(h, **conv_norm_out, config=config))
    return F.conv2d(h, **conv_out, padding=1)


def decode_latents(z, *, conv_in, mid_block, up_blocks, conv_norm_out, conv_out, config):
    """Twice the size at every level but the last.   (N, 4, h, w) -> (N, 3, 8 h, 8 w)"""
    h = F.conv2d(z, **conv_in, padding=1)
    h = middle(h, **mid_block, config=config)
    for block in up_blocks:
        h = up(h, **block, config=config)
    h = F.silu(group_norm(h, **conv_norm_out, config=config))
    return F.conv2d(h, **conv_out, padding=1)


def down(h, *, resnets, downsamplers=(), config):
    """The halving pads on the right and below only.   (N, C, H, W) -> (N, D, H/2, W/2)"""
    for block in resnets:
        h = resnet(h, **block, config=config)
    for block in downsamplers:
        h = layers.downsample(h, **block, padding=((0, 1), (0, 1)))
    return h


def middle(h, *, resnets, attentions=(), config):
    """Resnet, attention over all pixels with one head, resnet.   (N, C, H, W) -> the same"""
    h = resnet(h, **resnets[0], config=config)
    if attentions:
        h = attention(h, **attentions[0], config=config)
    return resnet(h, **resnets[1], config=config)


def up(h, *, resnets, upsamplers=(), config):
    """(N, C, H, W) -> (N, D, 2 H, 2 W)"""
    for block in resnets:
        h = resnet(h, **block, config=config)
    for block in upsamplers:
        h = layers.upsample(h, **block, height=2 * h.shape[2], width=2 * h.shape[3])
    return h


def attention(x, *, group_norm, to_q, to_k, to_v, to_out, config):
    """x + each pixel looking at all others.   (N, C, H, W) -> the same"""
    H, W = x.shape[2:]
    h = F.to_tokens(F.group_norm(x, **group_norm, groups=config.groups, eps=1e-6))
    h = layers.attention(h, h, to_q=to_q, to_k=to_k, to_v=to_v, to_out=to_out, heads=1)
    return F.add(F.to_image(h, height=H, width=W), x)


def resnet(x, *, config, **block):
    """A residual block that knows no time; every eps in the VAE is 1e-6."""
    return layers.resnet(x, **block, groups=config.groups, eps=1e-6)


def group_norm(x, weight, bias, *, config):
    return F.group_norm(x, weight, bias, groups=config.groups, eps=1e-6)
