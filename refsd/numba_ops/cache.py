"""Where compiled kernels are kept, and why it is safe to load them again.

Numba's own cache is keyed by less than what decides the machine code, lies where others may write,
and unpickles what it finds. Here the folder's name holds a hash of every source file of this
package, the versions, the vector width, how bfloat16 is multiplied and Numba's settings; the
folder belongs to this user alone; and a cache problem never breaks a run: it costs one warning and
a compilation.
"""

import hashlib
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import refsd.numba_ops.settings  # noqa: F401  before Numba

import llvmlite
import numba
from numba.core import caching

from refsd.numba_ops.amx import EMULATED
from refsd.numba_ops.folders import locked, not_kept, own_folder
from refsd.numba_ops.levels import BFLOAT16
from refsd.numba_ops.simd import WIDTH

# Numba's settings that change the machine code (the processor is in Numba's own keys).
SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT",
            "ENABLE_AVX", "ENABLE_PROFILING", "DISABLE_INTEL_SVML", "EXTEND_VARIABLE_LIFETIMES",
            "LLVM_REFPRUNE_PASS", "LLVM_REFPRUNE_FLAGS", "DEBUG_NRT", "NRT_STATS", "JIT_COVERAGE")
# Folders of other sources, versions or settings that stay: so many, and so many days unused.
OTHERS, DAYS = 4, 30


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: $REFSD_CACHE or ~/.cache/refsd; None if that is not safe.

    Loading a compiled kernel runs it, so nobody else may be able to write there.
    """
    folder = own_folder("kernels", _fingerprint())
    if folder is None:
        return None
    with suppress(OSError):  # another process tidies up too
        _remove_old(folder)
    return folder


def _fingerprint() -> str:
    """A hash of all that decides the machine code."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(str(path.relative_to(here)).encode() + b"\0" + path.read_bytes() + b"\0")
    settings = [f"{name}={getattr(numba.config, name, None)}" for name in SETTINGS]
    for part in (numba.__version__, llvmlite.__version__, platform.python_version(), WIDTH,
                 BFLOAT16, f"emulated tiles: {EMULATED}", *settings):
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:16]


def _remove_old(current: Path) -> None:
    """Keep the folders used last. A process that needs a removed one compiles into it again."""
    others = []
    for folder in current.parent.iterdir():
        if folder != current and re.fullmatch("[0-9a-f]{16}", folder.name):
            used = folder / ".used"
            others.append((used.stat().st_mtime if used.exists() else 0, folder))
    others.sort(reverse=True)
    oldest = time.time() - DAYS * 24 * 3600
    for age, (used, folder) in enumerate(others):
        if age >= OTHERS or used < oldest:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def exclusive(name: str, on_wait: Callable[[], None] | None = None, *,
              after: float = 0) -> Iterator[None]:
    """Within the block no other process is in a block of this name: see folders.locked."""
    with locked(cache_folder(), name, on_wait, after=after):
        yield


def cache_for(function, flags: tuple) -> caching._Cache:
    """The cache of one kernel; one that keeps nothing where there is no folder."""
    folder = cache_folder()
    if folder is None:
        return caching.NullCache()
    return _cache_class(folder / ("-".join(flags) or "strict"))(function)


@cache
def _cache_class(folder: Path) -> type:
    """Numba's cache of one function, kept in `folder` and immune to what it finds there."""

    class Locator(caching._CacheLocator):
        def __init__(self, function, file):
            self._name = f"{Path(file).parent.name}.{Path(file).stem}"

        def get_cache_path(self):
            return str(folder)

        def get_source_stamp(self):
            return 0  # the folder's name already holds a hash of the sources

        def get_disambiguator(self):
            return self._name

        @classmethod
        def from_function(cls, function, file):
            return cls(function, file)

    class Implementation(caching.CompileResultCacheImpl):
        _locator_classes = [Locator]

    class Cache(caching.FunctionCache):
        _impl_class = Implementation

        def load_overload(self, signature, context):
            try:
                return super().load_overload(signature, context)
            except Exception as problem:  # unpickling damaged bytes can raise anything
                shutil.rmtree(folder, ignore_errors=True)
                warnings.warn("the kernel cache was damaged and is made anew "
                              f"({type(problem).__name__}): {folder}", stacklevel=2)
                return None

        def save_overload(self, signature, data):
            try:
                with exclusive("saving"):  # else two processes may choose the same file name
                    super().save_overload(signature, data)
            except OSError as problem:
                self.disable()
                warnings.warn(not_kept(folder, problem), stacklevel=2)

    return Cache
