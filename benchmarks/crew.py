"""The children that compete, and how they take turns: one runs, the others sleep."""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import ROOT

# A sample lasts at least this long: short ops are called several times in a row.
SAMPLE_SECONDS, MOST_CALLS = 0.025, 200
# A variant this many times slower than its sibling when warm is told so and left out of the rounds.
HOPELESS = 1.5
WARM_UPS = 3
FEWEST, ENOUGH = 3, 90  # rounds, seconds
QUIET, PATIENCE = 0.006, 2.0  # seconds


class ContestantError(Exception):
    """A child could not do what it was asked, or has died."""


def environment(threads):
    """This process's, with the number of threads that every library shall start."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return os.environ | dict.fromkeys(names, str(threads))


class Child:
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
            raise ContestantError(self._died()) from None

    def receive(self):
        line = self.process.stdout.readline()
        if not line:
            raise ContestantError(self._died())
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantError(answer["error"])
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


class Crew:
    """The children of one section."""

    def __init__(self, sides, threads, folder):
        self.children = {side: Child(side, threads, folder / f"{side}.log") for side in sides}

    def settle(self):
        """Wait until no child computes any more: thread pools spin for a while after their work."""
        begun = time.monotonic()
        while time.monotonic() - begun < PATIENCE:
            before = [child.cpu_seconds() for child in self.children.values()]
            time.sleep(QUIET)
            after = [child.cpu_seconds() for child in self.children.values()]
            if None in before or None in after:
                time.sleep(0.3)
                return
            if sum(after) - sum(before) < 0.05 * QUIET:
                return

    def each(self, requests):
        """Ask several children at once: {child: message}. Returns answers or their errors."""
        answers = {}
        for side, message in requests.items():
            try:
                self.children[side].send(**message)
            except ContestantError as problem:
                answers[side] = problem
        for side in requests:
            if side not in answers:
                try:
                    answers[side] = self.children[side].receive()
                except ContestantError as problem:
                    answers[side] = problem
        return answers

    def ask(self, contestant, do, **message):
        """Ask the child of a contestant (side, variant) about its variant, all others quiet."""
        side, variant = contestant
        self.settle()
        return self.children[side].ask(do, variant=variant, **message)


@contextmanager
def crew(sides, threads, folder):
    """Children that live as long as the block."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Crew(sides, threads, folder)
    try:
        yield found
    finally:
        for child in found.children.values():
            child.close()


def _warm_up(found, contestant):
    """The fastest of a few single calls, of one where it is long."""
    found.settle()
    (side, variant), fastest = contestant, math.inf
    for _ in range(WARM_UPS):
        answer = found.children[side].ask("run", variant=variant, times=1)
        fastest = min(fastest, answer["seconds"])
        if fastest > 8 * SAMPLE_SECONDS:
            break
    return fastest


def race(found, contestants, rounds):
    """Seconds of every contestant in alternating rounds: ({name: [...]}, {name: too slow}).

    contestants: name -> (side, variant), all prepared and run once. Each round begins with another
    one. After FEWEST rounds it may end early, when ENOUGH seconds have gone by.
    """
    begun = time.monotonic()
    warm = {name: _warm_up(found, who) for name, who in contestants.items()}
    hopeless = {}
    for name, (side, _) in contestants.items():
        siblings = [warm[other] for other, who in contestants.items() if who[0] == side]
        if warm[name] > HOPELESS * min(siblings):
            hopeless[name] = warm[name]
    racing = [name for name in contestants if name not in hopeless]
    times = {name: max(1, min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / max(warm[name], 1e-6))))
             for name in racing}
    seconds = {name: [] for name in racing}
    for i in range(rounds):
        if i >= FEWEST and time.monotonic() - begun > ENOUGH:
            break
        for name in racing[i % len(racing):] + racing[:i % len(racing)]:
            answer = found.ask(contestants[name], "run", times=times[name])
            seconds[name].append(answer["seconds"])
    return seconds, hopeless
