"""Measuring which algorithm of conv2d is the fastest on this machine, and keeping what was found.

Nobody reads the findings unasked: conv2d_policy(tuned=load()) does, and exact mode never does.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from refsd.atomic import write_file
from refsd.errors import UsageError
from refsd.leaf import Weight, seal
from refsd.numba_ops.cache import cache_folder, exclusive
from refsd.numba_ops.cpu.conv import conv2d
from refsd.numba_ops.weights import pack_weight
from refsd.ops.conv import conv2d as definition

# How much a Winograd or FFT bracket exceeds conv(|x|, |w|) on average: docs/kernels-conv.md.
GROWTH = {"im2col": 1, "winograd2": 7.3, "winograd4": 41, "fft": 41}


def measure(x: Any, weight: Any, options: dict[str, Any], algorithms: Iterable[str],
            repeat: int) -> dict[str, float]:
    """The best seconds of those algorithms that compute right.

    x (N, C, H, W) and weight (O, C / groups, kH, kW) are Specs. The numbers are random and normal,
    of variances that make each output's 1; truth is the definition in float64.
    """
    random, terms = np.random.default_rng(0), math.prod(weight.shape[1:])
    N, C, H, W = x.shape
    x = random.standard_normal((N, H, W, C)).astype("f4").transpose(0, 3, 1, 2)
    weight = (random.standard_normal(weight.shape) / math.sqrt(terms)).astype("f4")
    weight = Weight(pack_weight(seal(weight)))  # as a model's are: spectra of it are kept
    truth = definition(x.astype("f8"), weight.astype("f8"), **options, algorithm="im2col")

    found = {}
    for name in algorithms:
        error = np.sqrt(np.mean((conv2d(x, weight, **options, algorithm=name) - truth) ** 2))
        # sqrt(roundings) u bracket: conv(|x|, |w|) is 2 / pi sqrt(terms) on average, the number of
        # roundings at most terms + 20. Twice that, since the bracket is a mean.
        bound = 2 * math.sqrt(terms + 20) * 2**-24 * GROWTH[name] * 2 / math.pi * math.sqrt(terms)
        if error <= bound:
            found[name] = min(_time(x, weight, options, name) for _ in range(repeat))
    return found


def _time(x, weight, options, name):
    begun = time.perf_counter()
    conv2d(x, weight, **options, algorithm=name)
    return time.perf_counter() - begun


def path() -> Path:
    """The file for these kernels (its folder says which), this processor, this many threads."""
    folder = cache_folder()
    if folder is None:
        raise UsageError("tune: no cache folder is safe to write to. refsd doctor says more")
    machine = f"{llvmlite.binding.get_host_cpu_name()} {os.cpu_count()} {numba.get_num_threads()}"
    return folder / f"tuned-{hashlib.sha256(machine.encode()).hexdigest()[:12]}.json"


def save(choices: dict[str, str], *, measured: set[str]) -> Path:
    """Keep the choices, and what was kept before of other convolutions; gives the file.

    No other process saves meanwhile: of two that tune two models at once both findings are kept.
    """
    kept = path()
    with exclusive("tuning"):
        known = load() if kept.exists() else {}
        others = {name: choice for name, choice in known.items() if name not in measured}
        write_file(kept, [json.dumps({**others, **choices}, indent=1).encode("ascii")])
    return kept


def load() -> dict[str, str]:
    """Algorithms by conv.shape_key(); UsageError where nothing was measured."""
    kept = path()
    if not kept.exists():
        raise UsageError("tuned: nothing was measured for these kernels, this processor and "
                         f"{numba.get_num_threads()} threads. Run refsd tune first")
    try:
        found = json.loads(kept.read_text())
        if {type(value) for pair in found.items() for value in pair} <= {str}:
            return found
    except (ValueError, AttributeError):
        found = None
    raise UsageError(f"{kept}: damaged. Remove it, and run refsd tune again")
