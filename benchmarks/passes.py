"""Each pass of refsd.graph alone, and all of them, in a whole step of Stable Diffusion 1.5's UNet.

    python -m benchmarks.passes [--dtype float32 bfloat16] [--passes NAME ...] [--pairs N]

512 x 512 pixels, batch 2, random weights. A fused step stands between two that are not, and its
ratio is that to their mean. "concat" is a step without the time of its concats: the most that
writing them where their parts are made could save (what it costs: benchmarks/concats.py). Results
are kept in benchmarks/results/passes, a machine a file, and resumed from there: until each pass has
its pairs, or for --seconds. 9 GB of memory.
"""

import argparse
import os
import re
import statistics
import sys
import time

import numpy as np

from benchmarks import machine
from benchmarks.results_file import FOLDER, SCHEMA, Results, now
from refsd.backends import find_backend
from refsd.families import sd1
from refsd.graph import run, trace
from refsd.graph.passes import PASSES, optimize, unused
from refsd.half import HALVES
from refsd.leaf import Weight
from refsd.networks import shapes_of, validate
from refsd.pipelines.loading import computes
from refsd.pipelines.planned import calls, planned_networks, sized
from refsd.registry import use, watch
from refsd.weights.checkpoint import Component

DTYPES = ("float32", "bfloat16")
NAMES = {one.__name__: (one,) for one in PASSES if one is not unused} | {"all": PASSES}
ROWS = (*NAMES, "concat")


def random_weights(config, dtype):
    """Leaves that let numbers keep their size from layer to layer."""
    random = np.random.default_rng(0)
    for name, shape in shapes_of("unet", config).items():
        if "norm" in name:
            array = np.full(shape, float(name.endswith("weight")), "f4")
        else:
            scale = np.float32(1 / np.sqrt(max(np.prod(shape[1:]), 1)))
            array = scale * random.standard_normal(shape, dtype="f4")
        yield name, Weight(array.astype(HALVES.get(dtype, dtype)), name)


def traced(dtype):
    """The graph of a step, with its weights, and inputs for it."""
    configs, random = sd1.SD1.configs, np.random.default_rng(1)
    tensors = dict(random_weights(configs["unet"], dtype))
    find_backend("numba").place(tensors)
    loaded = Component(validate("unet", configs["unet"]), tensors, "unet")
    network = computes("unet", loaded.config).of(loaded, "numba", False)
    networks = {**planned_networks(configs, backend="numba", dtype=dtype), "unet": network}
    graph = trace(calls(networks, sized(networks))["unet"][0])
    values = [graph.values[number] for number in graph.numbers("input")]
    return graph, [random.standard_normal(v.shape, dtype="f4").astype(HALVES.get(v.dtype, v.dtype))
                   if v.dtype == dtype else random.integers(0, 999, v.shape, v.dtype)
                   for v in values]


def seconds_of(graph, inputs):
    """Of one run."""
    begun = time.perf_counter()
    run(graph, *inputs)
    return time.perf_counter() - begun


def without_concats(graph, inputs):
    """Seconds of a run, and what they are without those of its concats."""
    spent = []

    def hear(op, inputs, options, output, begun, ended):
        spent.extend([(ended - begun) / 1e9] if op == "concat" else [])

    with watch(hear, timed=True):
        whole = seconds_of(graph, inputs)
    return whole, whole - sum(spent)


def measure(dtype, names, pairs, until, keep):
    """Turns: a plain step, one with each pass that still wants pairs, and so on.

    keep(name, plain, fused): what a pair took.
    """
    graph, inputs = traced(dtype)
    wanted = {name: optimize(graph, NAMES[name], "numba")[0] for name in names if name in NAMES}
    with use("numba"):
        expected = run(graph, *inputs)
        for name, fused in wanted.items():  # and kernels are compiled
            found = run(fused, *inputs)
            assert dtype != "float32" or np.array_equal(found, expected), f"{name}: other bits"
        for _ in range(pairs.get("concat", 0)):
            keep("concat", *without_concats(graph, inputs))
        before = seconds_of(graph, inputs)
        for _ in range(max(pairs.values())):
            for name, fused in wanted.items():
                if pairs[name] <= 0:
                    continue
                if time.perf_counter() > until:
                    return
                took, after = seconds_of(fused, inputs), seconds_of(graph, inputs)
                keep(name, (before + after) / 2, took)
                before, pairs[name] = after, pairs[name] - 1


def line(dtype, name, row):
    """The medians of a pass, and the spread of its ratios."""
    ratios = [fused / plain for plain, fused in row["pairs"]]
    plain, fused = (statistics.median(side) for side in zip(*row["pairs"]))
    return (f"{dtype:<10}{name:<18}{plain:>8.2f} s{fused:>8.2f} s{statistics.median(ratios):>8.3f}"
            f"   {min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)}")


def parser():
    found = argparse.ArgumentParser(prog="python -m benchmarks.passes")
    add = found.add_argument
    add("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    add("--passes", nargs="+", choices=ROWS, default=ROWS)
    add("--pairs", type=int, default=5, help="of each (5)")
    add("--seconds", type=float, default=float("inf"), help="stop after so many; resumed next time")
    return found


def main(arguments=None):
    """Measure what is missing, and print all that is there."""
    asked, until = parser().parse_args(arguments), time.perf_counter()
    until += asked.seconds
    found, threads = machine.fingerprint(), len(os.sched_getaffinity(0))
    of, source = found["machine"], found.pop("source")
    name = re.sub("[^a-z0-9]+", "-", f"{of['cpu']} {of['target']} {threads} threads".lower())
    results = Results(FOLDER / "passes" / f"{name.strip('-')}.json",
                      {"schema": SCHEMA, "kind": "passes", "threads": threads} | found)
    for dtype in asked.dtype:
        rows = results.begin(dtype)
        for one in asked.passes:
            if one not in rows or rows[one]["source"] != source:
                rows[one] = {"source": source, "date": now(), "pairs": []}
        pairs = {one: asked.pairs - len(rows[one]["pairs"]) for one in asked.passes}

        def keep(one, plain, fused, rows=rows, dtype=dtype):
            rows[one]["pairs"].append([plain, fused])
            results.save()
            print(line(dtype, one, rows[one]), flush=True)

        left = [one for one in asked.passes if pairs[one] > 0]
        if left:
            measure(dtype, left, pairs, until, keep)
    print("\nplain, fused, median of ratios, their spread")
    for dtype in asked.dtype:
        for one, row in results.data["sections"][dtype]["rows"].items():
            if row["pairs"]:
                print(line(dtype, one, row))


if __name__ == "__main__":
    sys.exit(main())
