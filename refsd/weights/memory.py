"""Whether a model fits into memory, said before it is loaded."""

import re
from collections.abc import Iterable
from pathlib import Path

from refsd.errors import ResourceError
from refsd.weights.header import BYTES, FLOATS, TensorInfo

WIDENED = ("BF16", "F8_E4M3", "F8_E5M2")  # read as float32, whatever dtype says


def needed_bytes(tensors: Iterable[TensorInfo], dtype: str | None) -> int:
    """The memory that tensors take once loaded as dtype, and the largest one once more."""
    sizes = [_loaded_bytes(tensor, dtype) for tensor in tensors]
    return sum(sizes) + max(sizes, default=0)


def _loaded_bytes(tensor: TensorInfo, dtype: str | None) -> int:
    stored = tensor.stop - tensor.start
    if tensor.dtype not in FLOATS or dtype is None:
        wider = 4 if tensor.dtype in WIDENED else BYTES[tensor.dtype]
        return stored // BYTES[tensor.dtype] * wider
    return stored // BYTES[tensor.dtype] * {"float32": 4, "float64": 8}[dtype]


def available_bytes() -> int | None:
    """Memory that can be had without swapping, where the system says; None elsewhere."""
    found = []
    meminfo = _text("/proc/meminfo")
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():  # "max" where there is no limit
        cached = re.search(r"^inactive_file (\d+)$", _text("/sys/fs/cgroup/memory.stat"), re.M)
        reclaimable = int(cached[1]) if cached else 0
        found.append(max(int(limit) - int(used) + reclaimable, 0))
    return min(found, default=None)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def check_memory(needed: int, where: str, *, force: bool = False) -> None:
    """ResourceError when a model needs more memory than there is, unless forced."""
    available = available_bytes()
    if not force and available is not None and needed > available:
        raise ResourceError(
            f"{where}: the weights need {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available. Free some, or force it"
        )
