"""GPT-2: texts continue with it, no pictures are drawn, so it is none of FAMILIES.

A folder has a config.json of its own; those of the four published sizes are here.
"""

from refsd.families.family import Family

CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}


def _of(width: int, layers: int, heads: int) -> dict[str, dict[str, int]]:
    return {"gpt2": {"n_embd": width, "n_layer": layers, "n_head": heads}}


GPT2 = Family(
    name="GPT-2",
    configs={"gpt2": CONFIG},
    layouts={},
    scheduler={},
    text_width=0,
    pipelines={"text": "GPT2"},
    published={"gpt2": {}, "gpt2-medium": _of(1024, 24, 16), "gpt2-large": _of(1280, 36, 20),
               "gpt2-xl": _of(1600, 48, 25)},
)
