"""The blocks that the UNet and the VAE are made of."""

from weakref import WeakKeyDictionary

from refsd import functional as F
from refsd.leaf import Weight


def resnet(x, temb=None, *, norm1, conv1, norm2, conv2, time_emb_proj=None, conv_shortcut=None,
           groups, eps):
    """x + conv2(silu(norm2(conv1(silu(norm1 x)) + W silu(temb)))).   (N, C, H, W) -> (N, D, H, W)

    temb (N, T) or None; conv_shortcut is present where D differs from C. He et al. 2015, with the
    time of Ho et al. 2020.
    """
    h = F.silu(F.group_norm(x, **norm1, groups=groups, eps=eps))
    h = F.conv2d(h, **conv1, padding=1)

    if time_emb_proj is not None:
        time = F.linear(F.silu(temb), **time_emb_proj)
        h = F.add(h, F.to_image(time, height=1, width=1))

    h = F.silu(F.group_norm(h, **norm2, groups=groups, eps=eps))
    h = F.conv2d(h, **conv2, padding=1)

    if conv_shortcut is not None:
        x = F.conv2d(x, **conv_shortcut)
    return F.add(x, h)


class Text:
    """Encoded prompts (N, S, D), and the keys and values that each layer makes of them, made once.

    Neither changes from step to step: give a UNet this instead of the array to save the work. What
    a leaf (refsd.leaf) makes of read-only states is kept while the leaf is alive; of arrays, which
    could be written to, keys and values are made at every call.
    """

    def __init__(self, states):
        self.states, self._made = states, WeakKeyDictionary()

    @property
    def lasting(self):
        """Whether nobody can write to the states, so that what leaves make of them may be kept."""
        flags = getattr(self.states, "flags", None)
        return flags is not None and not flags.writeable

    def keys_values(self, to_k, to_v):
        """(N, S, C) twice, made once for these leaves."""
        return self._linear(**to_k), self._linear(**to_v)

    def _linear(self, weight, bias=None):
        lasting = self.lasting and isinstance(weight, Weight) and (
            bias is None or isinstance(bias, Weight))
        if not lasting:
            return F.linear(self.states, weight, bias)
        kept = self._made.get(weight.identity)
        if kept is None or kept[0] is not bias:
            kept = self._made[weight.identity] = bias, F.linear(self.states, weight, bias)
        return kept[1]


def attention(x, context, *, to_q, to_k, to_v, to_out, heads):
    """Each token of x asks the tokens of context.   (N, L, C), (N, S, D) or Text -> (N, L, C)"""
    text = context if isinstance(context, Text) else Text(context)
    k, v = text.keys_values(to_k, to_v)
    return F.linear(F.attention(F.linear(x, **to_q), k, v, heads=heads), **to_out[0])


def feed_forward(x, *, net):
    """W2 geglu(W1 x).   (N, L, C) -> (N, L, C)   net.1 is a dropout, which has no weights"""
    return F.linear(F.geglu(F.linear(x, **net["0"]["proj"])), **net["2"])


def transformer_block(x, context, *, norm1, attn1, norm2, attn2, norm3, ff, heads):
    """Self-attention, attention to the text, feed-forward, each a residual.   (N, L, C) -> same"""
    h = F.layer_norm(x, **norm1, eps=1e-5)
    x = F.add(attention(h, h, **attn1, heads=heads), x)

    h = F.layer_norm(x, **norm2, eps=1e-5)
    x = F.add(attention(h, context, **attn2, heads=heads), x)

    h = F.layer_norm(x, **norm3, eps=1e-5)
    return F.add(feed_forward(h, **ff), x)


def transformer(x, context, *, norm, proj_in, transformer_blocks, proj_out, heads, groups):
    """x + the picture's pixels as tokens that look at each other and at the text.

    x (N, C, H, W), context (N, S, D) -> (N, C, H, W). The projections are 1 x 1 convolutions in
    some checkpoints and linear layers in others: their weights' shapes tell which.
    """
    H, W = x.shape[2:]
    as_conv = len(proj_in["weight"].shape) == 4
    h = F.group_norm(x, **norm, groups=groups, eps=1e-6)
    h = F.to_tokens(F.conv2d(h, **proj_in)) if as_conv else F.linear(F.to_tokens(h), **proj_in)

    for block in transformer_blocks:
        h = transformer_block(h, context, **block, heads=heads)

    if as_conv:
        h = F.conv2d(F.to_image(h, height=H, width=W), **proj_out)
    else:
        h = F.to_image(F.linear(h, **proj_out), height=H, width=W)
    return F.add(h, x)


def downsample(x, *, conv, padding):
    """Half the size by a convolution of stride 2.   (N, C, H, W) -> (N, C, H / 2, W / 2)"""
    return F.conv2d(x, **conv, stride=2, padding=padding)


def upsample(x, *, conv, height, width):
    """Nearest neighbours, then a convolution.   (N, C, H, W) -> (N, C, height, width)"""
    return F.conv2d(F.upsample_nearest(x, height=height, width=width), **conv, padding=1)
