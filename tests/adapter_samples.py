"""Random adapters, of every kind and in every spelling, for the tiny model."""

import math

import numpy as np

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.1.self_attn.q_proj"
TEXT_OUT = "text_model.encoder.layers.0.self_attn.out_proj"

# A module of diffusers, and the endings of its down and up, as other programs write them.
SPELLINGS = {
    "peft": (f"unet.{ATTENTION}", ".lora_A.weight", ".lora_B.weight"),
    "peft-named": (f"unet.{ATTENTION}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "peft-model": (f"base_model.model.{ATTENTION}", ".lora_A.weight", ".lora_B.weight"),
    "diffusers": (f"unet.{ATTENTION}", ".lora.down.weight", ".lora.up.weight"),
    "processor": (f"unet.{ATTENTION.replace('to_q', 'processor.to_q')}", "_lora.down.weight",
                  "_lora.up.weight"),
    "bare-processor": (ATTENTION.replace("to_q", "processor.to_q"), "_lora.down.weight",
                       "_lora.up.weight"),
    "kohya": ("lora_unet_" + ATTENTION.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"),
    "kohya-ldm": ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
                  ".lora_down.weight", ".lora_up.weight"),
    "ldm": ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
            ".lora_A.weight", ".lora_B.weight"),
    "onetrainer": (f"lora_unet.{ATTENTION}", ".lora_down.weight", ".lora_up.weight"),
    "omi": ("unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q", ".lora_down.weight",
            ".lora_up.weight"),
    "lycoris": ("lycoris_" + ATTENTION.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"),
}
OTHER_MODULES = {  # the module, and a name of it with one of the endings above
    "to_out-processor": (OUT, "unet." + OUT.replace("to_out.0", "processor.to_out"),
                         "_lora.down.weight", "_lora.up.weight"),
    "conv": (CONV, "lora_unet_down_blocks_0_resnets_0_conv1", ".lora_down.weight",
             ".lora_up.weight"),
    "conv-ldm": (CONV, "lora_unet_input_blocks_1_0_in_layers_2", ".lora_down.weight",
                 ".lora_up.weight"),
    "conv_in": ("conv_in", "lora_unet_input_blocks_0_0", ".lora_down.weight", ".lora_up.weight"),
    "time": ("time_embedding.linear_1", "lora_unet_time_embed_0", ".lora_down.weight",
             ".lora_up.weight"),
    "down": ("down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_2_0_op",
             ".lora_down.weight", ".lora_up.weight"),
    "te": (TEXT, "lora_te_text_model_encoder_layers_1_self_attn_q_proj", ".lora_down.weight",
           ".lora_up.weight"),
    "te1": (TEXT, "lora_te1_text_model_encoder_layers_1_self_attn_q_proj", ".lora_down.weight",
            ".lora_up.weight"),
    "te-linear": (TEXT, f"text_encoder.{TEXT}", ".lora_linear_layer.down.weight",
                  ".lora_linear_layer.up.weight"),
    "te-old": (TEXT, f"text_encoder.{TEXT.replace('q_proj', 'to_q')}", "_lora.down.weight",
               "_lora.up.weight"),
    "te-old-out": (TEXT_OUT, f"text_encoder.{TEXT_OUT.replace('out_proj', 'to_out')}",
                   "_lora.down.weight", "_lora.up.weight"),
    "te-peft": (TEXT, f"text_encoder.{TEXT}", ".lora_A.weight", ".lora_B.weight"),
    "te-omi": (TEXT, f"clip_l.{TEXT}", ".lora_down.weight", ".lora_up.weight"),
    "te-onetrainer": (TEXT, f"lora_te.{TEXT}", ".lora_down.weight", ".lora_up.weight"),
    "te-flat": (TEXT, f"text_encoder.{TEXT.removeprefix('text_model.')}", ".lora_A.weight",
                ".lora_B.weight"),
}


def random(seed, *shape, dtype="f4"):
    return (0.3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def lora(shape, rank=2, seed=0):
    """(down, up) for a weight of this shape."""
    return random(seed, rank, *shape[1:]), random(seed + 1, shape[0], rank, *[1] * len(shape[2:]))


def factors(n):
    """Two factors of a number, the smaller first."""
    small = next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)
    return small, n // small


def kinds(shape, rank=2, seed=0):
    """Tensors of every kind for a weight of this shape, by the kind's name."""
    O, I, *taps = shape
    K = math.prod(taps)
    (A, B), (C, D) = factors(O), factors(I)
    down, up = lora(shape, rank, seed)
    found = {
        "LoRA": {"lora_down.weight": down, "lora_up.weight": up, "alpha": np.float32(rank / 2)},
        "LoHa": {"hada_w1_a": random(seed, O, rank), "hada_w1_b": random(seed + 1, rank, I * K),
                 "hada_w2_a": random(seed + 2, O, rank), "hada_w2_b": random(seed + 3, rank, I * K),
                 "alpha": np.float32(1)},
        "LoKr": {"lokr_w1": random(seed, A, C), "lokr_w2": random(seed + 1, B, D, *taps),
                 "alpha": np.float32(1)},
        "LoKr-a": {"lokr_w1_a": random(seed, A, rank), "lokr_w1_b": random(seed + 1, rank, C),
                   "lokr_w2": random(seed + 2, B, D, *taps), "alpha": np.float32(1)},
        "LoKr-ab": {"lokr_w1_a": random(seed, A, rank), "lokr_w1_b": random(seed + 1, rank, C),
                    "lokr_w2_a": random(seed + 2, B, rank + 1),
                    "lokr_w2_b": random(seed + 3, rank + 1, D * K), "alpha": np.float32(1)},
        "full": {"diff": random(seed, *shape), "alpha": np.float32(7)},
        "(IA)3": {"weight": random(seed, I), "on_input": np.float32(1)},
        "(IA)3-out": {"weight": random(seed, O), "on_input": np.float32(0)},
    }
    if taps:
        found |= {
            "LoRA-core": {"lora_down.weight": random(seed, rank, I, 1, 1), "alpha": np.float32(1),
                          "lora_mid.weight": random(seed + 1, rank, rank, *taps),
                          "lora_up.weight": random(seed + 2, O, rank, 1, 1)},
            "LoHa-core": {"hada_t1": random(seed, rank, rank, *taps),
                          "hada_w1_a": random(seed + 1, rank, O),
                          "hada_w1_b": random(seed + 2, rank, I),
                          "hada_t2": random(seed + 3, rank, rank, *taps),
                          "hada_w2_a": random(seed + 4, rank, O),
                          "hada_w2_b": random(seed + 5, rank, I), "alpha": np.float32(1)},
            "LoKr-core": {"lokr_w1": random(seed, A, C), "lokr_t2": random(seed + 1, rank, rank,
                                                                          *taps),
                          "lokr_w2_a": random(seed + 2, rank, B),
                          "lokr_w2_b": random(seed + 3, rank, D), "alpha": np.float32(1)},
        }
    return found
