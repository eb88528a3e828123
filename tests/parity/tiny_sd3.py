"""Tiny models of random weights with the parts of Stable Diffusion 3, as diffusers saves them."""

import diffusers
import tiny
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SIZE = 64
WORDS = ("\u2581", "\u2581a", "\u2581red", "\u2581horse", "\u2581astronaut", "riding", "\u2581rid",
         "ing", "\u2581photograph", "\u2581of", "an", "t", "e", "s", "r", "o", "u", "n", "a", "b")
# What the transformers of the published models differ in, and whether they come with T5.
KINDS = {
    "3": {},
    "3 without T5": {},
    "3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1), "num_layers": 4},
    "3.5 large": {"qk_norm": "rms_norm", "num_attention_heads": 3},
}


def write_model(root, kind, **scheduler):
    """The folder of a model of a kind; the scheduler's options are given."""
    torch.manual_seed(len(kind))
    t5 = kind != "3 without T5"
    pipe = StableDiffusion3Pipeline(
        tokenizer=clip_tokenizer(root), tokenizer_2=clip_tokenizer(root, pad_token="!"),
        tokenizer_3=t5_tokenizer() if t5 else None,
        text_encoder=clip(32, 24, "quick_gelu"), text_encoder_2=clip(40, 16, "gelu"),
        text_encoder_3=t5_encoder() if t5 else None,
        transformer=transformer(**KINDS[kind]), vae=vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}))
    pipe.save_pretrained(root / "model")
    return root / "model"


def clip_tokenizer(root, **options):
    """transformers' own, of the few words of tests/tiny.py."""
    if not (root / "words").exists():
        tiny.write_tokenizer(root / "words")
    files = (str(root / "words" / name) for name in ("vocab.json", "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=77, **options)


def clip(width, projection, activation):
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=tiny.TEXT_ENCODER["vocab_size"], hidden_size=width,
        intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, eos_token_id=2,
        hidden_act=activation, projection_dim=projection)).eval()


def t5_tokenizer():
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=vocab + [(word, -1.0 - i / 8) for i, word in enumerate(WORDS)],
                       extra_ids=0, model_max_length=512)


def t5_encoder():
    found = T5EncoderModel(T5Config(
        vocab_size=3 + len(WORDS), d_model=96, d_kv=16, d_ff=64, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False)).eval()
    with torch.no_grad():  # of the initial size they hardly move a score
        table = found.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        table.weight *= 2 / table.weight.std()
    return found


def transformer(**changes):
    config = {"sample_size": SIZE // 8, "num_layers": 3, "num_attention_heads": 4,
              "attention_head_dim": 16, "joint_attention_dim": 96, "pooled_projection_dim": 40,
              "pos_embed_max_size": 12, **changes}
    wide = config["num_attention_heads"] * config["attention_head_dim"]
    found = SD3Transformer2DModel(**config, caption_projection_dim=wide).eval()
    with torch.no_grad():  # diffusers begins them at random; their size makes blocks count
        for name, weight in found.named_parameters():
            if "norm" in name and name.endswith("linear.weight"):
                weight *= 3
    return found


def vae():
    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
        use_post_quant_conv=False, sample_size=SIZE).eval()
