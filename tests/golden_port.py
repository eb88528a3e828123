"""A stand-in for someone's port: text to image without refsd, every tensor dumped under its name.

The networks are written from the papers and the checkpoint's names; the ops are those of
golden_port_ops, or any object with the same methods. Names follow golden/README.md: an op with
weights has their path, another one that of the block around it and the name of the op.
"""

import math

import numpy as np


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
        if self.after is not None:
            self.dump[name], array = self.after(name, array)
        else:
            self.dump[name] = array
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

    def encode_text(self, number, ids):
        self.enter(f"tokens/{number:03d}")
        ids = self.put("ids", ids)
        self.enter(f"text/{number:03d}")
        config = self.configs["text_encoder"]
        tree, heads = self.trees["text_encoder"].at("text_model"), config["num_attention_heads"]
        place = tree.at("embeddings")
        tokens = place.at("token_embedding")
        positions = place.at("position_embedding")
        x = self.put(tokens.path, self.ops.embedding(ids, tokens.w))
        y = self.put(positions.path, self.ops.embedding(np.arange(ids.shape[1]), positions.w)
                     if self.ops.wrong != "token_off_by_one" else
                     self.ops.round(positions.w)[np.arange(ids.shape[1])])
        x = self.op(place, "add", x, y)
        for i in range(config["num_hidden_layers"]):
            x = self.text_layer(tree.at("encoder.layers", i), x, heads)
        x = self.dense("layer_norm", tree.at("final_layer_norm"), x, eps=1e-5)
        end = np.argmax(ids[0] == config["eos_token_id"])
        self.put("text_model.gather", x[:, end])
        return self.put("last_hidden_state", x)

    def text_layer(self, tree, x, heads):
        h = self.dense("layer_norm", tree.at("layer_norm1"), x, eps=1e-5)
        part = tree.at("self_attn")
        q, k, v = (self.dense("linear", part.at(name), h) for name in ("q_proj", "k_proj",
                                                                       "v_proj"))
        h = self.op(part, "attention", q, k, v, heads=heads, causal=True)
        h = self.dense("linear", part.at("out_proj"), h)
        x = self.op(part, "residual", h, x, called="add")

        h = self.dense("layer_norm", tree.at("layer_norm2"), x, eps=1e-5)
        part = tree.at("mlp")
        h = self.dense("linear", part.at("fc1"), h)
        h = self.dense("linear", part.at("fc2"), self.op(part, "quick_gelu", h))
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
        block = tree.at("transformer_blocks.0")
        for norm, attn in (("norm1", "attn1"), ("norm2", "attn2")):
            y = self.dense("layer_norm", block.at(norm), h, eps=1e-5)
            y = self.attend(block.at(attn), y, *((y,) if attn == "attn1" else text[:1]),
                            heads=heads, made=None if attn == "attn1" else text[1])
            h = self.op(block.at(attn), "residual", y, h, called="add")
        y = self.dense("layer_norm", block.at("norm3"), h, eps=1e-5)
        part = block.at("ff")
        y = self.op(part, "geglu", self.dense("linear", part.at("net.0.proj"), y))
        h = self.op(part, "residual", self.dense("linear", part.at("net.2"), y), h, called="add")
        h = self.op(part, "to_image", h, height, width)
        return self.op(tree, "residual", self.dense("conv", tree.at("proj_out"), h), x,
                       called="add")

    # UNet

    def unet(self, step, x, timestep, text):
        self.enter(f"unet/{step:03d}")
        x, text = self.ops.round(x), (self.ops.round(text[0]), text[1])  # the casts at the door
        config = self.configs["unet"]
        tree, groups = self.trees["unet"], config["norm_num_groups"]
        common = {"groups": groups, "eps": 1e-5}
        heads, self.text = config["attention_head_dim"], text
        time = tree.at("time_embedding")
        width = tree.at("conv_in").w.shape[0]
        temb = self.op(time, "timestep_embedding", np.full(len(x), timestep), width)
        temb = self.dense("linear", time.at("linear_1"), temb)
        temb = self.dense("linear", time.at("linear_2"), self.op(time, "silu", temb))
        h = self.dense("conv", tree.at("conv_in"), x, padding=1)

        skips, levels = [h], len(config["block_out_channels"])
        for level in range(levels):
            block = tree.at("down_blocks", level)
            for i in range(config["layers_per_block"]):
                h = self.resnet(block.at("resnets", i), h, temb, **common)
                h = self.look(block, i, h, heads, groups)
                skips.append(h)
            if "downsamplers" in block:
                h = self.dense("conv", block.at("downsamplers.0.conv"), h, stride=2, padding=1)
                skips.append(h)

        block = tree.at("mid_block")
        h = self.resnet(block.at("resnets.0"), h, temb, **common)
        h = self.look(block, 0, h, heads, groups)
        h = self.resnet(block.at("resnets.1"), h, temb, **common)

        for level in range(levels):
            block = tree.at("up_blocks", level)
            for i in range(config["layers_per_block"] + 1):
                resnet = block.at("resnets", i)
                h = self.op(resnet, "concat", [h, skips.pop()], 1)
                h = self.resnet(resnet, h, temb, **common)
                h = self.look(block, i, h, heads, groups)
            if "upsamplers" in block:
                h = self.enlarge(block.at("upsamplers.0"), h)
        return self.finish(tree, h, **common)

    def look(self, block, i, h, heads, groups):
        if "attentions" not in block:
            return h
        return self.transformer(block.at("attentions", i), h, self.text, heads=heads,
                                groups=groups)

    def enlarge(self, tree, h):
        h = self.op(tree, "upsample", h, called="upsample_nearest")
        return self.dense("conv", tree.at("conv"), h, padding=1)

    def finish(self, tree, h, *, groups, eps):
        h = self.dense("group_norm", tree.at("conv_norm_out"), h, groups=groups, eps=eps)
        return self.dense("conv", tree.at("conv_out"), self.op(tree.path, "silu", h), padding=1)

    # VAE

    def decode(self, z):
        self.enter("decode")
        tree, common = self.trees["vae"], {"groups": self.configs["vae"]["norm_num_groups"],
                                           "eps": 1e-6}
        h = self.dense("conv", tree.at("post_quant_conv"), self.op("", "first", z, called="slice"))
        tree = tree.at("decoder")
        h = self.dense("conv", tree.at("conv_in"), h, padding=1)
        h = self.resnet(tree.at("mid_block.resnets.0"), h, **common)
        h = self.look_around(tree.at("mid_block.attentions.0"), h, **common)
        h = self.resnet(tree.at("mid_block.resnets.1"), h, **common)
        for level in range(len(self.configs["vae"]["block_out_channels"])):
            block = tree.at("up_blocks", level)
            for i in range(self.configs["vae"]["layers_per_block"] + 1):
                h = self.resnet(block.at("resnets", i), h, **common)
            if "upsamplers" in block:
                h = self.enlarge(block.at("upsamplers.0"), h)
        return self.op(tree, "concat", [self.finish(tree, h, **common)], 0)

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


def schedule(config, steps):
    """For each step: t, alpha_bar at t and where it goes to; leading spacing as DDIM has it."""
    train = config.get("num_train_timesteps", 1000)
    start, end = (math.sqrt(config[key]) for key in ("beta_start", "beta_end"))
    beta = ((np.linspace(start, end, train).astype("f4")) ** 2).astype("f4")
    alpha_bar = np.cumprod((1 - beta).astype("f8")).astype("f4")
    ratio = train // steps
    times = [ratio * i + config["steps_offset"] for i in range(steps)][::-1]
    return [(t, alpha_bar[t], alpha_bar[max(t - ratio, 0)]) for t in times]
