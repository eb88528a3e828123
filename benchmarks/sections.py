"""What is measured, section by section. Each fills the rows of a results file."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ROOT, agreement, calls, models
from benchmarks.memory import SIDES as MEMORY_SIDES
from benchmarks.workers import RunnerError, environment, start_workers, time_in_rounds

REFSD, NUMPY, TORCH, LAST, OPENVINO, NHWC = (
    "refsd", "refsd on NumPy", "PyTorch", "PyTorch channels-last", "OpenVINO", "OpenVINO NHWC")
BFLOAT16 = "refsd bfloat16"
HALVES = {BFLOAT16: ("refsd", "bfloat16 numba"),
          "PyTorch bfloat16": ("torch", "bfloat16 contiguous"),
          "PyTorch bfloat16 channels-last": ("torch", "bfloat16 channels_last"),
          "PyTorch autocast": ("torch", "autocast contiguous"),
          "OpenVINO by itself": ("openvino", "own plain")}
# What int8 weights stand for, as arrays: the truth of those that read int8 itself.
DENSE = "refsd on what int8 stands for"
INT8 = {"refsd int8": ("refsd", "int8 numba"),
        "refsd bfloat16 and int8": ("refsd", "bfloat16 int8 numba")}
HELD_TO = {"refsd int8": (DENSE, agreement.PEER),
           "refsd bfloat16 and int8": (DENSE, agreement.HALF)}
RUNNERS = HALVES | INT8 | {
    DENSE: ("refsd", "int8 dense numba"), REFSD: ("refsd", "numba"), NUMPY: ("refsd", "numpy"),
    TORCH: ("torch", "contiguous"), LAST: ("torch", "channels_last"),
    OPENVINO: ("openvino", "plain"), NHWC: ("openvino", "nhwc")}
ALONE = 4  # samples of what has no rival
# Pictures are one if they differ by less than half a grey level in the root mean square.
SAME_PICTURE = 0.5 / 255
# What drawing a picture from the command line imports.
IMPORTS = ("refsd.__main__", "refsd.cli.draw", "refsd.numba_ops.cpu", "refsd.pipelines.loading",
           "refsd.pipelines.stable_diffusion")


class Run(NamedTuple):
    """What all sections need."""

    results: Any
    threads: int
    rounds: int
    cache: Path
    say: Any
    limit: int | None = None  # ops of each kind, for a short trial

    @property
    def folder(self):
        return str(self.cache / "sd15")


def peaks(run):
    """The most multiply-adds and the fastest copy of this machine, cores as many as threads."""
    from benchmarks import peaks as limits

    rows = run.results.begin("peaks")
    with start_workers(["refsd"], run.threads, run.cache) as workers:
        for kind, unit in (("fma", "flops"), ("copy", "bytes")):
            who = ("refsd", "numba")
            workers.ask(who, "prepare", job={"kind": kind})
            workers.ask(who, "run", times=2)
            seconds = [workers.ask(who, "run", times=1)["seconds"] for _ in range(3 * ALONE)]
            amount = getattr(limits, kind)(run.threads)[1]
            rows[kind] = {unit: amount, "seconds": {REFSD: seconds}}
            run.say(f"  {kind}: {amount / min(seconds) / 1e9:.0f} G{unit}/s")
            workers.each({"refsd": {"do": "drop"}})


def ops(run):
    """Every distinct op of a UNet step and a decode; a worker keeps no op but the present one."""
    rows = run.results.begin("ops")
    todo = calls.distinct_calls()
    if run.limit:
        todo = [c for op in calls.TIMED for c in [c for c in todo if c.op == op][-run.limit:]]
    with start_workers(["refsd", "torch", "openvino"], run.threads, run.cache) as workers:
        for i, call in enumerate(todo):
            if rows.get(call.name, {}).get("not_timed") == {}:
                continue
            pictures = len(call.output) == 4
            names = [REFSD, TORCH, OPENVINO] + ([LAST, NHWC] if pictures else [])
            job = {"kind": "op", "op": call.op, "inputs": call.inputs, "options": call.options}
            rows[call.name] = {"op": call.op, "inputs": call.inputs, "options": call.options,
                               "output": call.output, "flops": call.flops, "bytes": call.bytes,
                               "count": call.count} | compete(run, workers, job, names)
            run.results.save()
            run.say(f"  {i + 1}/{len(todo)} {call.name}: {summary(rows[call.name])}")


def part(run, name, *, scale=()):
    """CLIP, a UNet step, a decode or an encode, with the same random weights on all sides."""
    names = [REFSD, TORCH, OPENVINO, *([LAST] if name != "clip" else []), *scale]
    run.results.begin(name)[name] = _network(run, name, names, agreement.PEER, once=scale)


def half(run):
    """The same parts in bfloat16 and with int8 weights.

    PyTorch's float32 result is the truth, of int8 weights that of the weights they stand for.
    """
    rows = run.results.begin("half")
    for name in ("clip", "unet", "decode", "encode"):
        if rows.get(name, {}).get("not_timed") != {}:
            rows[name] = _network(run, name, [REFSD, TORCH, DENSE, *HALVES, *INT8], agreement.HALF,
                                  once=(TORCH,))
            run.results.save()


def _network(run, name, names, allowed, once):
    """The row of a network."""
    models.make_model(Path(run.folder))
    flops, size = calls.work(name)
    job = {"kind": name, "folder": run.folder, "allowed": allowed, "held_to": HELD_TO,
           "cache": str(run.cache / "openvino")}
    with start_workers(["openvino"], run.threads, run.cache) as workers:
        # Converting takes as much memory again, so before the others load: kept for the next run.
        _told(run, workers.each({"openvino": {"do": "prepare", "job": job, "variant": "convert"}}))
    with start_workers(["refsd", "torch", "openvino"], run.threads, run.cache) as workers:
        row = {"flops": flops, "bytes": size} | compete(run, workers, job, names, once=once)
    run.say(f"  {name}: {summary(row)}")
    return row


def bundled(run):
    """A whole picture by the model that ships with refsd."""
    rows = run.results.begin("bundled")
    job = {"kind": "bundled", "allowed": SAME_PICTURE}
    with start_workers(["refsd", "torch", "openvino"], run.threads, run.cache) as workers:
        names = [REFSD, TORCH, LAST, OPENVINO, NUMPY]
        rows["bundled"] = {"steps": models.STEPS} | compete(run, workers, job, names, once=(NUMPY,))
    run.say(f"  bundled: {summary(rows['bundled'])}")


def compete(run, workers, job, names, once=()):
    """Prepare a job on all sides, let the referee judge, race those that are right.

    Those named in `once` are there for scale: they run for the referee and no more. The time of
    DENSE, which is loaded for its one run, is no time of a network.
    """
    red = _prepare(workers, job, names)
    with tempfile.TemporaryDirectory(dir=run.cache) as folder:
        first = _results(workers, folder, [name for name in names if name not in red], red)
        files = {name: f"{folder}/{name}.npy" for name in names
                 if name not in red and name != REFSD}
        judged = _judge(workers, job, files, red)
    agreed = {name: verdict for name, verdict in judged.items() if "red" not in verdict}
    red |= {name: verdict["red"] for name, verdict in judged.items() if "red" in verdict}

    row = {"agreement": agreed, "not_timed": red, "seconds": {}, "slower": {}}
    if REFSD not in red:
        racing = {name: RUNNERS[name] for name in names if name not in {*red, *once, DENSE}}
        row["seconds"], row["slower"] = time_in_rounds(workers, racing, run.rounds)
        row["seconds"] |= {name: [first[name]] for name in once if name not in red}
    workers.each({side: {"do": "drop"} for side in workers.by_side})
    return row


def _prepare(workers, job, names):
    """{name: why not}"""
    red = {}
    for number in range(len(names)):  # the first variant of every side at once, then the second
        asked = {}
        for side in workers.by_side:
            variants = [name for name in names if RUNNERS[name][0] == side]
            if number < len(variants):
                asked[side] = variants[number]
        answers = workers.each({side: {"do": "prepare", "job": job, "variant": RUNNERS[name][1]}
                              for side, name in asked.items()})
        red |= {asked[side]: str(answer) for side, answer in answers.items()
                if isinstance(answer, RunnerError)}
    return red


def _results(workers, folder, names, red):
    """Everybody's result into files, our own into its worker's memory. {name: seconds it took}

    What goes wrong is added to red, {name: why not}.
    """
    seconds = {}
    for name in names:
        path = None if name == REFSD else f"{folder}/{name}.npy"
        try:
            seconds[name] = workers.ask(RUNNERS[name], "result", path=path)["seconds"]
        except RunnerError as problem:
            red[name] = str(problem)
    return seconds


def _judge(workers, job, files, red):
    """The referee's verdict of all results. Whole networks are held against PyTorch's."""
    if REFSD in red:
        return {}
    if job["kind"] != "op":
        if TORCH not in files:
            return {REFSD: {"red": f"there is nothing to compare with: {red.get(TORCH)}"}}
        files = files | {"truth": files[TORCH]}
    try:
        return workers.by_side["refsd"].ask("referee", others=files)["judged"]
    except RunnerError as problem:
        return {REFSD: {"red": f"the check failed: {problem}"}}


def memory(run):
    """The most memory that a whole picture takes, each side in a process of its own."""
    models.make_model(Path(run.folder))
    rows = run.results.begin("memory")
    for side in MEMORY_SIDES:
        done = subprocess.run([sys.executable, "-m", "benchmarks.memory", side, run.folder,
                               str(run.threads)], cwd=ROOT, env=environment(run.threads),
                              capture_output=True, text=True)
        if done.returncode:
            raise RunnerError(f"{side}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
        key, *numbers = done.stdout.split()[-3:]
        rows[key] = {"bytes": int(numbers[0]), "prepared": int(numbers[1])}
        run.say(f"  {key}: {rows[key]['bytes'] / 1e9:.2f} GB")


def start(run):
    """From the command to the PNG: with an empty cache of kernels, and with a full one."""
    rows = run.results.begin("start")
    with tempfile.TemporaryDirectory(dir=run.cache) as folder:
        env = environment(run.threads) | {"REFSD_CACHE": f"{folder}/cache"}
        draw = [sys.executable, "-m", "refsd", models.PROMPT, "-s", str(models.SEED), "--steps",
                str(models.STEPS), "--threads", str(run.threads), "-o", f"{folder}/picture.png"]
        imports = [sys.executable, "-c", f"import {', '.join(IMPORTS)}"]
        for name, command, times in (("cold", draw, 1), ("warm", draw, ALONE),
                                     ("imports", imports, ALONE)):
            rows[name] = {"seconds": {REFSD: [_clock(command, env) for _ in range(times)]}}
            run.say(f"  {name}: {min(rows[name]['seconds'][REFSD]):.2f} s")


def _clock(command, env):
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RunnerError(" ".join(done.stderr.split())[-300:])
    return time.perf_counter() - begun


def _told(run, answers):
    for side, answer in answers.items():
        if isinstance(answer, RunnerError):
            run.say(f"  {side}: {answer}")


def summary(row):
    """One line of a row: the fastest run of each."""
    words = [f"{name} {min(s) * 1e3:.3g} ms" for name, s in row["seconds"].items()]
    words += [f"{name} not timed: {why}" for name, why in row["not_timed"].items()]
    return ", ".join(words) or "nothing"


SECTIONS = {
    "peaks": peaks,
    "ops": ops,
    "clip": lambda run: part(run, "clip", scale=(NUMPY,)),
    "unet": lambda run: part(run, "unet", scale=(NUMPY,)),
    "decode": lambda run: part(run, "decode"),
    "encode": lambda run: part(run, "encode"),
    "half": half,
    "bundled": bundled,
    "memory": memory,
    "start": start,
}
