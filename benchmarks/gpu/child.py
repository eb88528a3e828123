"""One section in a process of its own: a line of JSON a row, as soon as it is known.

A kernel's fault spoils all that a process does afterwards on a GPU, a hang never ends: so each
section has a process, which the session stops when its time is over.
"""

import importlib
import json
import os
import sys

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
            print(json.dumps([row, content]), file=answers, flush=True)
    except Exception as problem:
        print(json.dumps(["", {"red": one_line(problem)}]), file=answers, flush=True)
        raise


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "rehearse", float(sys.argv[3]))
