"""How alike in time shards are: 32 pictures of many sizes and steps, drawn one after the other.

    python -m benchmarks.shards

prints the seconds a TFLOP that pictures took, and for shards of --prompts by how much the longest
is above the mean: dealt by FLOPs, and as every N-th line would be. docs/farm.md has the figures.
"""

import json
import os
import random
import statistics
import tempfile
import time

from refsd.cli import batch, draw, requests, threads, units_pictures
from refsd.farm.shards import deal

PICTURES, SEED = 32, 1
SIDES = (64, 128, 192)


def lines():
    """The requests: each of its own size, steps and guidance."""
    dice = random.Random(SEED)
    return [{"prompt": "a red cube", "seed": seed, "steps": dice.choice((5, 10, 20, 40)),
             "width": dice.choice(SIDES), "height": dice.choice(SIDES),
             "cfg_scale": dice.choice((1, 3, 3))} for seed in range(PICTURES)]


def measured(folder):
    """The FLOPs that each picture is dealt by, and the seconds that it took on one thread."""
    file = os.path.join(folder, "prompts.jsonl")
    with open(file, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines())
    options = draw.parser().parse_args(["--prompts", file, "-o", folder, "-t", "1", "-q"])
    options.output, options.seed, options.prompt = folder, 0, ""
    draw.check(options)
    costs, seconds = [], []
    with threads.limited(1):
        session = batch.Session(options, False)
        own = session.pipe.scheduler
        for _ in range(2):  # the first time compiles and warms up
            for request in requests.read_requests(file, options, None):
                recipe = batch.first_recipe(session, own, request.options)
                begun = time.perf_counter()
                batch.draw(session, recipe, os.path.join(folder, "x.png"))
                seconds.append(time.perf_counter() - begun)
                costs.append(units_pictures.Costs(session.pipe).of(recipe))
    return costs[PICTURES:], seconds[PICTURES:]


def above_mean(seconds, parts):
    """By which share the longest part is above the mean."""
    sums = [sum(seconds[index] for index in part) for part in parts]
    return max(sums) / statistics.mean(sums) - 1


def main():
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        costs, seconds = measured(folder)
    pace = sorted(each / cost * 1e12 for cost, each in zip(costs, seconds))
    print(f"{PICTURES} pictures, {sum(seconds):.1f} s; seconds a TFLOP: {pace[0]:.0f} to "
          f"{pace[-1]:.0f}, median {statistics.median(pace):.0f}; the longest picture "
          f"{max(seconds):.1f} s")
    for parts in (2, 4, 8):
        turns = [range(first, PICTURES, parts) for first in range(parts)]
        print(f"{parts} shards: the longest is {above_mean(seconds, deal(costs, parts)):.0%} above "
              f"the mean, every N-th line {above_mean(seconds, turns):.0%}")


if __name__ == "__main__":
    main()
