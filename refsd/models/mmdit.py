"""The MMDiT, a transformer: picture and text as two streams of tokens that attend to all of both.

Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image
Synthesis"; Peebles and Xie 2022 (patches, adaLN-Zero); names as in diffusers'
SD3Transformer2DModel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refsd import functional as F
from refsd.contracts import need

EPS = 1e-6  # of every norm


@dataclass(frozen=True)
class MMDiTConfig:
    """How many heads, and for which latents it was trained; the rest of it, its shapes tell."""

    heads: int
    sample_size: int

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "MMDiTConfig":
        return cls(heads=config["num_attention_heads"], sample_size=config["sample_size"])


def mmdit(sample, timesteps, encoder_hidden_states, pooled_projections, *, pos_embed,
          time_text_embed, context_embedder, transformer_blocks, norm_out, proj_out, config,
          skip_layers=()):
    """v(x_t, t, text).   (N, C, H, W), (N,), (N, S, E), (N, P) -> (N, C, H, W)

    sample is x_t = (1 - sigma) x_0 + sigma noise, timesteps are 1000 sigma, encoder_hidden_states
    the text token by token, pooled_projections the text as a whole. skip_layers are the numbers of
    blocks to leave out (skip-layer guidance).
    """
    blocks, patch = transformer_blocks, pos_embed["proj"]["weight"].shape[-1]
    need(all(i in range(len(blocks)) for i in skip_layers), "mmdit",
         f"skip_layers is {skip_layers}, wanted numbers of blocks, 0 to {len(blocks) - 1}")
    x = embed_patches(sample, **pos_embed)
    temb = embed_time_and_text(timesteps, pooled_projections, **time_text_embed)
    text = F.linear(encoder_hidden_states, **context_embedder)

    for i, block in enumerate(blocks):
        if i not in skip_layers:
            x, text = joint_block(x, text, temb, **block, heads=config.heads)

    scale, shift = modulation(temb, x, **norm_out)
    x = F.linear(modulate(F.layer_norm(x, eps=EPS), shift, scale), **proj_out)
    return to_pixels(x, patch=patch, rows=sample.shape[2] // patch)


def embed_patches(sample, *, proj, pos_embed):
    """A token for each p x p patch, plus where it lies.   (N, C, H, W) -> (N, H/p W/p, D)

    pos_embed (1, M M, D) has M x M places, of which the picture takes those in the middle.
    """
    patch, most = proj["weight"].shape[-1], round(pos_embed.shape[1] ** 0.5)
    need(all(0 < n <= patch * most and n % patch == 0 for n in sample.shape[2:]), "mmdit",
         f"sample has shape {tuple(sample.shape)}, wanted height and width that are multiples of "
         f"{patch}, up to {patch * most}")
    x = F.conv2d(sample, **proj, stride=patch)

    places = F.to_image(pos_embed, height=most, width=most)
    for axis in (2, 3):
        start, size = (most - x.shape[axis]) // 2, x.shape[axis]
        places = F.slice(places, axis=axis, start=start, stop=start + size)
    return F.add(F.to_tokens(x), F.to_tokens(places))


def embed_time_and_text(timesteps, pooled, *, timestep_embedder, text_embedder):
    """What all blocks are told: the time and the text as a whole.   (N,), (N, P) -> (N, D)"""
    dim = timestep_embedder["linear_1"]["weight"].shape[1]
    time = F.timestep_embedding(timesteps, dim=dim, flip_sin_to_cos=True, freq_shift=0,
                                dtype=str(pooled.dtype))
    return F.add(perceptron(time, **timestep_embedder), perceptron(pooled, **text_embedder))


def perceptron(x, *, linear_1, linear_2):
    """W2 silu(W1 x).   (N, K) -> (N, D)"""
    return F.linear(F.silu(F.linear(x, **linear_1)), **linear_2)


def modulation(temb, x, *, linear):
    """W silu(temb), cut into vectors of x's width D.   (N, D) -> a list of (N, 1, D)"""
    h, width = F.linear(F.silu(temb), **linear), x.shape[-1]
    count = h.shape[-1] // width
    h = F.reshape(h, shape=(h.shape[0], count, width))
    return [F.slice(h, axis=1, start=i, stop=i + 1) for i in range(count)]


def modulate(x, shift, scale):
    """x (1 + scale) + shift.   (N, L, D), twice (N, 1, D) -> (N, L, D)"""
    return F.add(F.mul(x, F.add(scale, 1)), shift)


def joint_block(x, text, temb, *, norm1, norm1_context, attn, ff, attn2=None, ff_context=None,
                heads):
    """Joint attention and a feed-forward in each stream, gated residuals.   -> x, text

    x (N, L, D), text (N, S, D). Where there is an attn2, x also attends to itself alone. The last
    block has no ff_context: it only reads the text, and gives None for it.
    """
    shift, scale, gate, *more = modulation(temb, x, **norm1)
    of_context = modulation(temb, text, **norm1_context)
    if ff_context is None:
        context_scale, context_shift = of_context
    else:
        context_shift, context_scale, context_gate, *of_ff_context = of_context

    normal = F.layer_norm(x, eps=EPS)
    h, context = joint_attention(
        modulate(normal, shift, scale),
        modulate(F.layer_norm(text, eps=EPS), context_shift, context_scale), **attn, heads=heads)
    x = F.add(x, F.mul(h, gate))
    if attn2 is not None:
        shift, scale, gate = more[3:]
        h = self_attention(modulate(normal, shift, scale), **attn2, heads=heads)
        x = F.add(x, F.mul(h, gate))
    x = feed_forward(x, *more[:3], **ff)

    if ff_context is None:
        return x, None
    text = F.add(text, F.mul(context, context_gate))
    return x, feed_forward(text, *of_ff_context, **ff_context)


def joint_attention(x, text, *, to_q, to_k, to_v, to_out, add_q_proj, add_k_proj, add_v_proj,
                    to_add_out=None, norm_q=None, norm_k=None, norm_added_q=None,
                    norm_added_k=None, heads):
    """Each token of either stream asks all of both.   (N, L, D), (N, S, D) -> the same, or None"""
    of_x = queries_keys_values(x, to_q, to_k, to_v, norm_q, norm_k, heads)
    of_text = queries_keys_values(text, add_q_proj, add_k_proj, add_v_proj, norm_added_q,
                                  norm_added_k, heads)
    q, k, v = (F.concat(pair, axis=1) for pair in zip(of_x, of_text))
    h = F.attention(q, k, v, heads=heads)

    L, whole = x.shape[1], h.shape[1]
    x = F.linear(F.slice(h, axis=1, start=0, stop=L), **to_out[0])
    if to_add_out is None:
        return x, None
    return x, F.linear(F.slice(h, axis=1, start=L, stop=whole), **to_add_out)


def self_attention(x, *, to_q, to_k, to_v, to_out, norm_q=None, norm_k=None, heads):
    """Each token asks those of its own stream.   (N, L, D) -> (N, L, D)"""
    q, k, v = queries_keys_values(x, to_q, to_k, to_v, norm_q, norm_k, heads)
    return F.linear(F.attention(q, k, v, heads=heads), **to_out[0])


def queries_keys_values(x, to_q, to_k, to_v, norm_q, norm_k, heads):
    """Three linear layers; queries and keys normalised where there is a norm.   -> (N, L, D) * 3"""
    q, k, v = (F.linear(x, **layer) for layer in (to_q, to_k, to_v))
    return norm_heads(q, norm_q, heads), norm_heads(k, norm_k, heads), v


def norm_heads(x, norm, heads):
    """x / rms(x) times a weight, in each head the same.   (N, L, heads d) -> (N, L, heads d)"""
    if norm is None:
        return x
    by_head = F.reshape(x, shape=(*x.shape[:2], heads, x.shape[2] // heads))
    return F.reshape(F.rms_norm(by_head, **norm, eps=EPS), shape=x.shape)


def feed_forward(x, shift, scale, gate, *, net):
    """x + gate W2 gelu(W1 modulate(norm x)).   (N, L, D) -> the same   net.1 is a dropout"""
    h = modulate(F.layer_norm(x, eps=EPS), shift, scale)
    h = F.linear(F.gelu_tanh(F.linear(h, **net["0"]["proj"])), **net["2"])
    return F.add(x, F.mul(h, gate))


def to_pixels(x, *, patch, rows):
    """Each token as the p x p pixels that it stands for.   (N, h w, p p C) -> (N, C, h p, w p)"""
    N, count, width = x.shape
    columns, channels = count // rows, width // patch**2
    x = F.reshape(x, shape=(N, rows, columns, patch, patch, channels))
    x = F.transpose(x, axes=(0, 5, 1, 3, 2, 4))
    return F.reshape(x, shape=(N, channels, rows * patch, columns * patch))
