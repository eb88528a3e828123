"""Which device this is, and with which versions: the first that is written down."""

import ctypes.util
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from benchmarks.machine import source
from refsd.version import __version__

PACKAGES = ("numpy", "scipy", "ml-dtypes", "numba", "llvmlite", "numba-cuda", "cuda-core",
            "cuda-bindings", "nvidia-nvvm", "nvidia-cuda-nvrtc", "nvidia-nvjitlink", "greenlet",
            "pytest", "torch", "triton", "diffusers")
TOOLS = ("compute-sanitizer", "nvcc", "nvdisasm", "cuobjdump", "ncu")


def section(work: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The device, the driver, Python packages, tools."""
    yield "device", work.guarded(device)
    yield "packages", {"refsd": __version__, "python": platform.python_version()} | {
        name: version(name) for name in PACKAGES}
    yield "tools", {name: shutil.which(name) for name in TOOLS} | {
        "libnvvm": ctypes.util.find_library("nvvm")}
    yield "source", {"hash": source()}
    yield "nvidia-smi", work.guarded(smi)


def device() -> dict[str, Any]:
    """As our own driver sees it."""
    from refsd.numba_ops.cuda.device import current

    found = current()
    return {"name": found.name, "capability": found.capability}


def version(name: str) -> str | None:
    """Of a package, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def smi() -> dict[str, Any]:
    """The driver's version, memory, and clocks, if the tool is there."""
    asked = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
    if not shutil.which("nvidia-smi"):
        return {"skipped": "nvidia-smi is not there"}
    said = subprocess.run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
                          capture_output=True, text=True, timeout=15)
    return dict(zip(asked.split(","), (cell.strip() for cell in said.stdout.split(","))))
