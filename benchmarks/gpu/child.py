"""One section in a process of its own: a line of JSON a row, as soon as it is known.

A kernel's fault spoils all that a process does afterwards on a GPU, a hang never ends: so each
section has a process, which the session stops when its time is over.
"""

import importlib
import json
import math
import os
import sys
from typing import Any

CAPABILITY = 90  # of lockstep in a rehearsal: nothing is left out


def main(function: str, rehearse: bool, seconds: float) -> None:
    """Print rows to what was standard output; whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from benchmarks.gpu.work import Work, one_line

    module, _, name = function.rpartition(".")
    try:
        if rehearse:
            from refsd.numba_ops.cuda.device import current

            current().capability = CAPABILITY
        section = getattr(importlib.import_module(module), name)
        for row, content in section(Work(rehearse, seconds)):
            print(json.dumps([row, plain(content)]), file=answers, flush=True)
    except Exception as problem:
        print(json.dumps(["", {"red": one_line(problem)}]), file=answers, flush=True)
        raise


def plain(value: Any) -> Any:
    """What JSON has: numbers of NumPy are Python's, what is not finite is a word."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(plain, value))
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "rehearse", float(sys.argv[3]))
