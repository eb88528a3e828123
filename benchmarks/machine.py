"""What a result belongs to: the machine, the versions of everything, and refsd's own source."""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

from benchmarks import ROOT
from refsd import parallel
from refsd.version import __version__

PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "torch", "diffusers", "transformers", "openvino")


def fingerprint():
    """{"machine": ..., "versions": ..., "source": ...}"""
    from llvmlite.binding import get_host_cpu_name

    from refsd.numba_ops.simd import WIDTH

    return {  # some processors' own names say too little: "AMD EPYC" is Zen 4 and Zen 5
        "machine": {"cpu": parallel.processor(), "target": get_host_cpu_name(),
                    "cores": len(os.sched_getaffinity(0)), "caches": caches(), "simd_bytes": WIDTH,
                    "memory_bytes": memory_bytes(),
                    "system": f"{platform.system()} {platform.machine()}"},
        "versions": {"refsd": __version__, "python": platform.python_version()} | {
            package: _version(package) for package in PACKAGES},
        "source": source(),
    }


def caches():
    """{"L1d": "48K", "L2": "1024K", ...} of the first core."""
    found = {}
    for place in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_text(place / name).strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return found


def memory_bytes():
    """All physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def source(package=ROOT / "refsd"):
    """A hash of every source file that what is timed may run: all but golden packs.

    Another source needs another measurement.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] != "golden":
            digest.update(str(name).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""
