"""The worker processes of a benchmark, and how they take turns: one runs, the others sleep.

A runner is a worker and what it runs: (side, variant), for example ("refsd", "numba").
"""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import ROOT
from benchmarks.models import precision_and_form

# A sample lasts at least this long: short ops are called several times in a row.
SAMPLE_SECONDS, MOST_CALLS = 0.025, 200
# A variant this many times slower than its sibling when warm is left out of the rounds (reported).
CUTOFF = 1.5
WARM_UPS = 3
FEWEST, ENOUGH = 3, 90  # rounds, seconds
QUIET, TIMEOUT = 0.006, 2.0  # seconds


class RunnerError(Exception):
    """A worker could not do what was requested, or has died."""


def environment(threads):
    """This process's, with the number of threads that every library shall start."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return os.environ | dict.fromkeys(names, str(threads))


class Worker:
    """One process; a message goes in as a JSON line, and so comes the answer."""

    def __init__(self, side, threads, log):
        self.side, self.log = side, log
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.child", side, str(threads)], cwd=ROOT,
                env=environment(threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True)

    def send(self, do, **message):
        try:
            self.process.stdin.write(json.dumps({"do": do} | message) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise RunnerError(self._died()) from None

    def receive(self):
        line = self.process.stdout.readline()
        if not line:
            raise RunnerError(self._died())
        answer = json.loads(line)
        if "error" in answer:
            raise RunnerError(answer["error"])
        return answer

    def ask(self, do, **message):
        self.send(do, **message)
        return self.receive()

    def _died(self):
        return f"the process ended with code {self.process.wait()}; its last words: {self.log}"

    def cpu_seconds(self):
        """Processor time of all its threads; None where the system does not say."""
        try:
            tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
            return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        except (OSError, ValueError, IndexError):
            return None

    def close(self):
        with suppress(OSError):  # it may be dead already
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Workers:
    """The workers of one section."""

    def __init__(self, sides, threads, folder):
        self.by_side = {side: Worker(side, threads, folder / f"{side}.log") for side in sides}

    def settle(self):
        """Wait until no worker computes any more: thread pools spin for a while when idle."""
        begun = time.monotonic()
        while time.monotonic() - begun < TIMEOUT:
            before = [worker.cpu_seconds() for worker in self.by_side.values()]
            time.sleep(QUIET)
            after = [worker.cpu_seconds() for worker in self.by_side.values()]
            if None in before or None in after:
                time.sleep(0.3)
                return
            if sum(after) - sum(before) < 0.05 * QUIET:
                return

    def each(self, requests):
        """Send several workers a request at once, {side: message}; their answers or errors."""
        answers = {}
        for side, message in requests.items():
            try:
                self.by_side[side].send(**message)
            except RunnerError as problem:
                answers[side] = problem
        for side in requests:
            if side not in answers:
                try:
                    answers[side] = self.by_side[side].receive()
                except RunnerError as problem:
                    answers[side] = problem
        return answers

    def ask(self, runner, do, **message):
        """Send a runner's worker a request about its variant, all others quiet."""
        side, variant = runner
        self.settle()
        return self.by_side[side].ask(do, variant=variant, **message)


@contextmanager
def start_workers(sides, threads, folder):
    """Workers that live as long as the block."""
    folder.mkdir(parents=True, exist_ok=True)
    workers = Workers(sides, threads, folder)
    try:
        yield workers
    finally:
        for worker in workers.by_side.values():
            worker.close()


def _warm_up(workers, runner):
    """The fastest of a few single calls, of one where it is long."""
    workers.settle()
    (side, variant), fastest = runner, math.inf
    for _ in range(WARM_UPS):
        answer = workers.by_side[side].ask("run", variant=variant, times=1)
        fastest = min(fastest, answer["seconds"])
        if fastest > 8 * SAMPLE_SECONDS:
            break
    return fastest


def _precision(runner):
    return precision_and_form(runner[1])[0]


def time_in_rounds(workers, runners, rounds):
    """Seconds of every runner in alternating rounds: ({name: [...]}, {name: too slow}).

    runners: name -> (side, variant), all prepared and run once. Each round begins with another
    one. After FEWEST rounds it may end early, when ENOUGH seconds have gone by.
    """
    begun = time.monotonic()
    warm = {name: _warm_up(workers, runner) for name, runner in runners.items()}
    cut_off = {}
    for name, (side, _) in runners.items():
        siblings = [warm[other] for other, runner in runners.items()
                    if runner[0] == side and _precision(runner) == _precision(runners[name])]
        if warm[name] > CUTOFF * min(siblings):
            cut_off[name] = warm[name]
    racing = [name for name in runners if name not in cut_off]
    times = {name: max(1, min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / max(warm[name], 1e-6))))
             for name in racing}
    seconds = {name: [] for name in racing}
    for i in range(rounds):
        if i >= FEWEST and time.monotonic() - begun > ENOUGH:
            break
        for name in racing[i % len(racing):] + racing[:i % len(racing)]:
            answer = workers.ask(runners[name], "run", times=times[name])
            seconds[name].append(answer["seconds"])
    return seconds, cut_off
