"""Every variant of every kernel: that it loads, and that its results are right."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from refsd import examples
from refsd.numba_ops import cuda  # noqa: F401  declares the factories
from refsd.numba_ops.cuda.device import current
from refsd.numba_ops.cuda.plan import FACTORIES
from refsd.registry import kernels, ops

TESTS = ROOT / "tests" / "cuda"
Rows = Iterator[tuple[str, dict[str, Any]]]


def variants(capability: int) -> Iterator[tuple[str, Any, tuple]]:
    """All that a GPU of this capability may be given, by name."""
    for name, factory in sorted(FACTORIES.items()):
        for constants in factory.each if factory.serves(capability) else ():
            yield f"{name}({', '.join(map(str, constants))})", factory, constants


def load(work: Any) -> Rows:
    """Code, registers and shared memory of each; what is wrong is said when it is loaded."""
    device = current()
    for name, factory, constants in variants(device.capability):
        def loaded(factory=factory, constants=constants):
            begun = time.perf_counter()
            device.load(factory, constants)
            return {"seconds": round(time.perf_counter() - begun, 4)}
        yield name, work.guarded(loaded)


def samples(work: Any) -> Rows:
    """Every op on its sample calls, inside the derived bounds: small shapes."""
    from cuda_agreement import DTYPES, agree

    for name, op in ops().items():
        if "cuda" not in kernels(name):
            yield name, {"skipped": "it has no CUDA kernel"}
            continue
        calls = examples.calls(op)[:1 if work.rehearse else None]
        for dtype in DTYPES[:1] if work.rehearse else DTYPES:
            def agreed(op=op, calls=calls, dtype=dtype):
                for call in calls:
                    given = examples.with_values(op, call, 0)
                    agree(op.name, list(given.inputs.values()), given.options, dtype)
                return {"calls": len(calls)}
            yield f"{name} {dtype}", work.guarded(agreed)


def comparing() -> list[Path]:
    """The files of tests that compare with the reference: tests/cuda/conftest.py keeps the same."""
    return [path for path in sorted(TESTS.glob("test_*.py"))
            if "from cuda_agreement import" in path.read_text()]


def agreement(work: Any) -> Rows:
    """tests/cuda on the device: each file in a process, which a fault spoils for itself alone."""
    files, some = comparing(), list[str]()
    if work.rehearse:
        files, some = [path for path in files if path.stem == "test_activation"], ["-k", "silu"]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        running = {pool.submit(_tests, path, some, work.left() - 5): path for path in files}
        for done in as_completed(running):
            yield running[done].stem, work.guarded(done.result)


def _tests(path: Path, some: list[str], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-o", "addopts=-q --strict-markers", "-p",
                   "no:cacheprovider", f"--junitxml={report}", str(path), *some]
        stopped = ""
        try:
            subprocess.run(command, cwd=ROOT, env=os.environ | {"REFSD_TESTS_ON": "device"},
                           stdout=sys.stderr, timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            stopped = f"stopped after {seconds:.0f} s"
        if not report.is_file():
            return {"red": stopped or "pytest made no report"}
        return outcome(ET.parse(report))


def outcome(report: Any) -> dict[str, Any]:
    """How many passed, and what the others say."""
    cases = list(report.iter("testcase"))
    bad = {case.get("name"): child.get("message", "") for case in cases for child in case
           if child.tag in ("failure", "error")}
    skipped = sum(child.tag == "skipped" for case in cases for child in case)
    row = {"passed": len(cases) - len(bad) - skipped, "skipped_tests": skipped}
    said = "; ".join(f"{name}: {' '.join(text.split())[:200]}" for name, text in bad.items())
    return row | ({"red": said[:2000]} if bad else {} if cases else {"red": "no test was run"})


def sanitizer(work: Any) -> Rows:
    """compute-sanitizer over the samples: accesses out of bounds, and races in shared memory."""
    tool = shutil.which("compute-sanitizer")
    for name in ("memcheck", "racecheck"):
        if work.rehearse or not tool:
            why = "a rehearsal" if work.rehearse else "compute-sanitizer is not there"
            yield name, {"skipped": why}
            continue
        yield name, work.guarded(lambda name=name: _sanitized(tool, name, work.left() / 2))


def _sanitized(tool: str, name: str, seconds: float) -> dict[str, Any]:
    command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-m",
               "benchmarks.gpu.child", "benchmarks.gpu.variants.samples", "measure", str(seconds)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    errors = re.findall(r"={9} (.*)", said.stdout + said.stderr)
    row = {"exit_code": said.returncode, "says": errors[-3:]}
    return row | ({"red": "; ".join(errors[:5])[:1000]} if said.returncode else {})

