"""Whether a model fits into memory, said before it is loaded."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refsd import cgroups
from refsd.errors import ResourceError
from refsd.half import HALVES
from refsd.weights.forms import item_bytes
from refsd.weights.header import BLOCKS, BYTES, SCALED, WEIGHTS, TensorInfo

WIDENED = ("BF16", "F8_E4M3", "F8_E5M2", *BLOCKS, *SCALED)  # read as float32, whatever dtype says


def needed_bytes(
    tensors: Iterable[TensorInfo], dtype: str | None, form: str | None = None
) -> int:
    """The memory that tensors take once loaded as dtype, and the largest one once more.

    form: as `weights=` of load_checkpoint. Then a tensor is read whole before it takes it.
    """
    sizes, largest = [0], 0
    for tensor in tensors:
        wide = _loaded_bytes(tensor, dtype)
        small = form is not None and dtype is not None and len(tensor.shape) >= 2
        sizes.append(tensor.count * item_bytes(form, tensor.dtype, dtype) if small else wide)
        largest = max(largest, 2 * wide if small else wide)
    return sum(sizes) + largest


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


# An option's name in Python -> on the command line, where that is not its name.
LINE = {"width": "-W", "height": "-H", "num_images_per_prompt": "-b", "vae.tiling": "--vae-tiling"}


class Choice(NamedTuple):
    """Options that change how much memory is needed, and how much it is then."""

    options: Mapping[str, Any]
    bytes: int

    def __str__(self) -> str:
        """For Python, and for the command line: weights='int8' (--weights int8)."""
        python = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{python} ({self.line})"

    @property
    def line(self) -> str:
        """As on the command line: --weights int8."""
        return " ".join(f"{LINE.get(name, f'--{name}')} {v}" for name, v in self.options.items())


# What is tried where memory is short, what changes least first: as-is changes no value.
LIGHTER: tuple[dict[str, str], ...] = (
    {"weights": "as-is"}, {"weights": "bfloat16"}, {"dtype": "bfloat16"}, {"weights": "int8"},
    {"dtype": "bfloat16", "weights": "int8"})


def lighter(tensors: Collection[TensorInfo], dtype: str | None,
            form: str | None) -> Iterator[Choice]:
    """Each way of loading these tensors that takes less memory than as dtype, in a form."""
    asked = needed_bytes(tensors, dtype, form)
    for options in LIGHTER if dtype is not None else ():
        needed = needed_bytes(tensors, options.get("dtype", dtype), options.get("weights"))
        if needed < asked and not (dtype in HALVES and options.get("weights") in HALVES):
            yield Choice(options, needed)


def advice(choices: Iterable[Choice], available: int) -> str:
    """The first that fits, as a sentence; what takes the least, if none does."""
    choices = list(choices)
    fitting = next((choice for choice in choices if choice.bytes <= available), None)
    if fitting is not None:
        return f"With {fitting} it takes {_gib(fitting.bytes)} and fits"
    least = min(choices, key=lambda choice: choice.bytes, default=None)
    return "" if least is None else f"The least is {_gib(least.bytes)}, with {least}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def check_memory(needed: int, where: str, *, force: bool = False,
                 choices: Iterable[Choice] = ()) -> None:
    """ResourceError when a model needs more memory than there is, unless forced.

    It says what else would do: the first of the choices that fits.
    """
    available = available_bytes()
    if not force and available is not None and needed > available:
        hint = advice(choices, available)
        raise ResourceError(
            f"{where}: the weights need {_gib(needed)} of memory, {_gib(available)} are available. "
            + (f"{hint}. Else free some, or force it" if hint else "Free some, or force it"))
