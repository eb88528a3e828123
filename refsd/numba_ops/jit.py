"""The one decorator that compiles refsd's kernels, and the private cache of what it compiled.

Numba's own cache is keyed by less than what decides the machine code, lies where others may write,
and unpickles what it finds. Here the folder's name holds a hash of every source file of this
package, the versions, the vector width and the flags; the folder belongs to this user alone; and a
cache problem never breaks a run: it costs one warning and a compilation.
"""

import hashlib
import os
import platform
import shutil
import stat
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llvmlite
import numba
from numba.core import caching

from refsd.numba_ops.simd import WIDTH

# Never fastmath=True: it lets the compiler assume that there are no NaNs, and delete the checks.
FAST = ("contract", "reassoc", "arcp", "nsz")


def jit(function: Callable | None = None, *, parallel: bool = False, flags: tuple = ()) -> Callable:
    """Compile a kernel at its first call, or take it from the cache.

    `flags` may be a subset of FAST, where sums in another order are meant to be allowed. Arithmetic
    follows NumPy: a division by zero gives an infinity and no exception.
    """
    if function is None:
        return lambda function: jit(function, parallel=parallel, flags=flags)
    if not set(flags) <= set(FAST):
        raise ImportError(f"{function.__name__}: flags {flags} are not all of {FAST}")
    kernel = numba.njit(parallel=parallel, error_model="numpy", fastmath=set(flags))(function)
    folder = cache_folder()
    if folder is not None:
        kernel._cache = _cache_class(folder / f"{'-'.join(flags) or 'strict'}")(function)
    return kernel


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: $REFSD_CACHE or ~/.cache/refsd; None if that is not safe.

    Loading a compiled kernel runs it, so nobody else may be able to write there.
    """
    root = os.environ.get("REFSD_CACHE") or Path.home() / ".cache" / "refsd"
    folder = Path(root) / "kernels" / _fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for place in (folder, folder.parent):
            status = place.stat()
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(f"{place} belongs to another user or others may write there")
        (folder / ".writable").write_bytes(b"")
    except OSError as problem:
        _warn(f"compiled kernels are not kept ({problem})")
        return None
    return folder


def _fingerprint() -> str:
    """A hash of all that decides the machine code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    for part in (numba.__version__, llvmlite.__version__, platform.python_version(), WIDTH):
        digest.update(str(part).encode())
    return digest.hexdigest()[:16]


def _warn(message: str) -> None:
    warnings.warn(f"refsd: {message}. Kernels are compiled in every process", stacklevel=3)


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
                _warn(f"the kernel cache was damaged and is made anew ({type(problem).__name__})")
                return None

        def save_overload(self, signature, data):
            try:
                super().save_overload(signature, data)
            except OSError as problem:
                self.disable()
                _warn(f"a compiled kernel could not be kept ({problem.strerror})")

    return Cache
