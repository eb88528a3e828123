"""The device of a GPU without one: on a driver that pretends, in processes of their own.

Nothing of this has run on a GPU.
"""

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import driver_standin
import pytest

from refsd import gpu
from refsd.errors import ResourceError
from refsd.numba_ops.cuda import store
from refsd.numba_ops.cuda.driver import Driver
from refsd.numba_ops.cuda.pointwise import pointwise_kernel

HERE = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o",
          "addopts=--strict-markers"]
REFSD = [sys.executable, "-m", "refsd"]
RUN = driver_standin.run
GPU = """
import numpy as np
import driver_standin
kernels = driver_standin.attach()
from refsd import functional as F, registry
from refsd.numba_ops.cuda import device
from refsd.numba_ops.cuda.array import empty, to_device
"""
SAID = """
from refsd.errors import RefsdError
def said(function):
    try:
        function()
    except RefsdError as problem:
        print(type(problem).__name__, problem.exit_code, problem)
"""


def test_cases_on_the_stand_in():
    """Each is a test of cases.py."""
    lines = RUN([*PYTEST, str(HERE / "standin" / "cases.py")])
    assert " passed" in lines[-1] and "failed" not in lines[-1], lines


def test_ops_agree_through_the_driver():
    """As on a GPU: kernels are called as Numba's code is, and compute in lockstep. One family."""
    lines = RUN([*PYTEST, "-p", "standin.attached", str(HERE / "test_activation.py")],
                REFSD_TESTS_ON="device")
    assert any(" passed" in line for line in lines), lines


def test_a_drawing_copies_nothing_within_a_step():
    """Of the bundled model, by kernels that do nothing: the third step and those after it replay.

    Guidance and the sampler's few operations are launched, and no memory is asked of the driver.
    """
    program = """
import driver_standin
kernels = driver_standin.attach(idle=True)
import refsd
from refsd.numba_ops.cuda.device import current
pipe = refsd.StableDiffusionPipeline.from_pretrained(backend="cuda")
steps = []
def each(*_):
    steps.append(driver_standin.counts())
    return {}
pipe("a cube", 64, 64, num_inference_steps=6, generator=1, callback_on_step_end=each)
for before, after in zip(steps, steps[1:]):
    print({name: after[name] - before[name] for name in after if after[name] != before[name]})
end = driver_standin.counts()
print(end["to_host"], end["refused"], kernels.faults, current()._capturing)
"""
    *steps, end = RUN(program, STANDIN_FILL="0")
    captured, *replayed = map(ast.literal_eval, steps)
    assert captured["replays"] == 1 and captured["captured"] > 600
    assert not {"to_device", "to_host"} & set(captured)
    assert len(replayed) == 4 and all(step["replays"] == 1 and step["launches"] < 30
                                      for step in replayed)
    assert all(set(step) == {"launches", "replays"} for step in replayed[1:])
    assert end == "4 0 [] None"


def test_a_full_store_runs_without_numba(tmp_path):
    """From the prompt's side of an op to the launch: what is imported, and what is compiled."""
    tmp_path.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSD_CACHE", str(tmp_path))
        store.cubin(pointwise_kernel, ("silu", "float32"), 80)
    program = """
import sys
import numpy as np
import refsd, driver_standin
from refsd.numba_ops.cuda import store
from refsd.numba_ops.cuda.array import to_device
with refsd.use("auto"):
    y = refsd.F.silu(to_device(np.ones(1000, np.float32)))
y.block.device.synchronize()
print(driver_standin.counts()["launches"], store.compiled, "cuda.core" in sys.modules)
print([name for name in sys.modules if name.split(".")[0] in ("numba", "llvmlite", "greenlet")])
"""
    assert RUN(program, REFSD_CACHE=str(tmp_path)) == ["1 0 True", "[]"]


def test_a_full_memory_is_told():
    """Free pieces are given back first; then one line with what there is, and what would help."""
    program = GPU + SAID + """
from refsd.backends import BACKENDS
from refsd.numba_ops.cuda.device import current
CUDA, mib = BACKENDS["cuda"], 1 << 20
kept = [empty((20 * mib,), np.int8) for _ in range(3)]
del kept[1:]
large = empty((40 * mib,), np.int8)
print(current().available() // mib, CUDA.free_memory() // mib)
said(lambda: empty((8 * mib,), np.int8))
del large
print(len(empty((40 * mib,), np.int8)) // mib)
"""
    free, said, again = RUN(program, STANDIN_MEMORY=str(64 << 20))
    assert free == "4 4"
    assert said == ("ResourceError 4 the GPU's memory is full: 0.01 GiB more were asked for, refsd "
                    "uses 0.06 GiB, and 0.00 GiB of 0.06 GiB are free. Take --dtype float16, a "
                    "smaller picture (-W, -H) or fewer at once, or close what else uses the GPU")
    assert again == "40"


def test_a_refusal_names_the_function():
    """Not what the function is wrapped in, and no other refusal is a full memory."""
    error, full = SimpleNamespace(name="CUDA_ERROR_NOT_PERMITTED"), object()
    driver = SimpleNamespace(cuMemAlloc=lambda size: (error, 0),
                             CUresult=SimpleNamespace(CUDA_ERROR_OUT_OF_MEMORY=full))
    with pytest.raises(ResourceError, match=r"refused cuMemAlloc \(CUDA_ERROR_NOT_PERMITTED\)"):
        Driver._more(SimpleNamespace(_driver=driver), 512)


def test_a_kernel_that_fails_is_told():
    """When it is waited for; with CUDA_LAUNCH_BLOCKING=1 where it is launched, by its name."""
    program = GPU + SAID + """
with registry.use("cuda"):
    x = to_device(np.ones(5, np.float32))
    said(lambda: F.silu(F.silu(x)).numpy())
    said(lambda: F.silu(x))
"""
    first, second = RUN(program, STANDIN_FAULT="2")
    assert first.startswith("ResourceError 4 a kernel has failed on the GPU (CUDA_ERROR_ILLEGAL_")
    assert "Run it again with CUDA_LAUNCH_BLOCKING=1, which names the kernel" in first
    named = RUN(program, STANDIN_FAULT="2", CUDA_LAUNCH_BLOCKING="1")[0]
    assert named.startswith("ResourceError 4 the kernel pointwise.pointwise_kernel('silu', "
                            "'float32') on the grid (1,) failed: a kernel has failed on the GPU "
                            "(CUDA_ERROR_ILLEGAL")


@pytest.mark.parametrize("changes, why", [
    ({"STANDIN_DEVICES": "0"}, "the NVIDIA driver sees no GPU"),
    ({"STANDIN_CAPABILITY": "61"}, "the GPU, Stand-in, has compute capability 6.1, kernels need "
                                   "7.5"),
    ({"STANDIN_VERSION": "12040"}, "the NVIDIA driver is for CUDA 12.4, the installed packages "
                                   "want 13.0: get a newer driver, or pip install 'refsd[cuda12]'"),
])
def test_a_gpu_that_cannot_be_used(changes, why):
    """One line and exit code 4 where it was asked for; "auto" takes another backend."""
    (line,) = RUN([*REFSD, "ops", "why", "conv2d", "1x4x8x8", "4x4x3x3", "--backend", "cuda"],
                  code=4, **changes)
    assert line == (f"refsd: error: backend 'cuda' is not available here: {why}. Take another, or "
                    "auto")
    program = SAID + """
from refsd.backends import choose_backend
from refsd.numba_ops.cuda.driver import Driver
print(choose_backend("auto"))
said(Driver)
"""
    assert RUN(program, **changes) == [
        "numba", f"ResourceError 4 no GPU can be used: {why}. Or take another backend"]


def test_without_a_driver(monkeypatch):
    monkeypatch.delenv("REFSD_CUDA")
    monkeypatch.setattr(gpu, "LIBRARY", "libcuda-that-is-not-there.so.1")
    gpu.gpu.cache_clear()
    try:
        assert gpu.unusable() == ("no NVIDIA driver is installed (libcuda-that-is-not-there.so.1 "
                                  "is not found)")
    finally:
        gpu.gpu.cache_clear()


def test_without_packages(monkeypatch):
    monkeypatch.delenv("REFSD_CUDA")
    for driver, extra in [(13000, "cuda13"), (12090, "cuda12")]:
        monkeypatch.setattr(gpu, "gpu", lambda driver=driver: gpu.Gpu("A", 80, 1 << 30, driver))
        monkeypatch.setattr(gpu, "_bindings", lambda: 0)
        assert gpu.unusable() == f"cuda.core is not installed: pip install 'refsd[{extra}]'"


def test_doctor_shows_the_gpu(tmp_path):
    """And how many of its kernels are kept; or why there is none, or that it is not used."""
    tmp_path.chmod(0o700)
    program = """
from refsd.cli import doctor
for name, value in doctor.gpu().items():
    print(f"{name}: {value}")
"""
    facts = ["device: Stand-in", "compute capability: 8.9", "memory: 1.0 GiB",
             "driver: for CUDA 13.0"]
    *found, compiles, kernels = RUN(program, STANDIN_CAPABILITY="89", REFSD_CACHE=str(tmp_path))
    assert found == facts and compiles.startswith("compiler: numba-cuda 0.")
    assert re.fullmatch(r"kernels: \d+, in \d+ variants, of which 0 are compiled and kept", kernels)
    assert RUN(program, STANDIN_CAPABILITY="89", REFSD_CUDA="lockstep") == [
        *facts, "usable: no: REFSD_CUDA=lockstep"]
    assert RUN(program, STANDIN_DEVICES="0") == ["device: none: the NVIDIA driver sees no GPU"]


def test_auto_takes_a_gpu_and_never_lockstep():
    program = """
import sys
from refsd.backends import choose_backend
print(choose_backend("auto"), *{"cuda.core", "numba", "numpy"} & set(sys.modules))
"""
    assert RUN(program) == ["cuda"]
    (line,) = RUN(program, REFSD_CUDA="lockstep")
    assert line.startswith("numba")
