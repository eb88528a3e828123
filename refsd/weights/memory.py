"""Whether a model fits into memory, said before it is loaded."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refsd import cgroups
from refsd.errors import ResourceError
from refsd.weights.forms import item_bytes
from refsd.weights.header import BLOCKS, BYTES, SCALED, WEIGHTS, TensorInfo

WIDENED = ("BF16", "F8_E4M3", "F8_E5M2", *BLOCKS, *SCALED)  # read as float32, whatever dtype says


def needed_bytes(
    tensors: Iterable[TensorInfo], dtype: str | None, form: str | None = None, *,
    once: bool = False,
) -> int:
    """The memory that tensors take once loaded as dtype, and, unless `once`, the largest once more.

    form: as `weights=` of load_checkpoint. Then a tensor is read whole before it takes it.
    """
    sizes, largest = [0], 0
    for tensor in tensors:
        wide = _loaded_bytes(tensor, dtype)
        small = form is not None and dtype is not None and len(tensor.shape) >= 2
        sizes.append(tensor.count * item_bytes(form, tensor.dtype, dtype) if small else wide)
        largest = max(largest, 2 * wide if small else wide)
    return sum(sizes) + (0 if once else largest)


def _loaded_bytes(tensor: TensorInfo, dtype: str | None) -> int:
    if tensor.dtype not in WEIGHTS or dtype is None:
        return tensor.count * (4 if tensor.dtype in WIDENED else BYTES[tensor.dtype])
    return tensor.count * {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}[dtype]


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be had without swapping, where the system says; None elsewhere.

    The smallest of what the machine has, what control groups leave, and what `ulimit` allows.
    """
    machine = re.search(r"^MemAvailable:\s*(\d{1,15}) kB", _text(root / "proc/meminfo"), re.M)
    found = [int(machine[1]) * 1024 if machine else None, cgroups.free_bytes(root), _allowed(root)]
    return min((bytes for bytes in found if bytes is not None), default=None)


def _allowed(root: Path) -> int | None:
    """What the limits of address space and of data leave at most; None without any.

    Address space that is only reserved counts there too, but may be what is asked for: so the
    memory that is in use is taken off, which never refuses what would have fitted.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    used = re.search(r"^VmRSS:\s*(\d{1,15}) kB", _text(root / "proc/self/status"), re.M)
    return max(min(limits) - (int(used[1]) * 1024 if used else 0), 0) if limits else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def check_memory(needed: int, where: str, *, force: bool = False,
                 loading: tuple[Any, str | None, str | None] | None = None) -> None:
    """ResourceError when a model needs more memory than there is, unless forced.

    loading: the tensors, the dtype and the form, of which it says what else would fit.
    """
    available = available_bytes()
    if not force and available is not None and needed > available:
        from refsd.weights.lighter import advice, gib, lighter

        hint = loading and advice(lighter(*loading), available)
        raise ResourceError(
            f"{where}: the weights need {gib(needed)} of memory, {gib(available)} are available. "
            + (f"{hint}. Else free some, or force it" if hint else "Free some, or force it"))
