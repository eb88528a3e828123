"""The one decorator that compiles refsd's kernels.

A kernel is compiled at its first call from Python, visibly, or taken from the cache (cache.py). Two
Python threads may call kernels at once: they run one after the other (threads.py). Of two processes
that need the same kernel one compiles it.
"""

import functools
import gc
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numba
from numba.core import event, types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import typeof_impl

from refsd.numba_ops.cache import cache_for, exclusive
from refsd.numba_ops.threads import layer, one_at_a_time

# Never fastmath=True: it lets the compiler assume that there are no NaNs, and delete the checks.
FAST = ("contract", "reassoc", "arcp", "nsz")
# What Numba is not to look for in parallel kernels, besides prange: it takes long to compile.
UNWANTED = ("comprehension", "reduction", "inplace_binop", "setitem", "stencil", "fusion")

PATIENCE = 10  # seconds of waiting for another process, after which we say so

logger = logging.getLogger("refsd.compiling")


def jit(function: Callable | None = None, *, parallel: bool = False, flags: tuple = ()) -> Callable:
    """Compile a kernel at its first call, or take it from the cache.

    `flags` may be a subset of FAST, where sums in another order are meant to be allowed. Arithmetic
    follows NumPy: a division by zero gives an infinity and no exception.
    """
    if function is None:
        return lambda function: jit(function, parallel=parallel, flags=flags)
    if not set(flags) <= set(FAST):
        raise ImportError(f"{function.__name__}: flags {flags} are not all of {FAST}")
    return Kernel(function, parallel, flags)


class Kernel:
    """A compiled function. Python calls `entry`, which the cache keeps; other kernels `inner`.

    `inner` has no bridge from Python: it becomes a part of whoever calls it.
    """

    def __init__(self, function: Callable, parallel: bool, flags: tuple):
        functools.update_wrapper(self, function)
        self.py_func, self.parallel, self.flags = function, parallel, flags

    def __call__(self, *arguments: Any) -> Any:
        plan = _plan.get()
        if plan is not None:
            plan[self, tuple(map(self.entry.typeof_pyval, arguments))] = None
            return None
        with one_at_a_time():
            return self.entry(*arguments)

    @cached_property
    def entry(self) -> Any:
        """What Python calls: lets other Python threads run meanwhile."""
        layer()
        how = dict.fromkeys(UNWANTED, False) if self.parallel else False
        entry = self._compiler(parallel=how, nogil=True)
        entry._cache = cache_for(self.py_func, self.flags)
        entry.compile = functools.partial(self._compile_once, entry.compile)
        _entries.add(entry)
        return entry

    def _compile_once(self, compile: Callable, kinds: Any) -> Any:
        """Load it, or compile it while other processes that want the same wait, to load it.

        No entry is compiled within another's compilation, so nobody waits with a lock in hand.
        """
        if not compilations.allowed:
            return compile(kinds)
        try:
            with compilations.forbidden():
                return compile(kinds)
        except _NotCompiled:
            pass
        key = f"{self.__module__} {self.__qualname__} {self.flags} {kinds}"
        lock = f"compiling-{zlib.crc32(key.encode()) % 64}"
        with exclusive(lock, self._say_waiting, after=PATIENCE):
            return compile(kinds)

    def _say_waiting(self) -> None:
        logging.getLogger(__name__).warning(
            "waiting for another process, which compiles the kernel %s", self.__name__)

    @cached_property
    def inner(self) -> Any:
        """What compiled code calls."""
        return self._compiler(no_cpython_wrapper=True)

    def _compiler(self, **options: Any) -> Any:
        return numba.njit(error_model="numpy", fastmath=set(self.flags), no_cfunc_wrapper=True,
                          **options)(self.py_func)


@typeof_impl.register(Kernel)
def _type_in_compiled_code(kernel, context):
    return types.Dispatcher(kernel.inner)


@contextmanager
def planned() -> Iterator[dict]:
    """Within the block kernels do not run: (kernel, types) of every call are collected instead.

    So the shapes of results are right, their numbers are not.
    """
    token = _plan.set({})
    try:
        yield _plan.get()
    finally:
        _plan.reset(token)


def missing(wanted: Iterable[tuple[Kernel, tuple]]) -> list[tuple[Kernel, tuple]]:
    """Take from the cache what is there of (kernel, types); gives the others."""
    found = []
    for kernel, kinds in wanted:
        try:
            with compilations.forbidden():
                kernel.entry.compile(kinds)
        except _NotCompiled:
            found.append((kernel, kinds))
    return found


class _NotCompiled(Exception):
    """A kernel is neither in memory nor in the cache."""


class _Compilations(event.Listener):
    """Counts the kernels that this process compiles, and tells the logger of each.

    `expected` is the count that there will be, where that is known.
    """

    def __init__(self):
        self.count = self.expected = self.depth = 0
        self.allowed = True

    @contextmanager
    def forbidden(self):
        """Within the block what would be compiled raises _NotCompiled."""
        with global_compiler_lock:
            self.allowed = False
            try:
                yield
            finally:
                self.allowed = True

    def on_start(self, happened):
        self.depth += 1
        if self.depth > 1 or happened.data["dispatcher"] not in _entries:
            return
        # Much of the time would go into looking for garbage among what the compiler needs.
        self.collecting = gc.isenabled()
        if not self.allowed:
            raise _NotCompiled
        gc.disable()
        self.count += 1
        if self.count <= self.expected:
            logger.info("compiling kernels, once: %d of %d", self.count, self.expected)
        else:
            logger.info("compiling kernels, once: %d", self.count)

    def on_end(self, happened):
        self.depth -= 1
        if self.depth == 0 and happened.data["dispatcher"] in _entries and self.collecting:
            gc.enable()


_plan: ContextVar[dict | None] = ContextVar("refsd_planned_kernels", default=None)
_entries: set = set()  # the dispatchers whose compilation is ours to show
compilations = _Compilations()
event.register("numba:compile", compilations)
