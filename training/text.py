"""The text encoder's first lesson: its state at the end tells the scene that the caption claims.

A linear read-out of the states from the end token on names colour, shape, size and finish of each
solid, by place (left to right, front to behind), the layout and the ground. Which colour goes with
which shape, and which stands left, is then within a linear map's reach of the UNet, which is slow
to find it by itself.
"""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.captions import describe
from training.checkpoints import learning_rate, save
from training.latents import CAPTIONS
from training.raytrace import SHAPES
from training.scenes import BACKGROUNDS, COLORS, FINISHES, LAYOUTS, SIZES, sample_scene

UNKNOWN = -100  # the caption does not say which solid stands where
_LAYOUTS = [name for names in LAYOUTS.values() for name in names]
_SLOT = (1 + len(COLORS), 1 + len(SHAPES), 1 + len(SIZES), 1 + len(FINISHES))
FIELDS = (*_SLOT * 3, 1 + len(_LAYOUTS), 1 + len(BACKGROUNDS))


def _code(names, name):
    return 0 if name is None else 1 + list(names).index(name)


def claims_as_numbers(scene, caption):
    """One class a field of FIELDS; class 0 says that there is none, or that nothing is said."""
    out = []
    said = len(caption.claims) == 1 or bool(caption.relations)
    for claim in caption.claims:
        codes = (
            _code(COLORS, claim.color),
            _code(SHAPES, claim.shape),
            _code(SIZES, claim.size),
            _code(FINISHES, claim.finish),
        )
        out += codes if said else (UNKNOWN,) * 4
    out += [0] * (12 - len(out))
    layout = scene.layout if said else None
    return [*out, _code(_LAYOUTS, layout), _code(BACKGROUNDS, caption.background)]


def encode_claims(folder, count):
    """claims.npy: (count, CAPTIONS, 14) int8 for the captions of tokens.npy."""
    out = np.empty((count, CAPTIONS, len(FIELDS)), np.int8)
    for seed in range(count):
        scene, rng = sample_scene(seed), np.random.default_rng([1618, seed])
        for slot in out[seed]:
            slot[:] = claims_as_numbers(scene, describe(scene, rng))
    np.save(Path(folder) / "claims.npy", out)


def loss_of(model, head, ids, claims, end):
    """(cross entropy of the read-out at the end token and at the last, share of fields right)."""
    states = model(ids).last_hidden_state
    first = states[torch.arange(len(ids)), (ids == end).int().argmax(dim=1)]
    loss, right = 0.0, []
    for state in (first, states[:, -1]):
        pieces = head(state).split(FIELDS, dim=1)
        for k, piece in enumerate(pieces):
            asked = claims[:, k] != UNKNOWN
            loss = loss + F.cross_entropy(piece[asked], claims[asked, k])
            right.append((piece[asked].argmax(dim=1) == claims[asked, k]).float().mean())
    return loss / (2 * len(FIELDS)), torch.stack(right).mean()


def train(folder, model, *, steps, batch=64, peak=1.5e-3, report=100):
    """Teach `model`, a CLIPTextModel, in place and write text.pt; needs tokens.npy, claims.npy."""
    tokens = np.load(Path(folder) / "tokens.npy", mmap_mode="r")
    claims = np.load(Path(folder) / "claims.npy")
    pairs = (claims[:, 0, 4] != 0) & (claims[:, 0, 8] == 0)
    chance = np.where(pairs, 3.0, np.where(claims[:, 0, 8] != 0, 2.0, 0.3))
    torch.manual_seed(0)
    head = torch.nn.Linear(model.config.hidden_size, sum(FIELDS))
    weights = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.99), weight_decay=1e-2)
    clock = time.time()
    for step in range(steps):
        rng = np.random.default_rng([173, step])
        rows = rng.choice(len(claims), batch, p=chance / chance.sum())
        pick = rng.integers(0, CAPTIONS, batch)
        ids = torch.from_numpy(tokens[rows, pick].astype(np.int64))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak, warmup=50)
        answer = torch.from_numpy(claims[rows, pick].astype(np.int64))
        loss, right = loss_of(model, head, ids, answer, model.config.eos_token_id)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if (step + 1) % report == 0:
            pace = (time.time() - clock) / report
            words = f"text {step + 1}/{steps} loss {loss.item():.4f} right {right.item():.4f}"
            print(f"{words} {pace:.3f} s/step", flush=True)
            clock = time.time()
    save(Path(folder) / "text.pt", model.state_dict())
