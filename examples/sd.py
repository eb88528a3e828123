"""Stable Diffusion 1.x on one page: a prompt becomes a picture, with refsd's ops and nothing else.

    python examples/sd.py "a glossy red sphere left of a small blue cube" sphere.png [MODEL] [SEED]

A network is a function whose parameters are the checkpoint's own names: `**block` hands it one
level of the tree of weights. Shapes are (N, C, H, W) for images and (N, L, C) for tokens.
refsd/models says the same with every variant, refsd/schedulers has the other samplers.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from refsd import F, use
from refsd.pipelines.loading import bundled_model
from refsd.random import TorchGenerator
from refsd.text import CLIPTokenizer
from refsd.weights import load_checkpoint


def clip(ids, embeddings, encoder, final_layer_norm, heads):
    """The text as vectors: a transformer that reads from left to right.   (N, L) -> (N, L, D)"""
    x = F.add(F.embedding(ids, **embeddings["token_embedding"]),
              F.embedding(np.arange(ids.shape[1]), **embeddings["position_embedding"]))
    for layer in encoder["layers"]:
        h = F.layer_norm(x, **layer["layer_norm1"], eps=1e-5)
        attn = layer["self_attn"]
        q, k, v = (F.linear(h, **attn[part]) for part in ("q_proj", "k_proj", "v_proj"))
        h = F.attention(q, k, v, heads=heads, causal=True)
        x = F.add(x, F.linear(h, **attn["out_proj"]))
        h = F.layer_norm(x, **layer["layer_norm2"], eps=1e-5)
        h = F.linear(F.quick_gelu(F.linear(h, **layer["mlp"]["fc1"])), **layer["mlp"]["fc2"])
        x = F.add(x, h)
    return F.layer_norm(x, **final_layer_norm, eps=1e-5)


def unet(x, t, text, time_embedding, conv_in, down_blocks, mid_block, up_blocks, conv_norm_out,
         conv_out, heads):
    """The noise in x, or whatever the model was trained to predict.   (N, 4, H, W) -> the same"""
    time = F.timestep_embedding(np.full(len(x), t), dim=len(conv_in["weight"]), dtype="float32",
                                flip_sin_to_cos=True, freq_shift=0)
    time = F.linear(F.silu(F.linear(time, **time_embedding["linear_1"])),
                    **time_embedding["linear_2"])

    def block(h, resnet_weights, attention_weights):
        h = resnet(h, time, **resnet_weights, groups=32, eps=1e-5)
        return h if attention_weights is None else transformer(h, text, **attention_weights,
                                                               heads=heads)

    h = F.conv2d(x, **conv_in, padding=1)
    skips = [h]
    for level in down_blocks:
        for i, weights in enumerate(level["resnets"]):
            h = block(h, weights, level["attentions"][i] if "attentions" in level else None)
            skips.append(h)
        for weights in level.get("downsamplers", ()):
            h = F.conv2d(h, **weights["conv"], stride=2, padding=1)
            skips.append(h)

    h = block(h, mid_block["resnets"][0], mid_block["attentions"][0])
    h = block(h, mid_block["resnets"][1], None)

    for level in up_blocks:
        for i, weights in enumerate(level["resnets"]):
            h = F.concat([h, skips.pop()], axis=1)
            h = block(h, weights, level["attentions"][i] if "attentions" in level else None)
        for weights in level.get("upsamplers", ()):
            height, width = skips[-1].shape[2:]
            h = F.conv2d(F.upsample_nearest(h, height=height, width=width), **weights["conv"],
                         padding=1)

    h = F.silu(F.group_norm(h, **conv_norm_out, groups=32, eps=1e-5))
    return F.conv2d(h, **conv_out, padding=1)


def resnet(x, time=None, *, norm1, conv1, norm2, conv2, time_emb_proj=None, conv_shortcut=None,
           groups, eps):
    """x plus what two convolutions make of it; the time is added between them."""
    h = F.conv2d(F.silu(F.group_norm(x, **norm1, groups=groups, eps=eps)), **conv1, padding=1)
    if time is not None:
        h = F.add(h, F.to_image(F.linear(F.silu(time), **time_emb_proj), height=1, width=1))
    h = F.conv2d(F.silu(F.group_norm(h, **norm2, groups=groups, eps=eps)), **conv2, padding=1)
    return F.add(x if conv_shortcut is None else F.conv2d(x, **conv_shortcut), h)


def transformer(x, text, *, norm, proj_in, transformer_blocks, proj_out, heads):
    """Pixels as tokens: they look at each other, at the text, and go through a perceptron."""
    height, width = x.shape[2:]
    h = F.to_tokens(F.conv2d(F.group_norm(x, **norm, groups=32, eps=1e-6), **proj_in))
    for block in transformer_blocks:
        n = F.layer_norm(h, **block["norm1"], eps=1e-5)
        h = F.add(h, attention(n, n, **block["attn1"], heads=heads))
        n = F.layer_norm(h, **block["norm2"], eps=1e-5)
        h = F.add(h, attention(n, text, **block["attn2"], heads=heads))
        n, net = F.layer_norm(h, **block["norm3"], eps=1e-5), block["ff"]["net"]
        h = F.add(h, F.linear(F.geglu(F.linear(n, **net["0"]["proj"])), **net["2"]))
    return F.add(x, F.conv2d(F.to_image(h, height=height, width=width), **proj_out))


def attention(x, context, *, to_q, to_k, to_v, to_out, heads):
    """Each token of x asks the tokens of context.   (N, L, C), (N, S, D) -> (N, L, C)"""
    q, k, v = F.linear(x, **to_q), F.linear(context, **to_k), F.linear(context, **to_v)
    return F.linear(F.attention(q, k, v, heads=heads), **to_out[0])


def decode(z, decoder, post_quant_conv, groups):
    """Latents to pixels, about [-1, 1].   (N, 4, h, w) -> (N, 3, 8 h, 8 w)"""
    how = {"groups": groups, "eps": 1e-6}
    h = F.conv2d(F.conv2d(z, **post_quant_conv), **decoder["conv_in"], padding=1)

    middle = decoder["mid_block"]
    h = resnet(h, **middle["resnets"][0], **how)
    weights = dict(middle["attentions"][0])
    tokens = F.to_tokens(F.group_norm(h, **weights.pop("group_norm"), **how))
    looked = attention(tokens, tokens, **weights, heads=1)
    h = F.add(h, F.to_image(looked, height=h.shape[2], width=h.shape[3]))
    h = resnet(h, **middle["resnets"][1], **how)

    for level in decoder["up_blocks"]:
        for weights in level["resnets"]:
            h = resnet(h, **weights, **how)
        for weights in level.get("upsamplers", ()):
            h = F.upsample_nearest(h, height=2 * h.shape[2], width=2 * h.shape[3])
            h = F.conv2d(h, **weights["conv"], padding=1)
    h = F.silu(F.group_norm(h, **decoder["conv_norm_out"], **how))
    return F.conv2d(h, **decoder["conv_out"], padding=1)


def draw(prompt, model, seed, steps=20, guidance=3.0):
    """The picture of a prompt, (H, W, 3) bytes: DDIM with classifier-free guidance."""
    parts = load_checkpoint(model)
    text_encoder, net, vae = (parts[name] for name in ("text_encoder", "unet", "vae"))
    ids = CLIPTokenizer.from_folder(model / "tokenizer")(["", prompt])
    text = clip(ids, **text_encoder.tree["text_model"],
                heads=text_encoder.config["num_attention_heads"])

    schedule = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    T, start, end = (schedule[k] for k in ("num_train_timesteps", "beta_start", "beta_end"))
    alpha_bar = np.cumprod(1 - np.linspace(start**0.5, end**0.5, T) ** 2)

    side = net.config["sample_size"]
    x = TorchGenerator(seed).randn(1, 4, side, side)
    for t in np.arange(T, 0, -T / steps).round().astype(int) - 1:
        away, towards = np.split(unet(F.concat([x, x], axis=0), t, text, **net.tree,
                                      heads=net.config["attention_head_dim"]), 2)
        predicted = away + guidance * (towards - away)
        a, b = float(alpha_bar[t] ** 0.5), float((1 - alpha_bar[t]) ** 0.5)
        if schedule["prediction_type"] == "v_prediction":
            clean, noise = a * x - b * predicted, a * predicted + b * x
        else:
            clean, noise = (x - b * predicted) / a, predicted
        before = alpha_bar[max(t - T // steps, 0)]
        x = float(before**0.5) * clean + float((1 - before) ** 0.5) * noise

    image = decode(x / vae.config["scaling_factor"], vae.tree["decoder"],
                   vae.tree["post_quant_conv"], vae.config["norm_num_groups"])
    return (np.clip(image[0] / 2 + 0.5, 0, 1) * 255).round().astype("uint8").transpose(1, 2, 0)


if __name__ == "__main__":
    prompt, path, *rest = sys.argv[1:]
    model = Path(rest[0]) if rest else bundled_model()
    with use("numba"):
        picture = draw(prompt, model, seed=int(rest[1]) if len(rest) > 1 else 2)
    Image.fromarray(picture).save(path)
