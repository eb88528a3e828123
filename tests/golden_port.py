"""A stand-in for someone's port: text to image without refsd, every tensor dumped under its name.

In float64 (Ops(format="float64")) it is also the truth for refsd.models, whatever the config. The
networks are written from the papers and the checkpoint's names; the ops are those of
golden_port_ops, or any object with the same methods. Names follow golden/README.md: an op with
weights has their path, another one that of the block around it and the name of the op.
"""

import numpy as np
from golden_port_ops import schedule


class Tree:
    """The weights under one prefix: `tree.at("conv1")` goes down, `tree.w` is the weight there."""

    def __init__(self, weights, path=""):
        self.weights, self.path = weights, path

    def at(self, *names):
        return Tree(self.weights, ".".join([p for p in (self.path, *map(str, names)) if p]))

    def __contains__(self, name):
        return any(key.startswith(self.at(name).path + ".") for key in self.weights)

    @property
    def w(self):
        return self.weights[f"{self.path}.weight"]

    @property
    def b(self):
        return self.weights.get(f"{self.path}.bias")


class Port:
    """Runs the model; `dump` is left with what each op gave, in the order of execution.

    `after(name, array)` may change what is dumped and what is handed on: (dumped, handed on).
    """

    def __init__(self, ops, weights, configs, *, after=None):
        self.ops, self.configs, self.after = ops, configs, after
        self.trees = {part: Tree(found) for part, found in weights.items()}
        self.dump, self.stage = {}, ""

    def enter(self, stage):
        self.stage = stage
        self.ops.enter(stage)

    def put(self, path, array):
        name = f"{self.stage}/{path}"
        self.dump[name], array = self.after(name, array) if self.after else (array, array)
        return array

    def op(self, parent, op, *args, called=None, **options):
        """An op without weights, named after the block that it belongs to."""
        stem = ".".join(p for p in (parent.path if isinstance(parent, Tree) else parent,
                                    called or op) if p)
        path, count = stem, 1
        while f"{self.stage}/{path}" in self.dump:
            count += 1
            path = f"{stem}.{count}"
        return self.put(path, getattr(self.ops, op)(*args, **options))

    def dense(self, op, tree, x, **options):
        """An op with weights, named after them."""
        return self.put(tree.path, getattr(self.ops, op)(x, tree.w, tree.b, **options))

    # CLIP

    def encode_text(self, number, ids, *, skipped=0):
        self.enter(f"tokens/{number:03d}")
        ids = self.put("ids", ids)
        self.enter(f"text/{number:03d}")
        config = self.configs["text_encoder"]
        tree, eps = self.trees["text_encoder"].at("text_model"), config.get("layer_norm_eps", 1e-5)
        common = {"heads": config["num_attention_heads"], "eps": eps,
                  "activation": config.get("hidden_act", "quick_gelu")}
        place = tree.at("embeddings")
        tokens = place.at("token_embedding")
        positions = place.at("position_embedding")
        x = self.put(tokens.path, self.ops.embedding(ids, tokens.w))
        y = self.put(positions.path, self.ops.embedding(np.arange(ids.shape[1]), positions.w)
                     if self.ops.wrong != "token_off_by_one" else
                     self.ops.round(positions.w)[np.arange(ids.shape[1])])
        x = self.op(place, "add", x, y)
        for i in range(config["num_hidden_layers"] - skipped):
            x = self.text_layer(tree.at("encoder.layers", i), x, **common)
        x = self.dense("layer_norm", tree.at("final_layer_norm"), x, eps=eps)
        end = np.argmax(ids[0] == config["eos_token_id"])
        self.put("text_model.gather", x[:, end])
        return self.put("last_hidden_state", x)

    def text_layer(self, tree, x, *, heads, eps, activation):
        h = self.dense("layer_norm", tree.at("layer_norm1"), x, eps=eps)
        part = tree.at("self_attn")
        q, k, v = (self.dense("linear", part.at(name), h) for name in ("q_proj", "k_proj",
                                                                       "v_proj"))
        h = self.op(part, "attention", q, k, v, heads=heads, causal=True)
        h = self.dense("linear", part.at("out_proj"), h)
        x = self.op(part, "residual", h, x, called="add")

        h = self.dense("layer_norm", tree.at("layer_norm2"), x, eps=eps)
        part = tree.at("mlp")
        h = self.dense("linear", part.at("fc1"), h)
        h = self.dense("linear", part.at("fc2"), self.op(part, activation, h))
        return self.op(part, "residual", h, x, called="add")

    # Blocks of the UNet and the VAE

    def resnet(self, tree, x, temb=None, *, groups, eps):
        h = self.dense("group_norm", tree.at("norm1"), x, groups=groups, eps=eps)
        h = self.dense("conv", tree.at("conv1"), self.op(tree, "silu", h), padding=1)
        if temb is not None:
            time = self.dense("linear", tree.at("time_emb_proj"), self.op(tree, "silu", temb))
            h = self.op(tree, "add", h, self.op(tree, "to_image", time[:, None], 1, 1))
        h = self.dense("group_norm", tree.at("norm2"), h, groups=groups, eps=eps)
        h = self.dense("conv", tree.at("conv2"), self.op(tree, "silu", h), padding=1)
        if "conv_shortcut" in tree:
            x = self.dense("conv", tree.at("conv_shortcut"), x)
        return self.op(tree, "residual", h, x, called="add")

    def attend(self, tree, x, context, *, heads, made=None):
        """`made` keeps the keys and values of a text from step to step."""
        made = {} if made is None else made
        if tree.path not in made:
            made[tree.path] = [self.dense("linear", tree.at(name), context)
                               for name in ("to_k", "to_v")]
        q = self.dense("linear", tree.at("to_q"), x)
        h = self.op(tree, "attention", q, *made[tree.path], heads=heads)
        return self.dense("linear", tree.at("to_out.0"), h)

    def transformer(self, tree, x, text, *, heads, groups):
        height, width = x.shape[2:]
        h = self.dense("group_norm", tree.at("norm"), x, groups=groups, eps=1e-6)
        h = self.op(tree, "to_tokens", self.dense("conv", tree.at("proj_in"), h))
        depth = 0
        while f"transformer_blocks.{depth}" in tree:
            h, part = self.transformer_block(tree.at("transformer_blocks", depth), h, text, heads)
            depth += 1
        h = self.op(part, "to_image", h, height, width)
        return self.op(tree, "residual", self.dense("conv", tree.at("proj_out"), h), x,
                       called="add")

    def transformer_block(self, block, h, text, heads):
        for norm, attn in (("norm1", "attn1"), ("norm2", "attn2")):
            y = self.dense("layer_norm", block.at(norm), h, eps=1e-5)
            y = self.attend(block.at(attn), y, *((y,) if attn == "attn1" else text[:1]),
                            heads=heads, made=None if attn == "attn1" else text[1])
            h = self.op(block.at(attn), "residual", y, h, called="add")
        y = self.dense("layer_norm", block.at("norm3"), h, eps=1e-5)
        part = block.at("ff")
        y = self.op(part, "geglu", self.dense("linear", part.at("net.0.proj"), y))
        y = self.dense("linear", part.at("net.2"), y)
        return self.op(part, "residual", y, h, called="add"), part

    # UNet

    def unet(self, step, x, timesteps, text, condition=None, added=None):
        """text: (N, L, C), and a dict that keeps its keys and values from step to step.

        added: the text as a vector (N, P), and time ids (N, K).
        """
        self.enter(f"unet/{step:03d}")
        text = self.ops.round(text[0]), text[1]  # cast before the network, as x is
        config, tree, x = self.configs["unet"], self.trees["unet"], self.ops.round(x)
        common = {"groups": config["norm_num_groups"], "eps": config.get("norm_eps", 1e-5)}
        levels = len(config["block_out_channels"])
        layers, heads = (value if isinstance(value, list) else [value] * levels
                         for value in (config["layers_per_block"], config["attention_head_dim"]))

        def layer(block, i, h, kind, heads):
            h = self.resnet(block.at("resnets", i), h, temb, **common)
            return h if "Cross" not in kind else self.transformer(
                block.at("attentions", i), h, text, heads=heads, groups=common["groups"])

        temb = self.time(tree.at("time_embedding"), np.resize(timesteps, len(x)), condition)
        if added is not None:
            temb = self.op(tree, "add", temb, self.added(tree.at("add_embedding"), *added))
        x = 2 * x - 1 if config.get("center_input_sample") else x
        h = self.dense("conv", tree.at("conv_in"), x, padding=1)
        skips = [h]
        for level, kind in enumerate(config["down_block_types"]):
            block = tree.at("down_blocks", level)
            for i in range(layers[level]):
                h = layer(block, i, h, kind, heads[level])
                skips.append(h)
            if level < levels - 1:
                h = self.dense("conv", block.at("downsamplers.0.conv"), h, stride=2, padding=1)
                skips.append(h)

        kind = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
        if kind is not None:
            h = layer(tree.at("mid_block"), 0, h, kind, heads[-1])
            if "Cross" in kind:
                h = self.resnet(tree.at("mid_block.resnets.1"), h, temb, **common)

        for up, kind in enumerate(config["up_block_types"]):
            block, level = tree.at("up_blocks", up), levels - 1 - up
            for i in range(layers[level] + 1):
                h = self.op(block.at("resnets", i), "concat", [h, skips.pop()], 1)
                h = layer(block, i, h, kind, heads[level])
            if level > 0:
                h = self.enlarge(block.at("upsamplers.0"), h, *skips[-1].shape[2:])
        return self.finish(tree, h, **common)

    def added(self, tree, vector, ids):
        config = self.configs["unet"]
        parts = [self.ops.timestep_embedding(
            column, config["addition_time_embed_dim"],
            cosines_first=config.get("flip_sin_to_cos", True),
            shift=config.get("freq_shift", 0)) for column in np.transpose(ids)]
        h = self.op(tree, "concat", [self.ops.round(vector), *parts], 1)
        h = self.op(tree, "silu", self.dense("linear", tree.at("linear_1"), h))
        return self.dense("linear", tree.at("linear_2"), h)

    def time(self, tree, timesteps, condition):
        config = self.configs["unet"]
        t = self.op(tree, "timestep_embedding", timesteps, config["block_out_channels"][0],
                    cosines_first=config.get("flip_sin_to_cos", True),
                    shift=config.get("freq_shift", 0))
        if condition is not None:
            t = self.op(tree, "add", t, self.dense("linear", tree.at("cond_proj"), condition))
        t = self.dense("linear", tree.at("linear_1"), t)
        return self.dense("linear", tree.at("linear_2"), self.op(tree, "silu", t))

    def enlarge(self, tree, h, height, width):
        h = self.op(tree, "upsample", h, height, width, called="upsample_nearest")
        return self.dense("conv", tree.at("conv"), h, padding=1)

    def finish(self, tree, h, *, groups, eps):
        h = self.dense("group_norm", tree.at("conv_norm_out"), h, groups=groups, eps=eps)
        return self.dense("conv", tree.at("conv_out"), self.op(tree.path, "silu", h), padding=1)

    # VAE

    def decode(self, z):
        self.enter("decode")
        image = self.decode_each(self.op("", "first", z, called="slice"))
        return self.op(self.trees["vae"].at("decoder"), "concat", [image], 0)

    def decode_each(self, h):
        config, tree = self.configs["vae"], self.trees["vae"]
        common = {"groups": config["norm_num_groups"], "eps": 1e-6}
        if "post_quant_conv" in tree:
            h = self.dense("conv", tree.at("post_quant_conv"), h)
        tree, levels = tree.at("decoder"), len(config["block_out_channels"])
        h = self.dense("conv", tree.at("conv_in"), h, padding=1)
        h = self.vae_middle(tree.at("mid_block"), h, **common)
        for level in range(levels):
            block = tree.at("up_blocks", level)
            for i in range(config["layers_per_block"] + 1):
                h = self.resnet(block.at("resnets", i), h, **common)
            if level < levels - 1:
                h = self.enlarge(block.at("upsamplers.0"), h, *(2 * n for n in h.shape[2:]))
        return self.finish(tree, h, **common)

    def encode(self, h):
        """The mean and the logarithm of the variance of an image's latents."""
        self.enter("encode")
        config, tree = self.configs["vae"], self.trees["vae"].at("encoder")
        common = {"groups": config["norm_num_groups"], "eps": 1e-6}
        levels = len(config["block_out_channels"])
        h = self.dense("conv", tree.at("conv_in"), self.ops.round(h), padding=1)
        for level in range(levels):
            block = tree.at("down_blocks", level)
            for i in range(config["layers_per_block"]):
                h = self.resnet(block.at("resnets", i), h, **common)
            if level < levels - 1:
                h = np.pad(h, ((0, 0), (0, 0), (0, 1), (0, 1)))
                h = self.dense("conv", block.at("downsamplers.0.conv"), h, stride=2)
        h = self.finish(tree, self.vae_middle(tree.at("mid_block"), h, **common), **common)
        if "quant_conv" in self.trees["vae"]:
            h = self.dense("conv", self.trees["vae"].at("quant_conv"), h)
        mean, logvar = np.split(h, 2, axis=1)
        return mean, np.clip(logvar, -30, 20)

    def vae_middle(self, tree, h, **common):
        h = self.resnet(tree.at("resnets.0"), h, **common)
        if "attentions" in tree:
            h = self.look_around(tree.at("attentions.0"), h, **common)
        return self.resnet(tree.at("resnets.1"), h, **common)

    def look_around(self, tree, x, *, groups, eps):
        height, width = x.shape[2:]
        h = self.dense("group_norm", tree.at("group_norm"), x, groups=groups, eps=eps)
        h = self.op(tree, "to_tokens", h)
        h = self.attend(tree, h, h, heads=1)
        h = self.op(tree, "to_image", h, height, width)
        return self.op(tree, "residual", h, x, called="add")

    # From ids to a picture

    def draw(self, ids, noise, *, steps, guidance):
        """ids: positive and negative (1, L); noise (1, 4, h, w) -> bytes (1, H, W, 3)"""
        towards, away = (self.encode_text(i, one) for i, one in enumerate(ids))
        self.enter("denoise")
        noise = self.put("noise", self.ops.round(noise))
        text, x = self.op("", "concat", [away, towards], 0), self.put("initial", noise)
        text = text, {}
        for step, (t, a, b) in enumerate(schedule(self.configs["scheduler"], steps)):
            self.enter(f"denoise/{step:03d}")
            scaled = self.put("scaled", x)
            pair = self.op("", "concat", [scaled, scaled], 0)
            eps = self.unet(step, pair, self.wrong_step(t, step, steps), text)
            self.enter(f"denoise/{step:03d}")
            eps = [self.put("eps_uncond", eps[:1]), self.put("eps_cond", eps[1:])]
            eps = self.put("guided", self.ops.guide(*eps, guidance))
            if self.ops.wrong == "alpha_bar":
                a = b
            x = self.put("latents", self.ops.ddim(x, eps, a, b))
        self.enter("denoise")
        return self.picture(self.put("final", x))

    def picture(self, x):
        self.enter("decode")
        factor = self.configs["vae"].get("scaling_factor", 0.18215)
        decoded = self.decode(self.put("latents", self.ops.unscale(x, factor)))
        self.enter("picture")
        image = self.put("image", self.ops.to_picture(decoded))
        return self.put("pixels", self.ops.to_bytes(image))

    def wrong_step(self, t, step, steps):
        if self.ops.wrong != "timestep":
            return t
        return schedule(self.configs["scheduler"], steps)[min(step + 1, steps - 1)][0]
