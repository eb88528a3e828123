"""The networks a second time, in float64, written without refsd: the truth for refsd.models.

Weights are looked up by their full checkpoint names and the structure is read from config.json, as
the original code bases do it; refsd takes trees apart and reads the structure from what is there.
"""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=["float64"])


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


class Weights:
    """name -> array, as float64."""

    def __init__(self, found):
        self.found = {name: array.astype("float64") for name, array in found.items()}

    def has(self, name):
        return f"{name}.weight" in self.found

    def linear(self, name, x):
        y = np.einsum("...k,ok->...o", x, self.found[f"{name}.weight"])
        return y + self.found.get(f"{name}.bias", 0)

    def conv(self, name, x, stride=1, pad=(1, 1)):
        """pad = (before, after) on both axes; one shifted copy of x for each tap"""
        weight = self.found[f"{name}.weight"]
        x = np.pad(x, ((0, 0), (0, 0), pad, pad))
        k = weight.shape[2]
        Ho, Wo = (x.shape[2] - k) // stride + 1, (x.shape[3] - k) // stride + 1
        y = np.zeros((len(x), len(weight), Ho, Wo)) + self.found[f"{name}.bias"][:, None, None]
        for u in range(k):
            for v in range(k):
                part = x[:, :, u:u + stride * Ho:stride, v:v + stride * Wo:stride]
                y += np.einsum("nchw,oc->nohw", part, weight[:, :, u, v])
        return y

    def one_by_one(self, name, x):
        """A projection of each pixel, stored as a convolution or as a matrix."""
        weight = self.found[f"{name}.weight"].reshape(len(self.found[f"{name}.weight"]), -1)
        return np.einsum("nchw,oc->nohw", x, weight) + self.found[f"{name}.bias"][:, None, None]

    def group_norm(self, name, x, groups, eps):
        N, C, H, W = x.shape
        g = x.reshape(N, groups, -1)
        g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + eps)
        g = g.reshape(N, C, H, W) * self.found[f"{name}.weight"][:, None, None]
        return g + self.found[f"{name}.bias"][:, None, None]

    def layer_norm(self, name, x, eps=1e-5):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return y * self.found[f"{name}.weight"] + self.found[f"{name}.bias"]

    def attention(self, q, k, v, out, x, context, heads, causal=False):
        q, k, v = self.linear(q, x), self.linear(k, context), self.linear(v, context)
        q, k, v = (t.reshape(len(t), t.shape[1], heads, -1) for t in (q, k, v))
        scores = np.einsum("nlhd,nshd->nhls", q, k) / math.sqrt(q.shape[-1])
        if causal:
            scores = scores + np.triu(np.full(scores.shape[2:], -np.inf), 1)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p = p / p.sum(-1, keepdims=True)
        y = np.einsum("nhls,nshd->nlhd", p, v)
        return self.linear(out, y.reshape(*y.shape[:2], -1))

    def resnet(self, name, x, temb, groups, eps):
        h = self.conv(f"{name}.conv1", silu(self.group_norm(f"{name}.norm1", x, groups, eps)))
        if temb is not None:
            h = h + self.linear(f"{name}.time_emb_proj", silu(temb))[:, :, None, None]
        h = self.conv(f"{name}.conv2", silu(self.group_norm(f"{name}.norm2", h, groups, eps)))
        shortcut = f"{name}.conv_shortcut"
        return h + (self.one_by_one(shortcut, x) if self.has(shortcut) else x)

    def transformer(self, name, x, context, heads, groups):
        N, C, H, W = x.shape
        h = self.group_norm(f"{name}.norm", x, groups, 1e-6)
        h = self.one_by_one(f"{name}.proj_in", h).reshape(N, C, H * W).transpose(0, 2, 1)
        block = f"{name}.transformer_blocks.0"
        for i in (1, 2):
            normal = self.layer_norm(f"{block}.norm{i}", h)
            parts = [f"{block}.attn{i}.to_{part}" for part in ("q", "k", "v", "out.0")]
            h = h + self.attention(*parts, normal, normal if i == 1 else context, heads)
        wide = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", h))
        half = wide.shape[-1] // 2
        h = h + self.linear(f"{block}.ff.net.2", wide[..., :half] * gelu(wide[..., half:]))
        h = h.transpose(0, 2, 1).reshape(N, C, H, W)
        return x + self.one_by_one(f"{name}.proj_out", h)


def sinusoids(steps, dim, flip, shift):
    """The frequencies and angles that all checkpoints know: rounded to float32."""
    half = dim // 2
    exponents = np.arange(half).astype("f4") * np.float32(-math.log(10000))
    frequencies = np.exp((exponents / np.float32(half - shift)).astype("f8")).astype("f4")
    angles = (np.asarray(steps, "f4")[:, None] * frequencies).astype("f8")
    pair = [np.cos(angles), np.sin(angles)] if flip else [np.sin(angles), np.cos(angles)]
    return np.concatenate([*pair, np.zeros((len(steps), dim % 2))], axis=1)


def unet(found, config, sample, steps, context, condition=None):
    w = Weights(found)
    widths = config["block_out_channels"]
    levels = range(len(widths))
    layers, heads = (value if isinstance(value, list) else [value] * len(widths)
                     for value in (config["layers_per_block"], config["attention_head_dim"]))
    groups, eps = config["norm_num_groups"], config.get("norm_eps", 1e-5)
    x = sample.astype("float64")
    x = 2 * x - 1 if config.get("center_input_sample") else x

    flip, shift = config.get("flip_sin_to_cos", True), config.get("freq_shift", 0)
    t = sinusoids(steps, widths[0], flip, shift)
    if condition is not None:
        t = t + w.linear("time_embedding.cond_proj", condition)
    temb = w.linear("time_embedding.linear_2", silu(w.linear("time_embedding.linear_1", t)))

    h = w.conv("conv_in", x)
    stack = [h]
    for i in levels:
        for j in range(layers[i]):
            h = w.resnet(f"down_blocks.{i}.resnets.{j}", h, temb, groups, eps)
            if "Cross" in config["down_block_types"][i]:
                h = w.transformer(f"down_blocks.{i}.attentions.{j}", h, context, heads[i], groups)
            stack.append(h)
        if i < len(widths) - 1:
            h = w.conv(f"down_blocks.{i}.downsamplers.0.conv", h, stride=2)
            stack.append(h)

    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if middle is not None:
        h = w.resnet("mid_block.resnets.0", h, temb, groups, eps)
    if middle == "UNetMidBlock2DCrossAttn":
        h = w.transformer("mid_block.attentions.0", h, context, heads[-1], groups)
        h = w.resnet("mid_block.resnets.1", h, temb, groups, eps)

    for i in levels:
        level = len(widths) - 1 - i
        for j in range(layers[level] + 1):
            h = np.concatenate([h, stack.pop()], axis=1)
            h = w.resnet(f"up_blocks.{i}.resnets.{j}", h, temb, groups, eps)
            if "Cross" in config["up_block_types"][i]:
                h = w.transformer(f"up_blocks.{i}.attentions.{j}", h, context, heads[level], groups)
        if level > 0:
            H, W = stack[-1].shape[2:]
            h = h.repeat(2, axis=2)[:, :, :H].repeat(2, axis=3)[..., :W]
            h = w.conv(f"up_blocks.{i}.upsamplers.0.conv", h)
    assert not stack
    return w.conv("conv_out", silu(w.group_norm("conv_norm_out", h, groups, eps)))


def _vae_middle(w, name, h, groups):
    h = w.resnet(f"{name}.resnets.0", h, None, groups, 1e-6)
    attention = f"{name}.attentions.0"
    if w.has(f"{attention}.to_q"):
        N, C, H, W = h.shape
        tokens = w.group_norm(f"{attention}.group_norm", h, groups, 1e-6)
        tokens = tokens.reshape(N, C, H * W).transpose(0, 2, 1)
        parts = [f"{attention}.to_{part}" for part in ("q", "k", "v", "out.0")]
        tokens = w.attention(*parts, tokens, tokens, heads=1)
        h = h + tokens.transpose(0, 2, 1).reshape(N, C, H, W)
    return w.resnet(f"{name}.resnets.1", h, None, groups, 1e-6)


def vae_encode(found, config, image):
    """mean, logvar"""
    w, groups, levels = Weights(found), config["norm_num_groups"], len(config["block_out_channels"])
    h = w.conv("encoder.conv_in", image.astype("float64"))
    for i in range(levels):
        for j in range(config["layers_per_block"]):
            h = w.resnet(f"encoder.down_blocks.{i}.resnets.{j}", h, None, groups, 1e-6)
        if i < levels - 1:
            h = w.conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", h, stride=2, pad=(0, 1))
    h = _vae_middle(w, "encoder.mid_block", h, groups)
    h = w.conv("encoder.conv_out", silu(w.group_norm("encoder.conv_norm_out", h, groups, 1e-6)))
    h = w.one_by_one("quant_conv", h) if w.has("quant_conv") else h
    mean, logvar = np.split(h, 2, axis=1)
    return mean, np.minimum(np.maximum(logvar, -30), 20)


def vae_decode(found, config, latents):
    w, groups, levels = Weights(found), config["norm_num_groups"], len(config["block_out_channels"])
    h = latents.astype("float64")
    h = w.one_by_one("post_quant_conv", h) if w.has("post_quant_conv") else h
    h = _vae_middle(w, "decoder.mid_block", w.conv("decoder.conv_in", h), groups)
    for i in range(levels):
        for j in range(config["layers_per_block"] + 1):
            h = w.resnet(f"decoder.up_blocks.{i}.resnets.{j}", h, None, groups, 1e-6)
        if i < levels - 1:
            h = h.repeat(2, axis=2).repeat(2, axis=3)
            h = w.conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", h)
    return w.conv("decoder.conv_out", silu(w.group_norm("decoder.conv_norm_out", h, groups, 1e-6)))


def clip(found, config, ids, skipped=0):
    w = Weights(found)
    eps, heads = config.get("layer_norm_eps", 1e-5), config["num_attention_heads"]
    activation = {"gelu": gelu, "quick_gelu": quick_gelu}[config.get("hidden_act", "quick_gelu")]
    tokens = w.found["text_model.embeddings.token_embedding.weight"]
    places = w.found["text_model.embeddings.position_embedding.weight"]
    h = tokens[ids] + places[:ids.shape[1]]
    for i in range(config["num_hidden_layers"] - skipped):
        layer = f"text_model.encoder.layers.{i}"
        normal = w.layer_norm(f"{layer}.layer_norm1", h, eps)
        parts = [f"{layer}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
        h = h + w.attention(*parts, normal, normal, heads, causal=True)
        wide = w.linear(f"{layer}.mlp.fc1", w.layer_norm(f"{layer}.layer_norm2", h, eps))
        h = h + w.linear(f"{layer}.mlp.fc2", activation(wide))
    return w.layer_norm("text_model.final_layer_norm", h, eps)
