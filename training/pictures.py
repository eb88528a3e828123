"""Training pictures: picture i shows the scene of seed i; all are drawn once into a flat file."""

import os
from pathlib import Path

import numpy as np

from training.captions import describe
from training.raytrace import SIZE, render
from training.scenes import sample_scene

HELD_OUT = 10_000_000  # seeds from here on are never trained on
PROMPTS_FROM = HELD_OUT + 1_000_000  # those of scenes that prompts describe
CHUNK = 500


def _done(folder):
    mark = Path(folder) / "pictures.done"
    return int(mark.read_text()) if mark.exists() else 0


def open_pictures(folder):
    """(N, 128, 128, 3) uint8, memory mapped: the pictures that are finished so far."""
    count = _done(folder)
    path = Path(folder) / "pictures.u8"
    return np.memmap(path, np.uint8, "r", shape=(count, SIZE, SIZE, 3))


def held_out(count, *, first=HELD_OUT):
    """(count, 128, 128, 3) uint8: pictures that no training step has seen."""
    return np.stack([render(sample_scene(first + i)) for i in range(count)])


def prompts(count, solids):
    """Captions of `count` held-out scenes of so many solids; two solids always with a relation."""
    out = []
    for seed in range(PROMPTS_FROM + 100_000 * solids, PROMPTS_FROM + 100_000 * solids + count):
        rng = np.random.default_rng([2236, seed])
        out.append(describe(sample_scene(seed, count=solids), rng, plain=solids == 2))
    return out


def draw_pictures(folder, count):
    """Draw pictures up to `count`; goes on where an earlier call stopped."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    start = _done(folder)
    with open(Path(folder) / "pictures.u8", "r+b" if start else "wb") as out:
        for first in range(start, count, CHUNK):
            last = min(first + CHUNK, count)
            out.seek(first * SIZE * SIZE * 3)
            for seed in range(first, last):
                out.write(render(sample_scene(seed)).tobytes())
            out.flush()
            mark = Path(folder) / "pictures.tmp"
            mark.write_text(str(last))
            os.replace(mark, Path(folder) / "pictures.done")
            print(f"pictures {last}/{count}", flush=True)
