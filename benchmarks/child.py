"""One runner in a process of its own: answers JSON lines until its input ends.

    prepare  a job for a variant           result  run once, keep or write what came out
    run      some times, tell the seconds  referee judge results (refsd's worker only)
    drop     forget the job                peak    the most memory so far
"""

import gc
import importlib
import json
import os
import sys
import time
import traceback

import numpy as np


class Runner:
    """What one side has prepared, by variant."""

    def __init__(self, side, threads):
        self.side, self.threads = importlib.import_module(f"benchmarks.{side}_side"), threads
        self.prepared, self.job, self.last = {}, None, None

    def prepare(self, job, variant):
        self.job = job
        self.prepared[variant] = self.side.prepare(job, variant, self.threads)
        return {}

    def result(self, variant, path=None):
        function = self._ready(variant)
        begun = time.perf_counter()
        found = function()
        seconds = time.perf_counter() - begun
        array = self.side.numpy(found)
        if path is None:
            self.last = array
        else:
            np.save(path, array)
        return {"seconds": seconds, "size": int(array.size)}

    def run(self, variant, times):
        """Seconds of one call: the mean of `times` in a row."""
        function = self._ready(variant)
        begun = time.perf_counter()
        for _ in range(times):
            function()
        return {"seconds": (time.perf_counter() - begun) / times}

    def _ready(self, variant):
        """What is timed; what it needs beforehand is done here."""
        function = self.prepared[variant]
        getattr(function, "before", lambda: None)()
        return function

    def referee(self, others):
        return {"judged": self.side.referee(self.job, self.last, others)}

    def drop(self):
        self.prepared, self.job, self.last = {}, None, None
        gc.collect()
        return {}

    def peak(self):
        return {"bytes": peak_bytes()}


def peak_bytes():
    """The most physical memory that this process has held, and never just now."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def serve(side, threads):
    """Answer each line of standard input. Whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runner = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if runner is None:
                runner = Runner(side, threads)
            answer = getattr(runner, message.pop("do"))(**message)
        except Exception as problem:  # whatever it is, the parent tells it and goes on
            traceback.print_exc()
            text = " ".join(str(problem).split())[:300]
            answer = {"error": f"{type(problem).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
