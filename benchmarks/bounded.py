"""The most memory of drawing with a whole model inside a budget, cell by cell of a table.

    python -m benchmarks.bounded [--cells sd1 sdxl-block ...] [--rounds N] [--cache FOLDER]

Each cell is a fresh process: load, text, two steps asked for, decode; its VmHWM is the figure. A
round goes through all cells, so that times of a round stand beside each other, and is resumed where
it was stopped; another source of refsd is measured anew. `python -m benchmarks table` then makes
the table of docs/memory.md.
"""

import argparse
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import ROOT, bounded_model, machine
from benchmarks.child import peak_bytes
from benchmarks.models import PROMPT, SEED
from benchmarks.results_file import FOLDER, SCHEMA, Results, now
from benchmarks.workers import environment

SIDES = {"sd1": 512, "sdxl": 1024}
STEPS = 2


class Cell(NamedTuple):
    """Options of loading, how the VAE works, and the cell that is the same without a bound.

    `budget` are the bytes that it is to stay under, None where there is no goal.
    """

    model: str
    options: dict
    tiling: str = "auto"
    whole: str | None = None
    budget: float | None = None


BF16, AS_IS, INT8 = {"dtype": "bfloat16"}, {"weights": "as-is"}, {"weights": "int8"}
COMPONENT, BLOCK = {"offload": "component"}, {"offload": "block"}
# The first cell of a model is its unrestricted run.
CELLS = {
    "sd1-float32": Cell("sd1", {}),
    "sd1-as-is": Cell("sd1", AS_IS, budget=4e9),
    "sd1-bfloat16": Cell("sd1", BF16, budget=4e9),
    "sd1-int8": Cell("sd1", INT8, budget=2.5e9),
    "sd1-bfloat16-int8": Cell("sd1", BF16 | INT8, budget=2.5e9),
    "sd1-component": Cell("sd1", COMPONENT, whole="sd1-float32"),
    "sd1-as-is-component": Cell("sd1", AS_IS | COMPONENT, whole="sd1-as-is", budget=2.5e9),
    "sd1-bfloat16-component": Cell("sd1", BF16 | COMPONENT, whole="sd1-bfloat16", budget=2.5e9),
    "sd1-block": Cell("sd1", BLOCK, whole="sd1-float32"),
    "sd1-as-is-block": Cell("sd1", AS_IS | BLOCK, whole="sd1-as-is"),
    "sd1-as-is-block-bands": Cell("sd1", AS_IS | BLOCK, "exact", "sd1-as-is", 1e9),
    "sd1-bfloat16-block": Cell("sd1", BF16 | BLOCK, whole="sd1-bfloat16", budget=1e9),
    "sd1-bfloat16-block-bands": Cell("sd1", BF16 | BLOCK, "exact", "sd1-bfloat16", 1e9),
    "sdxl-bfloat16": Cell("sdxl", BF16),
    "sdxl-bfloat16-int8": Cell("sdxl", BF16 | INT8),
    "sdxl-component": Cell("sdxl", BF16 | COMPONENT, whole="sdxl-bfloat16"),
    "sdxl-block": Cell("sdxl", BF16 | BLOCK, whole="sdxl-bfloat16", budget=4e9),
    "sdxl-block-bands": Cell("sdxl", BF16 | BLOCK, "exact", "sdxl-bfloat16", 4e9),
    "sdxl-int8-component-bands": Cell("sdxl", BF16 | INT8 | COMPONENT, "exact",
                                      "sdxl-bfloat16-int8", 4e9),
}


def available(cells=CELLS):
    """Those whose options there are."""
    from refsd import StableDiffusionPipeline

    known = inspect.signature(StableDiffusionPipeline.from_pretrained).parameters
    return {name: cell for name, cell in cells.items() if cell.options.keys() <= known.keys()}


def estimated(folder, cell):
    """The bytes that `refsd plan` says of a cell; None where it does not know an option of it."""
    from refsd.pipelines.figures import Request, figures
    from refsd.pipelines.outline import outline

    if not cell.options.keys() <= Request.__dataclass_fields__.keys():
        return None
    side = SIDES[cell.model]
    return figures(outline(str(folder)), Request(side, side, backend="numba", steps=STEPS,
                                                 tiling=cell.tiling, **cell.options)).peak


def draw(folder, side, options, tiling):
    """One picture in this process, and what it took."""
    begun = time.perf_counter()
    from refsd.pipelines.auto import AutoPipelineForText2Image

    pipe = AutoPipelineForText2Image.from_pretrained(folder, backend="numba", **options)
    pipe.vae.tiling = tiling
    loaded = time.perf_counter() - begun
    output = pipe(PROMPT, height=side, width=side, num_inference_steps=STEPS, generator=SEED,
                  output_type="np")
    return {"bytes": peak_bytes(), "load": loaded, "seconds": output.seconds,
            "step_seconds": output.step_seconds,
            "picture": hashlib.sha256(output.images.tobytes()).hexdigest()[:16]}


def measure(folder, cell, threads):
    """What a fresh process says of a cell; RuntimeError with its last line where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bounded", "--draw", str(folder),
         str(SIDES[cell.model]), json.dumps(cell.options), cell.tiling],
        cwd=ROOT, env=environment(threads), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no word").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def parser():
    found = argparse.ArgumentParser(prog="python -m benchmarks.bounded")
    add = found.add_argument
    add("--cells", nargs="+", metavar="NAME", default=[""],
        help="those whose names begin so: " + ", ".join(CELLS))
    add("--rounds", type=int, default=1, help="of all cells (1); VmHWM hardly differs, times do")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of kernels (all cores)")
    add("--out", type=Path, help="results file (benchmarks/results/memory/CPU-TARGET-THREADS.json)")
    add("--cache", type=Path, default=ROOT / ".bench", help="for the models, 9 GB (.bench)")
    add("--fresh", action="store_true", help="measure these cells again")
    add("--quiet-machine", action="store_true",
        help="say that nothing else runs; else the table marks the times as taken on a busy one")
    return found


def main(arguments=None):
    """Measure; the exit code is 1 where a cell failed."""
    asked = parser().parse_args(arguments)
    found = machine.fingerprint()
    source, of = found.pop("source"), found["machine"]
    name = re.sub("[^a-z0-9]+", "-", f"{of['cpu']} {of['target']} {asked.threads} threads".lower())
    results = Results(asked.out or FOLDER / "memory" / f"{name.strip('-')}.json",
                      {"schema": SCHEMA, "kind": "memory", "threads": asked.threads} | found)
    rows = results.begin("cells")
    cells = {name: cell for name, cell in available().items()
             if name.startswith(tuple(asked.cells))}
    if asked.fresh:
        rows.update({name: {} for name in cells})
    failed = []
    for number in range(asked.rounds):
        for name, cell in cells.items():
            try:
                work(rows, name, cell, number, asked, source)
            except RuntimeError as problem:
                failed.append(f"{name}: {problem}")
                rows.pop(name, None)
            results.save()
    print(*failed, sep="\n")
    return bool(failed)


def work(rows, name, cell, number, asked, source):
    """Measure a cell in a round unless that is done."""
    row = rows.get(name, {})
    if row.get("source") != source:
        row = {"source": source, "runs": []}
    asked.cache.mkdir(parents=True, exist_ok=True)
    folder = bounded_model.make(asked.cache.resolve(), cell.model)
    rows[name] = row | {"estimated": estimated(folder, cell)}
    if len(row["runs"]) > number:
        return
    rows[name] |= {"date": now(), "quiet": asked.quiet_machine}
    rows[name]["runs"] += [measure(folder, cell, asked.threads)]
    run = rows[name]["runs"][-1]
    print(f"{name}: {run['bytes'] / 1e9:.2f} GB, steps "
          + ", ".join(f"{seconds:.2f} s" for seconds in run["step_seconds"]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--draw"]:
        folder, side, options, tiling = sys.argv[2:]
        print(json.dumps(draw(folder, int(side), json.loads(options), tiling)))
    else:
        sys.exit(main())
