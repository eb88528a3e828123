"""T5's encoder: its options, and the shapes of its tensors (transformers' T5EncoderModel).

That of version 1.1, with gated perceptrons; the first T5's, with ReLU, is refused by its option.
The residual of the published one passes 65504: transformers too keeps it in float32 where the rest
is float16.
"""

from collections.abc import Mapping
from typing import Any

from refsd.errors import ModelError
from refsd.networks.blocks import linear
from refsd.networks.network import MAX_WIDTH, Network, count, only, width
from refsd.rules import anything, integer, number

OPTIONS = {
    "vocab_size": (32128, integer(1, 1 << 20)),
    "d_model": (512, width),
    "d_kv": (64, integer(1, 1024)),
    "d_ff": (2048, integer(1, 4 * MAX_WIDTH)),
    "num_layers": (6, count),
    "num_heads": (8, integer(1, 256)),
    "relative_attention_num_buckets": (32, integer(4, 4096)),
    "relative_attention_max_distance": (128, integer(2, 1 << 20)),
    "layer_norm_epsilon": (1e-6, number(1e-12, 1)),
    "feed_forward_proj": ("relu", only("gated-gelu")),
    # What transformers makes of feed_forward_proj, and writes beside it.
    "dense_act_fn": (None, only("gelu_new", None)),
    "is_gated_act": (None, only(True, None)),
    "is_decoder": (False, only(False)),
    "num_decoder_layers": (None, anything),
    "is_encoder_decoder": (True, anything),
    "tie_word_embeddings": (None, anything),
    "dropout_rate": (0.1, anything),
    "classifier_dropout": (0.0, anything),
    "initializer_factor": (1.0, anything),
    "pad_token_id": (0, anything),
    "eos_token_id": (1, anything),
    "decoder_start_token_id": (None, anything),
    "scale_decoder_outputs": (None, anything),
    "output_past": (None, anything),
    "architectures": (None, anything),
    "model_type": ("t5", only("t5", None)),
}


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a T5EncoderModel; the first block's attention has the biases of all."""
    model, inner, wide = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    attention = {"q": linear(inner, model, False), "k": linear(inner, model, False),
                 "v": linear(inner, model, False), "o": linear(model, inner, False)}
    table = {"weight": (config["relative_attention_num_buckets"], config["num_heads"])}
    perceptron = {"wi_0": linear(wide, model, False), "wi_1": linear(wide, model, False),
                  "wo": linear(model, wide, False)}
    norm = {"weight": (model,)}

    def block(attention):
        return {"layer": [{"SelfAttention": attention, "layer_norm": norm},
                          {"DenseReluDense": perceptron, "layer_norm": norm}]}

    blocks = [block(attention | {"relative_attention_bias": table}),
              *[block(attention)] * (config["num_layers"] - 1)]
    return {"shared": {"weight": (config["vocab_size"], model)},
            "encoder": {"block": blocks, "final_layer_norm": norm}}


def fits(config: Mapping[str, Any], where: str) -> None:
    """ModelError for a largest distance that buckets of one distance each reach already."""
    near = config["relative_attention_num_buckets"] // 4
    if config["relative_attention_max_distance"] <= near:
        raise ModelError(f"{where}: relative_attention_max_distance is "
                         f"{config['relative_attention_max_distance']}, expected more than {near}, "
                         "a quarter of relative_attention_num_buckets")


def today(name: str) -> str | None:
    """The table of embeddings is in some files under two names; as transformers does, the first."""
    return None if name == "encoder.embed_tokens.weight" else name


T5_ENCODER = Network(
    "third text encoder", ("T5EncoderModel",), ("model", "pytorch_model"),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",), OPTIONS, shapes,
    "refsd.pipelines.t5:T5Encoder", fits, today=today, whole_first=True, beyond_float16=True)
PARTS = {"text_encoder_3": T5_ENCODER}
