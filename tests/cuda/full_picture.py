"""A picture by the GPU's kernels, run in Python, judged like a port's: tensor by tensor.

    python tests/cuda/full_picture.py                     the bundled model at 8 x 8 pixels
    python tests/cuda/full_picture.py --plain             by the plain kernels alone: minutes
    python tests/cuda/full_picture.py -m FOLDER --side 16 --steps 2 --dtype float16 -o KEPT

The truth is a golden pack of the same recipe, NumPy in float64: each op has its derived tolerance,
and each tensor of the run what roundings spread to. Thread by thread the bundled model's smallest
picture takes hours by the fast kernels, which compute whole tiles: this is run by hand.
test_pictures.py does the same with a model of a few thousand weights.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import plain_kernels
import pytest

from refsd import StableDiffusionPipeline
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.verdicts import Comparison
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request, load_truth, model_of
from refsd.golden.tolerances import tolerance
from refsd.golden.tolerances.spread import add_spread
from refsd.schedulers import DDIMScheduler

PROMPT = "a glossy red sphere left of a small blue cube"


def from_noise(config: dict) -> DDIMScheduler:
    """DDIM from t = 999 on: of a single step from t = 1 hardly anything would be the model's."""
    return DDIMScheduler.from_config(config, timestep_spacing="trailing")


def request_of(pipe: Any, side: int, steps: int, prompt: str = PROMPT) -> Request:
    """The recipe of a picture with a pipeline's own scheduler."""
    scheduler = {"_class_name": type(pipe.scheduler).__name__, **pipe.scheduler.config.plain()}
    return Request(prompt, side, side, steps, 3.0, scheduler, negative_prompt="blurred", seed=7)


def judge(folder: Path, model: Any, *, side: int, steps: int, level: int = 3,
          dtype: str = "float32", scheduler: Any = from_noise, backend: str = "cuda",
          truth: Any = None) -> Comparison:
    """Draw on a backend, and compare every tensor with the truth's. Packs go to folder."""
    truth = load_truth(model, scheduler=scheduler) if truth is None else truth
    request, selection = request_of(truth, side, steps), Selection(level=level, steps=None)
    make(folder / "truth", request, pipe=truth, model=model, selection=selection,
         tolerance=tolerance.of)
    add_spread(folder / "truth", formats=(dtype,), pipe=truth)
    pipe = StableDiffusionPipeline.from_pretrained(model, backend=backend, dtype=dtype,
                                                   scheduler=scheduler, exact=True)
    make(folder / backend, request, pipe=pipe, selection=selection,
         about_model=model_of(truth, model))
    with Pack.open(folder / "truth") as pack, Candidate.open(folder / backend) as candidate:
        return compare(pack, candidate, format=dtype, whole=True)


def main(words: list[str]) -> int:
    """0: all tensors are within their limits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-m", "--model")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args(words)
    os.environ["REFSD_CUDA"] = "lockstep"
    if options.plain:
        plain_kernels.choose(pytest.MonkeyPatch())
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        comparison = judge(options.output or Path(scratch), options.model, side=options.side,
                           steps=options.steps, level=options.level, dtype=options.dtype)
    for verdict in comparison.failing[:20]:
        print(verdict)
    print(f"{comparison.counts} of {comparison.compared} tensors, "
          f"{time.perf_counter() - begun:.0f} s")
    return 0 if comparison.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
