"""CLIP, the UNet and DDIM on those kernels: what is dumped is what the graph's kernels give.

`bugs` holds what is wrong with it, {"place.what": value or function of the right value}: the right
port asks at each place, and gets what is right.
"""

import json
import math
from pathlib import Path

import numpy as np

from . import kernels

DTYPES = {"F32": "<f4", "F16": "<f2"}


def read_weights(file):
    """{name: float32} of a safetensors file."""
    data = Path(file).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: np.frombuffer(data, DTYPES[entry["dtype"]], math.prod(entry["shape"]),
                                8 + size + entry["data_offsets"][0]).reshape(
                                    entry["shape"]).astype("f4")
            for name, entry in header.items()}


class Model:
    """The files of a diffusers folder."""

    def __init__(self, folder):
        folder = Path(folder)
        self.text = read_weights(folder / "text_encoder/model.safetensors")
        self.unet = read_weights(folder / "unet/diffusion_pytorch_model.safetensors")
        self.configs = {part: json.loads((folder / part / name).read_text()) for part, name in (
            ("text_encoder", "config.json"), ("unet", "config.json"),
            ("scheduler", "scheduler_config.json"))}


class Port:
    """One run; `dump` is {name: array}, images channels last.

    seed draws the order of sums; eager is the attention that stores its weights. watched: whether
    a stage's tensors are dumped.
    """

    def __init__(self, model, format, *, seed=0, eager=False, bugs=None):
        self.model, self.format, self.eager, self.bugs = model, format, eager, bugs or {}
        self.store, self.random = kernels.STORE[format], np.random.default_rng(seed)
        self.dump, self.stage, self.loaded = {}, "", {}

    # what the kernels are called through

    def tweak(self, place, right, *more):
        found = self.bugs.get(place, right)
        return found(right, *more) if callable(found) and place in self.bugs else found

    def out(self, place, y):
        y = self.store(self.tweak(f"{place}.out", y))
        self.dump[f"{self.stage}.{place}"] = y
        return y

    def weights(self, place, part, *paths):
        """Weights (in, out) or (kH, kW, in, out), several side by side, and the bias; stored."""
        if place not in self.loaded:
            tree = getattr(self.model, part)
            found = [tree[f"{path}.weight"] for path in paths]
            weight = np.concatenate([w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T
                                     for w in found], axis=-1)
            bias = [tree[f"{path}.bias"] for path in paths if f"{path}.bias" in tree]
            bias = np.concatenate(bias) if bias else None
            self.loaded[place] = (self.store(self.tweak(f"{place}.w", weight)), None if bias is None
                                  else self.store(self.tweak(f"{place}.b", bias)))
        return self.loaded[place]

    def gemm(self, place, part, path, x, **more):
        weight, bias = self.weights(place, part, *(path if isinstance(path, list) else [path]))
        weight = weight.reshape(weight.shape[-2:])  # of a 1 x 1 convolution
        if "then" in more:
            more["then"] = self.tweak(f"{place}.then", more["then"])
        if "skip" in more:
            more["skip"] = self.tweak(f"{place}.skip", more["skip"])
        return self.out(place, kernels.gemm(x, weight, bias, order=self.random.permutation(
            len(weight)), **more))

    def conv(self, place, path, x, **more):
        weight, bias = self.weights(place, "unet", path)
        for what in ("pads", "time"):
            if what in more or f"{place}.{what}" in self.bugs:
                more[what] = self.tweak(f"{place}.{what}", more.get(what))
        order = self.random.permutation(math.prod(weight.shape[:3]))
        return self.out(place, kernels.conv(x, weight, bias, order=order, **more))

    def group_norm(self, place, path, x, *, eps, then=None):
        weight, bias = (self.store(self.model.unet[f"{path}.{end}"]) for end in ("weight", "bias"))
        options = {"groups": self.model.configs["unet"]["norm_num_groups"], "eps": eps,
                   "ddof": 0, "interleaved": False, "then": then}
        options = {name: self.bugs.get(f"{place}.{name}", right) for name, right in options.items()}
        return self.out(place, kernels.group_norm(x, weight, bias, **options))

    def layer_norm(self, place, part, path, x):
        tree, eps = getattr(self.model, part), self.tweak(f"{place}.eps", 1e-5)
        weight, bias = (self.store(tree[f"{path}.{end}"]) for end in ("weight", "bias"))
        return self.out(place, kernels.layer_norm(x, weight, bias, eps=eps))

    def attention(self, place, q, k, v, *, heads, causal=False):
        k, v = self.tweak(f"{place}.kv", (k, v))
        return self.out(place, kernels.attention(
            q, k, v, heads=heads, store=self.store, eager=self.eager,
            causal=self.tweak(f"{place}.causal", causal),
            scale=self.bugs.get(f"{place}.scale"), mixed=self.bugs.get(f"{place}.mixed", False)))

    # CLIP

    def encode(self, number, ids):
        """ids (1, L) -> (1, L, C)"""
        self.stage, config = f"clip.{number}", self.model.configs["text_encoder"]
        ids = self.tweak("ids.out", ids)
        self.dump[f"{self.stage}.ids"] = ids
        tables = (self.model.text[f"embeddings.{name}_embedding.weight"]
                  for name in ("token", "position"))
        tokens, positions = map(self.store, tables)
        x = self.out("emb", tokens[ids] + positions[:ids.shape[1]])
        for i in range(config["num_hidden_layers"]):
            x = self.clip_layer(f"l{i}", f"encoder.layers.{i}", x,
                                config["num_attention_heads"])
        if self.bugs.get("last.left_out"):
            return self.out("last", x)
        return self.layer_norm("last", "text", "final_layer_norm", x)

    def clip_layer(self, place, path, x, heads):
        h = self.layer_norm(f"{place}.ln1", "text", f"{path}.layer_norm1", x)
        qkv = self.gemm(f"{place}.qkv", "text", [f"{path}.self_attn.{one}_proj" for one in "qkv"],
                        h)
        h = self.attention(f"{place}.attn", *np.split(qkv, 3, axis=-1), heads=heads, causal=True)
        x = self.gemm(f"{place}.proj", "text", f"{path}.self_attn.out_proj", h, skip=x)
        h = self.layer_norm(f"{place}.ln2", "text", f"{path}.layer_norm2", x)
        h = self.gemm(f"{place}.fc1", "text", f"{path}.mlp.fc1", h, then=kernels.quick_gelu)
        return self.gemm(f"{place}.fc2", "text", f"{path}.mlp.fc2", h, skip=x)

    # UNet

    def resnet(self, place, path, x, temb):
        time = self.gemm(f"{place}.time", "unet", f"{path}.time_emb_proj", kernels.silu(temb))
        h = self.group_norm(f"{place}.act1", f"{path}.norm1", x, eps=1e-5, then=kernels.silu)
        h = self.conv(f"{place}.c1", f"{path}.conv1", h, time=time)
        h = self.group_norm(f"{place}.act2", f"{path}.norm2", h, eps=1e-5, then=kernels.silu)
        if f"{path}.conv_shortcut.weight" in self.model.unet:
            x = self.gemm(f"{place}.short", "unet", f"{path}.conv_shortcut", x)
        return self.conv(f"{place}.c2", f"{path}.conv2", h, skip=x)

    def transformer(self, place, path, x, text):
        N, H, W, C = x.shape
        heads, block = self.model.configs["unet"]["attention_head_dim"], (
            f"{path}.transformer_blocks.0")
        h = self.group_norm(f"{place}.gn", f"{path}.norm", x, eps=1e-6)
        h = self.gemm(f"{place}.pin", "unet", f"{path}.proj_in", h)
        columns = self.bugs.get(f"{place}.columns")
        h = (h.swapaxes(1, 2) if columns else h).reshape(N, H * W, C)
        y = self.layer_norm(f"{place}.ln1", "unet", f"{block}.norm1", h)
        qkv = self.gemm(f"{place}.qkv", "unet", [f"{block}.attn1.to_{one}" for one in "qkv"], y)
        y = self.attention(f"{place}.self", *np.split(qkv, 3, axis=-1), heads=heads)
        h = self.gemm(f"{place}.so", "unet", f"{block}.attn1.to_out.0", y, skip=h)
        y = self.layer_norm(f"{place}.ln2", "unet", f"{block}.norm2", h)
        q = self.gemm(f"{place}.q", "unet", f"{block}.attn2.to_q", y)
        kv = self.gemm(f"{place}.kv", "unet", [f"{block}.attn2.to_{one}" for one in "kv"], text)
        y = self.attention(f"{place}.cross", q, *np.split(kv, 2, axis=-1), heads=heads)
        h = self.gemm(f"{place}.co", "unet", f"{block}.attn2.to_out.0", y, skip=h)
        y = self.layer_norm(f"{place}.ln3", "unet", f"{block}.norm3", h)
        y = self.gemm(f"{place}.ff1", "unet", f"{block}.ff.net.0.proj", y, then=kernels.gated)
        h = self.gemm(f"{place}.ff2", "unet", f"{block}.ff.net.2", y, skip=h)
        h = h.reshape(N, W, H, C).swapaxes(1, 2) if columns else h.reshape(N, H, W, C)
        return self.gemm(f"{place}.pout", "unet", f"{path}.proj_out", h, skip=x)

    def time(self, t):
        size, half = 64, np.arange(32, dtype="f4")
        shift, first = self.bugs.get("time.shift", 0), self.bugs.get("time.sines_first", False)
        t = self.tweak("time.t", np.asarray(t, "f4"))
        angles = t[:, None] * np.exp(half * np.float32(-math.log(10000) / (size / 2 - shift)))
        waves = [np.cos(angles), np.sin(angles)]
        h = self.out("waves", np.concatenate(waves[::-1] if first else waves, axis=1))
        h = self.gemm("time1", "unet", "time_embedding.linear_1", h, then=kernels.silu)
        return self.gemm("time2", "unet", "time_embedding.linear_2", h)

    def unet(self, step, x, t, text):
        """x (2, h, w, 4), text (2, L, C) -> (2, h, w, 4)"""
        self.stage, x, text = f"unet.{step}", self.store(x), self.store(text)
        temb, config = self.time([t] * len(x)), self.model.configs["unet"]
        h = self.conv("first", "conv_in", x)
        skips, levels = [h], len(config["block_out_channels"])
        for level, kind in enumerate(config["down_block_types"]):
            h = self.resnet(f"d{level}.r0", f"down_blocks.{level}.resnets.0", h, temb)
            if "Cross" in kind:
                h = self.transformer(f"d{level}.t0", f"down_blocks.{level}.attentions.0", h, text)
            skips.append(h)
            if level < levels - 1:
                h = self.conv(f"d{level}.down", f"down_blocks.{level}.downsamplers.0.conv", h,
                              stride=2, pads=((1, 1), (1, 1)))
                skips.append(h)
        h = self.resnet("m.r0", "mid_block.resnets.0", h, temb)
        h = self.transformer("m.t0", "mid_block.attentions.0", h, text)
        h = self.resnet("m.r1", "mid_block.resnets.1", h, temb)
        for level, kind in enumerate(config["up_block_types"]):
            for i in range(config["layers_per_block"] + 1):
                place, path = f"u{level}.r{i}", f"up_blocks.{level}.resnets.{i}"
                both = self.tweak(f"{place}.cat", (h, skips.pop()))
                h = self.out(f"{place}.cat", np.concatenate(both, axis=-1))
                h = self.resnet(place, path, h, temb)
                if "Cross" in kind:
                    h = self.transformer(f"u{level}.t{i}", f"up_blocks.{level}.attentions.{i}", h,
                                         text)
            if level < levels - 1:
                up = self.tweak(f"u{level}.up.how", h.repeat(2, axis=1).repeat(2, axis=2), h)
                h = self.conv(f"u{level}.up", f"up_blocks.{level}.upsamplers.0.conv", up)
        h = self.group_norm("act", "conv_norm_out", h, eps=1e-5, then=kernels.silu)
        return self.conv("last", "conv_out", h)

    # from ids to latents

    def draw(self, ids, noise, *, steps, guidance):
        """ids: positive, negative; noise (1, 4, h, w) -> latents (1, h, w, 4); those are float32"""
        towards, away = (self.encode(i, one) for i, one in enumerate(ids))
        both = np.concatenate(self.tweak("denoise.text", (away, towards)))
        x = noise.transpose(0, 2, 3, 1).astype("f4")
        self.dump |= {"denoise.text": both, "denoise.noise": x}
        for step, (t, a, before) in enumerate(self.schedule(steps)):
            t = self.tweak("denoise.t", t, step)
            pair = self.store(np.concatenate([x, x]))
            v = self.unet(step, pair, t, both)
            u, c = v[:1], v[1:]
            combine = self.bugs.get("denoise.guide", lambda u, c, s: u + s * (c - u))
            v_all = combine(u, c, np.float32(guidance))
            step_by = self.bugs.get("denoise.step", by_velocity)
            self.dump |= {f"denoise.{step}.pair": pair, f"denoise.{step}.u": u,
                          f"denoise.{step}.c": c, f"denoise.{step}.v": v_all}
            x = step_by(x, v_all, *map(np.float32, (a, before)))
            self.dump[f"denoise.{step}.x"] = x
        return x

    def schedule(self, steps):
        """(t, alpha_bar there, alpha_bar one step on), trailing"""
        config = self.model.configs["scheduler"]
        root = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000)
        alphas = np.cumprod(1 - root**2)
        times = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
        last = self.bugs.get("denoise.last", alphas[0])
        return [(t, alphas[t], alphas[t - 1000 // steps] if t >= 1000 // steps else last)
                for t in times]


def by_velocity(x, v, a, before):
    """DDIM of a model that predicts v = sqrt(a) eps - sqrt(1 - a) x0"""
    clean = np.sqrt(a) * x - np.sqrt(1 - a) * v
    eps = np.sqrt(a) * v + np.sqrt(1 - a) * x
    return np.sqrt(before) * clean + np.sqrt(1 - before) * eps


def by_epsilon(x, eps, a, before):
    """The same for a model that predicts the noise."""
    clean = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
    return np.sqrt(before) * clean + np.sqrt(1 - before) * eps
