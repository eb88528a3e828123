"""The backends: what the registry, the pipelines and the command line ask of one beside kernels.

`Backend(name, module)` declares one, which is like NumPy in what is not declared; `add_backend`
makes it known everywhere. A backend's package is imported where it is used, not before.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from refsd.contracts import Spec
from refsd.errors import ResourceError, UsageError
from refsd.memory_models import CUDA_MEMORY, NUMBA_MEMORY, NUMPY_MEMORY, UNKNOWN_MEMORY, MemoryModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A name, the module whose import declares the kernels, and what is particular to them."""

    name: str
    module: str
    memory: MemoryModel = UNKNOWN_MEMORY
    device: str = "cpu"  # where its arrays lie
    tunable: bool = False  # whether `tuned` has an effect

    def unavailable(self) -> str:
        """Why nothing can be computed with it here; empty if it can."""
        return ""

    def automatic(self) -> bool:
        """Whether "auto" may take it, or else say in one line that it is not available."""
        return True

    def place(self, tensors: dict[str, Any], *, passing: bool = False) -> None:
        """Put weights, in place, where and as the kernels read them. Shapes and values stay.

        For who owns the only copy of a model: kernels then need no second one. What is passing goes
        again soon.
        """

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A NumPy array for what goes again soon, such as a weight before it is placed."""
        from numpy import empty

        return empty(shape, dtype)

    def put(self, array: Any) -> Any:
        """A NumPy array where this backend's arrays lie; its own arrays, and None, as they are."""
        return array

    def wait(self) -> None:
        """Until all that was asked for has been computed."""

    def free_memory(self) -> int | None:
        """Bytes that its device has for arrays; None where that is the host, or nobody knows."""

    def replayed(self, function: Callable, reads: Any) -> Callable:
        """function(*arrays) for who calls it again and again with the same shapes and leaves."""
        return function

    def ready(self, dtype: str) -> None:
        """Do what a generation in `dtype` needs once, such as compiling kernels."""

    def release(self) -> None:
        """Give memory back to the system that the next stage has no use for."""

    def threads(self) -> int:
        """The threads that its ops use here and now."""
        from refsd.parallel import blas_pools

        return max([pool["num_threads"] for pool in blas_pools()], default=1)

    def layout_copies(self) -> int | None:
        """Arrays copied so far for how they lay in memory; None where nobody counts them."""

    def versions(self) -> dict[str, str]:
        """Versions, beside those of refsd and NumPy, that may change a bit of a result."""
        from refsd.parallel import blas_pools

        names = {" ".join(filter(None, (pool["internal_api"], pool["version"],
                                        pool.get("architecture")))) for pool in blas_pools()}
        return {"blas": ", ".join(sorted(names)) or "unknown"}

    def conv2d_choice(self, result: tuple, kernel: tuple, *, stride: tuple, dilation: tuple,
                      groups: int, algorithm: str, dtype: Any) -> Any:
        """The ops.conv.Choice for a result (N, H', W', O) and a kernel (O, I, kH, kW)."""
        from refsd.ops.conv import conv2d_algorithm
        from refsd.registry import exact_wanted

        return conv2d_algorithm(Spec(kernel, ""), stride=stride, dilation=dilation,
                                algorithm=algorithm, exact=exact_wanted())

    def conv2d_rows(self, algorithm: str, outputs: int, groups: int, dtype: str) -> int:
        """Outputs, padding included, of an algorithm's own weight; 0 if it takes it as it is."""
        return 0 if algorithm == "im2col" else outputs

    def tuned(self, choices: Mapping[str, str]) -> AbstractContextManager:
        """Within the block convolutions take the algorithms that `refsd tune` measured."""
        return nullcontext()


class NumbaBackend(Backend):
    """refsd.numba_ops."""

    def unavailable(self) -> str:
        """Numba has to be installed. Whether it works, importing the kernels tells."""
        return "" if find_spec("numba") else "numba is not installed: pip install numba"

    def place(self, tensors: dict[str, Any], *, passing: bool = False) -> None:
        """Output channels adjacent in memory, in whole panels."""
        from refsd.numba_ops.weights import pack_all

        pack_all(tensors, passing=passing)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Of the memory of results that are gone, whose pages are there."""
        from refsd.numba_ops.memory import empty_from_pool

        return empty_from_pool(shape, dtype)

    def ready(self, dtype: str) -> None:
        """Compile the kernels, or load them."""
        from refsd.numba_ops.warmup import make_ready

        make_ready(dtype)

    def release(self) -> None:
        """What the C library keeps."""
        from refsd.numba_ops.pool import trim

        trim()

    def threads(self) -> int:
        """Numba's."""
        from refsd.numba_ops.threads import count

        return count()

    def layout_copies(self) -> int:
        """See refsd.numba_ops.memory."""
        from refsd.numba_ops.memory import layout_copies

        return layout_copies()

    def versions(self) -> dict[str, str]:
        """The compiler's, and what it compiles for."""
        from importlib.metadata import version

        import llvmlite.binding

        from refsd.numba_ops.levels import BFLOAT16
        from refsd.numba_ops.simd import WIDTH

        return {**{name: version(name) for name in ("numba", "llvmlite")},
                "vector width": f"{WIDTH} bytes", "bfloat16 products": BFLOAT16,
                "processor": llvmlite.binding.get_host_cpu_name()}

    def conv2d_choice(self, result: tuple, kernel: tuple, **options: Any) -> Any:
        """By sizes too, or as tuned."""
        from refsd.numba_ops.cpu.conv import choose_here

        return choose_here(result, kernel, **options)

    def conv2d_rows(self, algorithm: str, outputs: int, groups: int, dtype: str) -> int:
        """Whole panels: of a packed weight's rows, or of each group."""
        import numpy as np

        from refsd.numba_ops.memory import panel_width
        from refsd.numba_ops.weights import row_step

        if algorithm == "im2col":
            return row_step(outputs, np.dtype(dtype))
        panel = panel_width(np.dtype(dtype))
        return groups * -(-(outputs // groups) // panel) * panel

    def tuned(self, choices: Mapping[str, str]) -> AbstractContextManager:
        """See refsd.numba_ops.cpu.tuning."""
        from refsd.numba_ops.cpu.conv import conv2d_policy

        return conv2d_policy(tuned=choices)


class CudaBackend(Backend):
    """refsd.numba_ops.cuda."""

    def unavailable(self) -> str:
        """A GPU has to be there, or Python in its place."""
        from refsd.gpu import unusable

        return unusable()

    def automatic(self) -> bool:
        """Where there is a GPU; never in lockstep."""
        from refsd.gpu import Gpu, gpu, lockstep

        return not lockstep() and isinstance(gpu(), Gpu)

    def versions(self) -> dict[str, str]:
        """The compiler's, the driver's, and what computes."""
        from refsd.numba_ops.cuda.device import versions

        return versions()

    def place(self, tensors: dict[str, Any]) -> None:
        """Upload them."""
        from refsd.numba_ops.cuda.weights import place_all

        place_all(tensors)

    def conv2d_choice(self, result: tuple, kernel: tuple, *, stride: tuple, groups: int,
                      dtype: Any, **options: Any) -> Any:
        """Sums of products, whatever is asked for; and which kernel makes them."""
        from refsd.numba_ops.cuda.conv import explain

        return explain(result, kernel, stride, groups, str(dtype))

    def put(self, array: Any) -> Any:
        """Upload it."""
        from refsd.numba_ops.cuda.array import to_device

        return to_device(array)

    def free_memory(self) -> int | None:
        """The GPU's, with what its pool has free."""
        return self._device().available()

    def replayed(self, function: Callable, reads: Any) -> Callable:
        """Its launches are captured, and replayed."""
        from refsd.numba_ops.cuda.replay import Replayed

        return Replayed(function, reads)

    def wait(self) -> None:
        """For the device."""
        self._device().synchronize()

    def _device(self):
        from refsd.numba_ops.cuda.device import current

        return current()


# Fastest first: "auto" takes the first that is available.
BACKENDS: dict[str, Backend] = {
    "cuda": CudaBackend("cuda", "refsd.numba_ops.cuda", CUDA_MEMORY, device="cuda"),
    "numba": NumbaBackend("numba", "refsd.numba_ops.cpu", NUMBA_MEMORY, tunable=True),
    "numpy": Backend("numpy", "refsd.ops", NUMPY_MEMORY),
}
_logged: set[str] = set()  # backends that "auto" has passed over


def add_backend(backend: Backend, *, preferred: bool = False) -> None:
    """Make it known everywhere, to "auto" first if preferred; ImportError for another's name."""
    if backend.name == "auto" or BACKENDS.get(backend.name, backend) != backend:
        raise ImportError(f"a second backend {backend.name}; give it another name")
    others = {name: known for name, known in BACKENDS.items() if name != backend.name}
    BACKENDS.clear()
    for known in (backend, *others.values()) if preferred else (*others.values(), backend):
        BACKENDS[known.name] = known


def find_backend(name: str = "auto") -> Backend:
    """The backend of this name; "auto": the first that is available.

    UsageError if there is none, or it is not available here; ResourceError if that takes a device.
    """
    if name == "auto":
        return next(backend for backend in BACKENDS.values()
                    if backend.automatic() and _is_available(backend))
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is not one of: auto, {', '.join(BACKENDS)}; give one")
    if why := BACKENDS[name].unavailable():
        error = UsageError if BACKENDS[name].device == "cpu" else ResourceError
        raise error(f"backend {name!r} is not available here: {why}. Take another, or auto")
    return BACKENDS[name]


def _is_available(backend: Backend) -> bool:
    """If not, one line says so: "auto" takes a slower one."""
    why = backend.unavailable()
    if why and backend.name not in _logged:
        _logged.add(backend.name)
        logger.warning("backend %s is not available here: %s", backend.name, why)
    return not why


def available_backends() -> list[str]:
    """The names of those that something can be computed with here, the fastest first."""
    return [name for name, backend in BACKENDS.items() if not backend.unavailable()]


def choose_backend(name: str = "auto") -> str:
    """The name of what find_backend finds."""
    return find_backend(name).name
