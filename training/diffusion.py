"""The UNet, behind a text encoder that text.py has taught: v-prediction on (B, 4, 16, 16)."""

import copy
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from training.checkpoints import average, learning_rate, load, save, state_of
from training.latents import CAPTIONS, scaling
from training.scenes import sample_scene
from training.tokenizer import END, LENGTH, START, load_tokenizer, small_vocabulary, tokens

WIDTH = 128
EMPTY = 0.10
GAMMA = 5.0
SHARES = np.array([0.0, 0.15, 0.60, 0.25])  # of scenes with so many solids: one is soon learnt


def build():
    """ModuleDict of `text` (CLIPTextModel) and `unet` (UNet2DConditionModel), 7.4 M parameters."""
    vocab = small_vocabulary()[0]
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=vocab[START],
            eos_token_id=vocab[END],
            pad_token_id=vocab[END],
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
    )
    return torch.nn.ModuleDict({"text": text, "unet": unet.to(memory_format=torch.channels_last)})


def schedule():
    """The sampler that the model folder names: DDIM, v-prediction, from the last step down."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """softmax(scale q k^T + mask) v; for 64 tokens far faster than torch's own backward."""
    scale = scale or 1.0 / math.sqrt(query.shape[-1])
    scores = torch.matmul(query.float() * scale, key.float().transpose(-1, -2))
    if is_causal:
        scores = scores + torch.full(scores.shape[-2:], -1e9).triu(1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -1e9)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(scores.softmax(dim=-1), value.float())


def _norm(self, x):
    return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)


def use_fast_half_precision():
    """Norms and softmax in float32 under autocast: their CPU kernels are slow in bfloat16."""
    torch.nn.GroupNorm.forward = _norm
    F.scaled_dot_product_attention = _attention


class Data:
    """Latents, scaled to a deviation of 1, and captions, mapped from the files of latents.py."""

    def __init__(self, folder):
        self.latents = np.load(Path(folder) / "latents.npy", mmap_mode="r")
        self.tokens = np.load(Path(folder) / "tokens.npy", mmap_mode="r")
        self.scale = scaling(folder)
        counts = np.array([len(sample_scene(seed).solids) for seed in range(len(self.latents))])
        self.chance = SHARES[counts] / np.bincount(counts)[counts]
        self.empty = tokens(load_tokenizer(Path(folder) / "tokenizer"), [""])[0]

    def batch(self, rng, size):
        """(latents (B, 4, 16, 16) float32, token ids (B, LENGTH) int64)."""
        rows = np.sort(rng.choice(len(self.latents), size, p=self.chance / self.chance.sum()))
        ids = self.tokens[rows, rng.integers(0, CAPTIONS, size)].astype(np.int64)
        ids[rng.random(size) < EMPTY] = self.empty
        latents = torch.from_numpy(self.latents[rows].astype(np.float32)) * self.scale
        return latents.to(memory_format=torch.channels_last), torch.from_numpy(ids)


def loss_of(model, latents, ids, alpha_bar):
    """Mean of min(1, GAMMA / (SNR + 1)) |v - v'|^2, v = sqrt(a) noise - sqrt(1 - a) latents.

    The steps with much noise keep their full weight: they decide places, grounds and colours.
    """
    t = torch.randint(0, len(alpha_bar), (len(latents),))
    a = alpha_bar[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = a.sqrt() * latents + (1.0 - a).sqrt() * noise
    v = a.sqrt() * noise - (1.0 - a).sqrt() * latents
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            states = model["text"](ids).last_hidden_state
        guess = model["unet"](noisy, t, states).sample
    snr = (a / (1.0 - a)).flatten()
    weight = (GAMMA / (snr + 1.0)).clamp(max=1.0)
    return (weight * (guess.float() - v).square().mean(dim=(1, 2, 3))).mean()


def _share_gradients(model, workers):
    """Replace each worker's gradients by the mean over all workers."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= workers
    for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(piece.view_as(grad))


def train(folder, *, steps, workers=1, rank=0, peak=1e-3, batch=64, report=100):
    """Train to `steps`; each of `workers` processes takes its share of every batch."""
    path, model = Path(folder) / "diffusion.pt", build()
    shadow = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-2)
    step, state = 0, load(path)
    if state:
        model.load_state_dict(state["model"])
        shadow.load_state_dict(state["shadow"])
        if state["optimiser"]:
            optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    for part in (model, shadow):
        part["text"].load_state_dict(load(Path(folder) / "text.pt"))
    use_fast_half_precision()
    data, alpha_bar = Data(folder), schedule().alphas_cumprod
    clock, total = time.time(), 0.0
    while step < steps:
        rng = np.random.default_rng([577, step, rank])
        torch.manual_seed(1_000_003 * rank + step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak)
        loss = loss_of(model, *data.batch(rng, batch // workers), alpha_bar)
        optimiser.zero_grad()
        loss.backward()
        if workers > 1:
            _share_gradients(model, workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average(model, shadow, step, decay=0.998)
        step, total = step + 1, total + loss.item()
        if rank == 0 and (step % report == 0 or step == steps):
            save(path, state_of(model, shadow, optimiser, step))
            pace = (time.time() - clock) / report
            words = f"diffusion {step}/{steps} loss {total / report:.4f} {pace:.3f} s/step"
            print(words, flush=True)
            clock, total = time.time(), 0.0
    return shadow


def _worker(rank, folder, workers, options):
    torch.set_num_threads(1)
    meeting = Path(folder).resolve() / "workers"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    train(folder, workers=workers, rank=rank, **options)
    dist.destroy_process_group()


def train_parallel(folder, *, workers=None, **options):
    """`train` in one process a core: cheaper than one process with many threads."""
    workers = workers or os.cpu_count()
    (Path(folder) / "workers").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_worker, (folder, workers, options), nprocs=workers)
