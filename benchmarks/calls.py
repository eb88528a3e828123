"""Which ops Stable Diffusion 1.5 calls, with which shapes and how often: from its own models.

The models run on shapes alone (refsd/pipelines/planned.py), so nothing here is typed by hand.
"""

import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from refsd.pipelines.planned import plan_model
from refsd.planning import Asked

# The work that every model section measures: a guided step, and one picture of 512 x 512.
SAMPLE, TEXT, LATENTS, PICTURE, IDS = (
    (2, 4, 64, 64), (2, 77, 768), (1, 4, 64, 64), (1, 3, 512, 512), (2, 77))

TIMED = ("conv2d", "linear", "attention", "group_norm", "layer_norm", "silu", "geglu")
# Random numbers repeat after so many. A prime: no row of an array begins like another.
PERIOD = 1_000_003


class Call(NamedTuple):
    """One op with the shapes of its inputs, its options, what it costs and how often it is run."""

    op: str
    inputs: dict[str, tuple[int, ...] | None]
    options: dict[str, Any]
    output: tuple[int, ...]
    flops: int
    bytes: int
    count: dict[str, int]

    @property
    def name(self) -> str:
        """For people: conv2d 2x320x64x64 320x320x3x3 bias stride 2"""
        words = [self.op]
        for key, shape in self.inputs.items():
            if shape is not None and (self.op, key) not in UNSAID:
                words.append("bias" if key == "bias" else "x".join(map(str, shape)))
        words += [f"{key} {value}".replace(", ", ",") for key, value in self.options.items()
                  if key != "eps" and value != DEFAULTS.get(key)]
        return " ".join(words)


# What the other inputs already tell, and the options that a call has unless it says otherwise.
UNSAID = {("group_norm", "weight"), ("group_norm", "bias"), ("layer_norm", "weight"),
          ("layer_norm", "bias"), ("attention", "v")}
DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "algorithm": "auto",
            "causal": False, "mask": None}


def plans():
    """All ops of each model, one after the other."""
    found = plan_model(asked=Asked(pictures=1, copies=2, height=64, width=64, downscale=8))
    found["clip"] = found.pop("text_encoder")  # what the tables of times call it
    return found


def distinct_calls(parts=("unet", "decode"), ops=TIMED):
    """The different calls of these ops, the ones with most work first within each op.

    Calls that differ in eps alone count as one: it does not change how long they take.
    """
    found, counts, all_plans = {}, {}, plans()
    for part in parts:
        for planned in all_plans[part]:
            if planned.op not in ops:
                continue
            inputs = {k: None if v is None else tuple(v.shape) for k, v in planned.inputs.items()}
            options = {k: v for k, v in planned.options.items() if k != "eps"}
            key = json.dumps([planned.op, inputs, options])
            counts.setdefault(key, Counter())[part] += 1
            found[key] = Call(planned.op, inputs, planned.options, planned.output.shape,
                              planned.output.flops, planned.output.bytes, {})
    calls = [call._replace(count=dict(counts[key])) for key, call in found.items()]
    return sorted(calls, key=lambda c: (ops.index(c.op), -c.flops, c.name))


def work(part):
    """FLOPs and bytes of one whole run of a part, as the contracts count them."""
    planned = plans()[part]
    return sum(p.output.flops for p in planned), sum(p.output.bytes for p in planned)


def make_arrays(inputs, seed=0):
    """Normal float32 numbers for every input; weights of products scaled to give such numbers."""
    block = np.random.default_rng(seed).standard_normal(PERIOD, dtype="float32")
    arrays = {}
    for i, (name, shape) in enumerate(inputs.items()):
        if shape is None:
            arrays[name] = None
            continue
        size = int(np.prod(shape))
        start = (i * 104_729) % PERIOD
        array = np.resize(np.roll(block, -start), size).reshape(shape)
        if name == "weight" and len(shape) > 1:
            array /= np.float32(np.sqrt(np.prod(shape[1:])))
        arrays[name] = array
    return arrays
