"""Small models of many shapes with random weights, for the tests of refsd.models."""

import numpy as np

from refsd.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from refsd.networks import shapes_of, validate
from refsd.weights import to_tree

CONFIGS = {"text_encoder": CLIPTextConfig, "unet": UNetConfig, "vae": VAEConfig}
CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"


def unet_config(widths, heads, groups, layers=1, cross=None, **more):
    """A config.json; `cross` says which levels attend to the text (all but the deepest)."""
    cross = [True] * (len(widths) - 1) + [len(widths) == 1] if cross is None else cross
    return {"block_out_channels": list(widths), "attention_head_dim": heads, "layers_per_block":
            layers, "norm_num_groups": groups, "cross_attention_dim": 10, "sample_size": 8,
            "down_block_types": [CROSS_DOWN if c else DOWN for c in cross],
            "up_block_types": [CROSS_UP if c else UP for c in reversed(cross)], **more}


UNETS = {
    "two levels": unet_config((8, 16), 2, 4),
    "one level": unet_config((12,), 3, 4, layers=2),
    "four levels as SD 1.x": unet_config((8, 16, 24, 24), 4, 4, layers=2),
    "odd widths, heads a level": unet_config((9, 15, 21), [3, 5, 7], 3),
    "other layers and texts a level": unet_config(
        (8, 8, 12), 2, 2, layers=[1, 3, 2], cross=[False, True, True],
        cross_attention_dim=[6, 10, 10]),
    "linear projections": unet_config((8, 16), [2, 4], 4, use_linear_projection=True),
    "guidance embedding": unet_config((8, 16), 2, 4, time_cond_proj_dim=6),
    "sines first, centred": unet_config((8, 12), 2, 2, flip_sin_to_cos=False, freq_shift=1,
                                        center_input_sample=True, norm_eps=1e-3),
    "no middle block": unet_config((8, 16), 2, 4, cross=[True, True], mid_block_type=None),
    "a middle block without text": unet_config((8, 16), 2, 4, mid_block_type="UNetMidBlock2D"),
    "added embedding, depths a level": unet_config(
        (8, 8, 16), [1, 2, 4], 4, cross=[False, True, True], use_linear_projection=True,
        transformer_layers_per_block=[1, 2, 3], addition_embed_type="text_time",
        addition_time_embed_dim=6, projection_class_embeddings_input_dim=9 + 5 * 6),
    "depths a layer": unet_config(
        (8, 16), 2, 4, layers=2, cross=[True, True],
        transformer_layers_per_block=[[2, 1], [1, 3]],
        reverse_transformer_layers_per_block=[[1, 2, 1], [3, 1, 2]]),
    "other channels": unet_config((8, 8), 2, 4, in_channels=9, out_channels=5,
                                  time_embedding_dim=20),
}  # fmt: skip


def added_inputs(config, batch):
    """What the add_embedding reads, as keywords of the model: sizes and a vector of what is left.
    """
    if not config.get("addition_embed_type"):
        return {}
    K = 5
    P = config["projection_class_embeddings_input_dim"] - K * config["addition_time_embed_dim"]
    ids = np.random.default_rng(4).integers(0, 4097, (batch, K)).astype("float32")
    return {"text_embeds": values(5, batch, P), "time_ids": ids}


def vae_config(widths, groups, layers=1, **more):
    return {"block_out_channels": list(widths), "norm_num_groups": groups, "layers_per_block":
            layers, "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths), **more}


VAES = {
    "two levels": vae_config((8, 12), 4),
    "four levels as SD 1.x": vae_config((4, 8, 8, 8), 4, layers=2),
    "one level, odd widths": vae_config((9,), 3, latent_channels=3),
    "no quant convolutions": vae_config((6, 6, 9), 3, use_quant_conv=False,
                                        use_post_quant_conv=False),
    "no attention": vae_config((8, 8), 2, mid_block_add_attention=False),
}  # fmt: skip


def clip_config(width, heads, layers, **more):
    return {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers,
            "intermediate_size": 3 * width, "vocab_size": 40, "max_position_embeddings": 12,
            "eos_token_id": 39, **more}


CLIPS = {
    "quick_gelu": clip_config(8, 2, 3),
    "gelu": clip_config(8, 4, 2, hidden_act="gelu"),
    "odd heads": clip_config(15, 5, 2, layer_norm_eps=1e-2),
    "one layer": clip_config(6, 1, 1, eos_token_id=2),
}  # fmt: skip


def weights(component, config, seed=0, dtype="float32"):
    """name -> random array: norms around 1, everything else so that values keep their size."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes_of(component, config).items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 4
        values = random.standard_normal(shape) / np.sqrt(max(fan_in, 1))
        scale_of_norm = "norm" in name and name.endswith("weight")
        found[name] = (values + 1 if scale_of_norm else values).astype("float32").astype(dtype)
    return found


def tree(component, config, seed=0, dtype="float32"):
    """The tree that the model functions take, and their config."""
    found = to_tree(weights(component, config, seed, dtype))
    complete = validate(component, config)
    return found.get("text_model", found), CONFIGS[component].from_json(complete)


def values(seed, *shape, dtype="float32"):
    """Normally distributed inputs, the same numbers in both dtypes."""
    return np.random.default_rng(seed).standard_normal(shape).astype("float32").astype(dtype)
