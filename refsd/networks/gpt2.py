"""GPT-2's options, and the shapes of its tensors (transformers' GPT2LMHeadModel).

The names are without the "transformer." of that class, and matrices are (out, in), where its Conv1D
has (in, out): refsd.weights.gpt2 says which.
"""

from collections.abc import Mapping
from typing import Any

from refsd.networks.blocks import linear, norm
from refsd.networks.network import MAX_WIDTH, Network, check_divides, only, width
from refsd.rules import anything, boolean, integer, number, optional

OPTIONS = {
    "vocab_size": (50257, integer(1, 1 << 20)),
    "n_positions": (1024, integer(2, 1 << 16)),
    "n_embd": (768, width),
    "n_layer": (12, integer(1, 256)),
    "n_head": (12, integer(1, 256)),
    "n_inner": (None, optional(integer(1, 4 * MAX_WIDTH))),
    "activation_function": ("gelu_new", only("gelu_new", "gelu_pytorch_tanh", "gelu")),
    "layer_norm_epsilon": (1e-5, number(1e-12, 1)),
    "scale_attn_weights": (True, only(True)),
    "scale_attn_by_inverse_layer_idx": (False, only(False)),
    "reorder_and_upcast_attn": (False, boolean),  # for halves, whose softmax is of float32 here
    "add_cross_attention": (False, only(False)),
    "tie_word_embeddings": (True, boolean),
    "bos_token_id": (50256, anything),
    "eos_token_id": (50256, anything),
    "pad_token_id": (None, anything),
    "resid_pdrop": (0.1, anything),
    "embd_pdrop": (0.1, anything),
    "attn_pdrop": (0.1, anything),
    "initializer_range": (0.02, anything),
    "summary_type": ("cls_index", anything),
    "summary_use_proj": (True, anything),
    "summary_activation": (None, anything),
    "summary_proj_to_labels": (True, anything),
    "summary_first_dropout": (0.1, anything),
    "architectures": (None, anything),
    "model_type": ("gpt2", only("gpt2", None)),
    "n_ctx": (None, anything),  # of the first files, as the two below
    "output_past": (None, anything),
    "task_specific_params": (None, anything),
}


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a GPT2LMHeadModel; its head is the table of embeddings, if the two are tied."""
    wide, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    block = {
        "ln_1": norm(wide),
        "attn": {"c_attn": linear(3 * wide, wide), "c_proj": linear(wide, wide)},
        "ln_2": norm(wide),
        "mlp": {"c_fc": linear(inner, wide), "c_proj": linear(wide, inner)},
    }
    table = {"weight": (config["vocab_size"], wide)}
    tree = {
        "wte": table,
        "wpe": {"weight": (config["n_positions"], wide)},
        "h": [block] * config["n_layer"],
        "ln_f": norm(wide),
    }
    return tree if config["tie_word_embeddings"] else tree | {"lm_head": table}


def fits(config: Mapping[str, Any], where: str) -> None:
    """ModelError for heads that do not divide the width."""
    check_divides(config, "n_head", config["n_embd"], config["n_head"], where)


GPT2 = Network("GPT-2", ("GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel"),
               ("model", "pytorch_model"), ("wte.weight", "transformer.wte.weight"), OPTIONS,
               shapes, "refsd.pipelines.gpt2:GPT2", fits, whole_first=True)
PARTS = {"gpt2": GPT2}
