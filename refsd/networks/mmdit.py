"""The MMDiT's options, and the shapes of its tensors (diffusers' SD3Transformer2DModel)."""

from collections.abc import Collection, Mapping
from typing import Any

from refsd import rules
from refsd.errors import ModelError
from refsd.networks.blocks import conv, linear
from refsd.networks.network import Network, count, only, width
from refsd.rules import integer, optional

OPTIONS = {
    "sample_size": (128, integer(1, 4096)),
    "patch_size": (2, count),
    "in_channels": (16, count),
    "num_layers": (18, count),
    "attention_head_dim": (64, integer(1, 1024)),
    "num_attention_heads": (18, count),
    "joint_attention_dim": (4096, width),
    "caption_projection_dim": (1152, width),
    "pooled_projection_dim": (2048, width),
    "out_channels": (16, optional(count)),
    "pos_embed_max_size": (96, integer(1, 1024)),
    "dual_attention_layers": ((), rules.each(integer(0, 63), most=64)),
    "qk_norm": (None, only(None, "rms_norm")),
}
TIMES = 256  # sinusoids


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of an SD3Transformer2DModel."""
    head, patch = config["attention_head_dim"], config["patch_size"]
    inner, layers = config["num_attention_heads"] * head, config["num_layers"]
    norm = {"weight": (head,)} if config["qk_norm"] else None
    outputs = config["out_channels"] or config["in_channels"]

    return {
        "pos_embed": {
            "proj": conv(inner, config["in_channels"], patch),
            "pos_embed": (1, config["pos_embed_max_size"] ** 2, inner),
        },
        "time_text_embed": {
            "timestep_embedder": _perceptron(inner, TIMES),
            "text_embedder": _perceptron(inner, config["pooled_projection_dim"]),
        },
        "context_embedder": linear(config["caption_projection_dim"], config["joint_attention_dim"]),
        "transformer_blocks": [
            _block(inner, norm, dual=i in config["dual_attention_layers"], last=i == layers - 1)
            for i in range(layers)],
        "norm_out": _modulation(inner, 2),
        "proj_out": linear(patch * patch * outputs, inner),
    }  # fmt: skip


def _block(width, norm, *, dual, last):
    """One joint block; the last one only reads the text."""
    same = linear(width, width)
    own = {f"to_{part}": same for part in "qkv"} | {"to_out": [same]}
    joint = own | {f"add_{part}_proj": same for part in "qkv"}
    if norm:
        own = own | {"norm_q": norm, "norm_k": norm}
        joint |= {f"norm_{part}": norm for part in ("q", "k", "added_q", "added_k")}
    if not last:
        joint["to_add_out"] = same
    feed_forward = {"net": {"0": {"proj": linear(4 * width, width)}, "2": linear(width, 4 * width)}}
    return {
        "norm1": _modulation(width, 9 if dual else 6),
        "norm1_context": _modulation(width, 2 if last else 6),
        "attn": joint,
        **({"attn2": own} if dual else {}),
        "ff": feed_forward,
        **({} if last else {"ff_context": feed_forward}),
    }


def _modulation(width, vectors):
    return {"linear": linear(vectors * width, width)}


def _perceptron(width, inputs):
    return {"linear_1": linear(width, inputs), "linear_2": linear(width, width)}


def fits(config: Mapping[str, Any], where: str) -> None:
    """ModelError for text of another width than the picture's: they attend to each other."""
    inner = config["num_attention_heads"] * config["attention_head_dim"]
    if config["caption_projection_dim"] != inner:
        raise ModelError(f"{where}: caption_projection_dim is {config['caption_projection_dim']}, "
                         f"expected num_attention_heads times attention_head_dim, {inner}")


def together(part: str, configs: Mapping[str, Mapping], elsewhere: Collection[str],
             where: str) -> None:
    """ModelError for a VAE of other latents, or for other texts than it reads.

    It reads the CLIPs' side by side in the width of T5's, and their pooled vectors side by side.
    """
    found, clips = configs[part], [configs[name] for name in ("text_encoder", "text_encoder_2")
                                   if name in configs]
    takes = found["in_channels"]
    numbers = [("gives {} channels, and takes {}", found["out_channels"] or takes, takes)]
    if "vae" in configs:
        numbers.append(("takes {} channels, the VAE's latents have {}", takes,
                        configs["vae"]["latent_channels"]))
    if "text_encoder_3" in configs:
        numbers.append(("reads text of width {}, the third text encoder gives {}",
                        found["joint_attention_dim"], configs["text_encoder_3"]["d_model"]))
    if len(clips) == 2:
        numbers.append(("reads a vector of {} numbers, the two text encoders give {}",
                        found["pooled_projection_dim"], sum(map(_pooled_width, clips))))
        both = sum(config["hidden_size"] for config in clips)
        if both > found["joint_attention_dim"]:
            numbers.append(("reads text of width {}, the two text encoders give {}",
                            found["joint_attention_dim"], both))
    for words, reads, gives in numbers:
        if reads != gives:
            raise ModelError(f"{where}: the transformer {words.format(reads, gives)}. Give parts "
                             "of one model")


def _pooled_width(config):
    projects = "CLIPTextModelWithProjection" in (config["architectures"] or ())
    return config["projection_dim"] or config["hidden_size"] if projects else config["hidden_size"]


MMDIT = Network("transformer", ("SD3Transformer2DModel",), ("diffusion_pytorch_model",),
                ("transformer_blocks.0.norm1_context.linear.weight",), OPTIONS, shapes,
                "refsd.pipelines.transformer:Transformer", fits, together)
PARTS = {"transformer": MMDIT}
