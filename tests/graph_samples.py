"""Small networks with random weights as functions to trace, each with its inputs."""

from functools import partial

import model_samples as samples
import numpy as np
import tiny_three

from refsd.contracts import Spec
from refsd.graph import trace
from refsd.models import clip, mmdit, unet, vae
from refsd.models.mmdit import MMDiTConfig
from refsd.networks import shapes_of
from refsd.weights import to_tree

F32 = "float32"


def unet_of(name, size=(8, 6)):
    """A UNet of model_samples; timesteps of both samples differ."""
    config = samples.UNETS[name]
    tree, read = samples.tree("unet", config)
    cross = config["cross_attention_dim"]
    width = cross if isinstance(cross, int) else None
    given = [samples.values(1, 2, config.get("in_channels", 4), *size), np.array([3.0, 700.0], F32),
             samples.values(2, 2, 7, width)]
    more = samples.added_inputs(config, 2)
    return partial(unet.unet, **tree, config=read), given, more


def vae_of(name, half):
    tree, config = samples.tree("vae", samples.VAES[name])
    part, beside = {"decode": ("decoder", "post_quant_conv"),
                    "encode": ("encoder", "quant_conv")}[half]
    channels = tree[part]["conv_in"]["weight"].shape[1]
    side = 4 if half == "decode" else 16
    return (partial(getattr(vae, half), **{part: tree[part], beside: tree.get(beside)},
                    config=config), [samples.values(1, 1, channels, side, side + side // 2)], {})


def clip_of(name):
    tree, config = samples.tree("text_encoder", samples.CLIPS[name])
    ids = np.full((2, 9), 2)
    ids[:, 7:] = config.eos_token_id
    return partial(clip.clip_text, ids, **tree, config=config), [], {}


def transformer():
    config, random = tiny_three.CONFIGS["transformer"], np.random.default_rng(0)
    shapes = shapes_of("transformer", config)
    tree = to_tree({name: (random.standard_normal(shape) / 4).astype(F32)
                    for name, shape in shapes.items()})
    given = [samples.values(1, 2, 16, 8, 6), np.array([3.0, 700.0], F32),
             samples.values(2, 2, 7, 32), samples.values(3, 2, 16)]
    return partial(mmdit.mmdit, **tree, config=MMDiTConfig.from_json(config)), given, {}


NETWORKS = {
    **{f"unet, {name}": partial(unet_of, name) for name in (
        "two levels", "four levels as SD 1.x", "odd widths, heads a level", "linear projections",
        "added embedding, depths a level", "no middle block")},
    **{f"vae, {half}": partial(vae_of, "four levels as SD 1.x", half)
       for half in ("decode", "encode")},
    "vae, no attention": partial(vae_of, "no attention", "decode"),
    "clip": partial(clip_of, "gelu"), "mmdit": transformer,
}  # fmt: skip


def traced(call, given, more):
    """The graph, and its inputs in their order."""
    graph = trace(call, *(Spec(a.shape, str(a.dtype)) for a in given),
                  **{name: Spec(a.shape, str(a.dtype)) for name, a in more.items()})
    return graph, [*given, *more.values()]
