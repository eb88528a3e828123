"""CLIP's text encoder: its options, and the shapes of its tensors (transformers' CLIPTextModel).

The names carry the prefix "text_model." of the published checkpoints.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from refsd.networks.blocks import linear, norm
from refsd.networks.network import MAX_WIDTH, Network, check_divides, count, only, width
from refsd.rules import anything, integer, number, optional

OPTIONS = {
    "vocab_size": (49408, integer(1, 1 << 20)),
    "hidden_size": (512, width),
    "intermediate_size": (2048, integer(1, 4 * MAX_WIDTH)),
    "projection_dim": (512, optional(width)),
    "num_hidden_layers": (12, count),
    "num_attention_heads": (8, count),
    "max_position_embeddings": (77, integer(2, 4096)),
    "hidden_act": ("quick_gelu", only("quick_gelu", "gelu")),
    "layer_norm_eps": (1e-5, number(1e-12, 1)),
    "eos_token_id": (49407, integer(0, 1 << 20)),
    "bos_token_id": (49406, anything),
    "pad_token_id": (1, anything),
    "attention_dropout": (0.0, anything),
    "dropout": (0.0, anything),
    "initializer_range": (0.02, anything),
    "initializer_factor": (1.0, anything),
    "architectures": (None, anything),
    "model_type": ("clip_text_model", only("clip_text_model", "clip", None)),
}


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a CLIPTextModel; of one WithProjection where `architectures` says so."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    layer = {
        "self_attn": {f"{part}_proj": linear(width, width) for part in ("q", "k", "v", "out")},
        "layer_norm1": norm(width),
        "mlp": {"fc1": linear(inner, width), "fc2": linear(width, inner)},
        "layer_norm2": norm(width),
    }
    tree = {
        "text_model": {
            "embeddings": {
                "token_embedding": {"weight": (config["vocab_size"], width)},
                "position_embedding": {"weight": (config["max_position_embeddings"], width)},
            },
            "encoder": {"layers": [layer] * config["num_hidden_layers"]},
            "final_layer_norm": norm(width),
        }
    }
    if "CLIPTextModelWithProjection" in (config["architectures"] or ()):
        tree["text_projection"] = linear(config["projection_dim"] or width, width, bias=False)
    return tree


def fits(config: Mapping[str, Any], where: str) -> None:
    """ModelError for heads that do not divide the width."""
    check_divides(config, "num_attention_heads", config["hidden_size"],
                  config["num_attention_heads"], where)


def today(name: str) -> str | None:
    """The prefix "text_model." stays, which transformers 5 writes without.

    Of position_ids, 0, 1, 2, .., nothing is left: they are no weights.
    """
    if name.endswith("embeddings.position_ids"):
        return None
    bare = not name.startswith(("text_model.", "text_projection."))
    return f"text_model.{name}" if bare else name


TEXT_ENCODER = Network(
    "text encoder", ("CLIPTextModel", "CLIPTextModelWithProjection"), ("model", "pytorch_model"),
    ("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"),
    OPTIONS, shapes, "refsd.pipelines.components:TextEncoder", fits, today=today, whole_first=True)
PARTS = {"text_encoder": TEXT_ENCODER,
         "text_encoder_2": replace(TEXT_ENCODER, word="second text encoder")}
