"""What training stages share: checkpoints that survive a kill, learning rate, averaging."""

import math
import os
from pathlib import Path

import torch


def save(path, state):
    """Write a checkpoint; a kill in the middle leaves the one before."""
    new = Path(path).with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)


def load(path):
    """The checkpoint as a dict, None when there is none yet."""
    return torch.load(path, weights_only=True) if Path(path).exists() else None


def state_of(model, shadow, optimiser, step):
    """What a checkpoint holds."""
    return {
        "model": model.state_dict(),
        "shadow": shadow.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }


def learning_rate(step, total, *, peak, warmup=200, floor=0.02):
    """Linear warm-up, then half a cosine from `peak` down to `floor` times it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share)))


def average(model, shadow, step, *, decay):
    """shadow <- d shadow + (1 - d) model, with a smaller d while the model is young."""
    d = min(decay, (1.0 + step) / (10.0 + step))
    with torch.no_grad():
        old = list(shadow.parameters())
        torch._foreach_lerp_(old, list(model.parameters()), 1.0 - d)
