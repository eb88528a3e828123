"""A tiny Stable Diffusion 1.x of random weights, as diffusers saves it, and pictures compared."""

import gzip
import json
from importlib import resources

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from refsd.random import TorchGenerator

PROMPT = "a photograph of an astronaut riding a horse"
SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SIZE = 64


def write_model(root, *, in_channels=4):
    """The folder of a model whose UNet takes so many channels, with CLIP's whole vocabulary."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        tokenizer=clip_tokenizer(root),
        text_encoder=CLIPTextModel(CLIPTextConfig(
            vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=77, eos_token_id=2)),
        unet=UNet2DConditionModel(
            sample_size=SIZE // 8, block_out_channels=(32, 64), layers_per_block=1,
            in_channels=in_channels,
            cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        vae=AutoencoderKL(
            block_out_channels=(16, 16, 32, 32), norm_num_groups=8, layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
        scheduler=diffusers.PNDMScheduler(**SD1, skip_prk_steps=True, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(root / "model")
    return root / "model"


def clip_tokenizer(root):
    """transformers' own tokenizer over the vocabulary that ships with refsd."""
    packed = (resources.files("refsd") / "data" / "clip_bpe_merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().splitlines()[1:]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [c + "</w>" for c in letters] + [m.replace(" ", "") for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (root / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (root / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return CLIPTokenizer(str(root / "vocab.json"), str(root / "merges.txt"), model_max_length=77)


def same_picture(theirs, ours, seeds=7, **options):
    """Draw with both; every grey level (of 3 a pixel) within one, 99.9 % of them identical."""
    lists = isinstance(seeds, list)
    torch_generator = [torch.Generator().manual_seed(s) for s in seeds] if lists else (
        torch.Generator().manual_seed(seeds))
    our_generator = [TorchGenerator(s) for s in seeds] if lists else TorchGenerator(seeds)
    expected = theirs(generator=torch_generator, **options).images
    found = ours(generator=our_generator, **options).images
    assert len(found) == len(expected)
    for a, b in zip(expected, found):
        difference = np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int))
        assert np.asarray(a).std() > 1, "a flat picture would prove nothing"
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.999
