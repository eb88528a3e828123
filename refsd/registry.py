"""Ops, their kernels on each backend, and the dispatch between them: the whole mechanism.

An *op* is a plain NumPy function that defines what is computed, with a *contract* declared on it
that checks a call and infers its result. A *kernel* is another function with the same name and
signature that computes the same on some backend. `dispatch` sends a call to the active backend.
Nothing is silent: no fallback, no copy, no cast.

An op of halves (bfloat16, float16) is the op of their float32 values, its result rounded once. That
is the whole definition: no op knows of it, and a kernel only if it reads halves itself.
"""

import functools
import importlib
import inspect
import numbers
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from refsd import contracts
from refsd.backends import BACKENDS, available_backends, find_backend
from refsd.dense import dense_call, here
from refsd.errors import UsageError
from refsd.kinds import Kind, Map, Pair
from refsd.places import misplaced


class Op(NamedTuple):
    """An op: its definition, the contract that guards it, and the signature all kernels share."""

    name: str
    definition: Callable
    contract: Callable
    signature: inspect.Signature
    kind: Kind | None
    examples: Sequence[tuple[tuple, dict[str, Any]]]

    @property
    def family(self) -> str:
        """The file of the definition: "norm" for refsd/ops/norm.py."""
        return self.definition.__module__.rpartition(".")[2]


_ops: dict[str, Op] = {}
_kernels: dict[tuple[str, str], Callable] = {}
_reads_leaves: set[Callable] = set()  # kernels that are given leaves as they are
_reads_halves: set[Callable] = set()  # and those that are given halves
_inferred: dict[tuple, Any] = {}  # what contracts inferred of calls that they accepted
INFER_CACHE_SIZE = 2**14
_PLAIN = frozenset((int, float, bool, str, tuple, list, type(None)))
_active: ContextVar[str] = ContextVar("refsd_backend", default="numpy")
_exact: ContextVar[bool] = ContextVar("refsd_exact", default=False)
_listener: ContextVar[Callable | None] = ContextVar("refsd_listener", default=None)
_tracer: ContextVar[Callable | None] = ContextVar("refsd_tracer", default=None)


def op(shapes: str, kind: Kind | None = None, /, *, examples: Sequence[tuple] = (),
       **declared: Any) -> Callable[[Callable], Callable]:
    """Declare a NumPy function as the definition of an op; it is returned unchanged.

    shapes and declared make its contract: see refsd.contracts.declare. kind and examples are what
    refsd.examples makes sample calls from. ImportError for a contract that does not fit the
    signature or the kind, or a name that an op elsewhere has.
    """

    def declare(definition: Callable) -> Callable:
        name, signature = definition.__name__, inspect.signature(definition)
        contract = contracts.declare(name, signature, shapes, **declared)
        _require_sample_calls(contract, kind, examples)
        _require_new(f"op {name}", definition, _kernels.get(("numpy", name)))
        _inferred.clear()  # by another contract
        _ops[name] = Op(name, definition, contract, signature, kind, examples)
        _kernels["numpy", name] = definition
        return definition

    return declare


def kernel(backend: str, *, reads_leaves: bool = False,
           reads_halves: bool = False) -> Callable[[Callable], Callable]:
    """Declare a function as the kernel of the op of its name on `backend`.

    One that reads leaves (refsd.leaf) is given weights in their own form, others the dense arrays.
    One that reads halves is given them and gives a result of their dtype, which may differ from the
    definition's inside its bound; around others `dispatch` widens and rounds.
    ImportError for a name that no op has, another signature, or a second kernel from elsewhere.
    """

    def declare(function: Callable) -> Callable:
        name = function.__name__
        if name not in _ops:
            raise ImportError(f"kernel {name} for {backend}: there is no op of that name")
        _require_same_signature(f"the {backend} kernel {name}", function, _ops[name].signature)
        _require_new(f"{backend} kernel {name}", function, _kernels.get((backend, name)))
        _kernels[backend, name] = function
        if reads_leaves:
            _reads_leaves.add(function)
        if reads_halves:
            _reads_halves.add(function)
        return function

    return declare


def _require_sample_calls(contract: contracts.Contract, kind: Kind | None,
                          examples: Sequence) -> None:
    """A map or a pair has one or two arrays, and an example where it has options."""
    count = {Map: 1, Pair: 2}.get(type(kind), len(contract.tensors))
    if len(contract.tensors) != count:
        raise ImportError(f"op {contract.name} is declared a {type(kind).__name__}, of {count} "
                          f"arrays, and has {len(contract.tensors)}")
    if kind is not None and contract.options and not examples:
        raise ImportError(f"op {contract.name} has options: state an example of a call")


def _require_same_signature(what: str, function: Callable, signature: inspect.Signature) -> None:
    if inspect.signature(function) != signature:
        raise ImportError(f"{what} has the signature {inspect.signature(function)}, "
                          f"its op has {signature}")


def _require_new(what: str, function: Callable, known: Callable | None) -> None:
    """Nothing is replaced, but by the same function declared again: a reload, a notebook's cell."""
    if known is not None and _home(known) != _home(function):
        raise ImportError(f"a second {what} in {'.'.join(_home(function))}: the first is in "
                          f"{'.'.join(_home(known))}. Give it another name")


def _home(function: Callable) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def ops() -> dict[str, Op]:
    """All declared ops by name."""
    importlib.import_module(BACKENDS["numpy"].module)
    return dict(_ops)


def kernels(name: str, *backends: str) -> dict[str, Callable]:
    """The functions that compute an op, by backend, all that are available; numpy's defines it."""
    available = backends or available_backends()
    for backend in available:
        importlib.import_module(BACKENDS[backend].module)
    return {backend: _kernels[backend, name] for backend in available
            if (backend, name) in _kernels}


def make_ready(backend: str, dtype: str) -> None:
    """Let a backend do what a generation in `dtype` needs once, such as compiling its kernels."""
    find_backend(backend).ready(dtype)


@contextmanager
def use(backend: str, *, exact: bool = False) -> Iterator[None]:
    """Send the ops called inside the `with` block to `backend`.

    With `exact` they only add up the products of their formula: no Winograd, no FFT. That holds for
    every `use` further inside too, whatever it says.
    """
    chosen = find_backend(backend)
    if not isinstance(exact, bool):
        raise UsageError(f"exact is {exact!r}; give True or False")
    importlib.import_module(chosen.module)
    token, exactness = _active.set(chosen.name), _exact.set(exact or _exact.get())
    try:
        yield
    finally:
        _active.reset(token)
        _exact.reset(exactness)


def active_backend() -> str:
    """The backend that ops are sent to here and now."""
    return _active.get()


def exact_wanted() -> bool:
    """Whether ops are to add up the products of their formula and nothing else."""
    return _exact.get()


@contextmanager
def watch(listener: Callable[..., None] | None, *, timed: bool = False) -> Iterator[None]:
    """Call `listener(op, inputs, options, output)` after every op inside the `with` block.

    `inputs` holds the arrays by parameter name, `options` the keywords, defaults included. A timed
    listener is also given when the kernel began and ended, in nanoseconds of time.perf_counter_ns.
    Listeners nest: for each op the inner one is called first, then the outer one; within None none.
    """
    outer = _listener.get()

    def both(*event):
        listener(*event if timed else event[:4])
        if outer is not None:
            outer(*event)

    token = _listener.set(listener and both)
    try:
        yield
    finally:
        _listener.reset(token)


def is_watched() -> bool:
    """Whether somebody is to hear of each op here and now: a listener, or who traces."""
    return _listener.get() is not None or _tracer.get() is not None


@contextmanager
def trace(answer: Callable[..., Any]) -> Iterator[None]:
    """Let `answer(op, inputs, options, inferred)` give the result of every op inside the block.

    Nothing is computed and no listener called. inferred is the contract's Output; inputs and
    options are as `watch` has them.
    """
    token = _tracer.set(answer)
    try:
        yield
    finally:
        _tracer.reset(token)


def dispatch(name: str, args: tuple, options: dict) -> Any:
    """Check a call against the op's contract, run it on the active backend, call the listener.

    A leaf, fetched if away, is its dense array, x as the leaf takes it; listeners get them as is.
    """
    backend, tracer = _active.get(), _tracer.get()
    for key, value in options.items():
        if type(value) not in _PLAIN and isinstance(value, numbers.Integral):
            options[key] = int(value)  # NumPy's overflow where shapes are multiplied
    inferred = _infer(name, args, options, backend if tracer is None else None)
    if tracer is not None:
        return tracer(name, *_named(_ops[name].signature, args, options), inferred)
    if (function := _kernels.get((backend, name))) is None:
        raise UsageError(f"{name} has no kernel on the backend {backend!r}; "
                         f"take one of: {', '.join(b for b, n in _kernels if n == name)}")
    arrays, values = [*map(here, args)], {key: here(options[key]) for key in options}
    widen = inferred.dtype in contracts.HALVES and function not in _reads_halves
    if widen or function not in _reads_leaves:
        arrays, values = dense_call(_ops[name].signature, arrays, values)
    if widen:
        from refsd.half import through_float32

        function = through_float32(function, inferred.dtype)
    if (listener := _listener.get()) is None:
        return function(*arrays, **values)
    begun = time.perf_counter_ns()
    output = function(*arrays, **values)
    BACKENDS[backend].wait()
    ended = time.perf_counter_ns()
    listener(name, *_named(_ops[name].signature, args, options), output, begun, ended)
    return output


def _infer(name: str, args: tuple, options: dict, backend: str | None) -> Any:
    """The contract's Output, cached: it depends on shapes, types and Python values only."""
    try:
        call = (name, backend, *map(_seen, args), *options, *map(_seen, options.values()))
        if (output := _inferred.get(call)) is not None:
            return output
    except TypeError:  # something that cannot be hashed, such as an array without dimensions
        call = None
    output = _ops[name].contract(*args, **options)
    for key, array in _ops[name].contract.floats(args, options).items() if backend else ():
        if hint := misplaced(array, BACKENDS[backend].device):
            raise UsageError(f"{name}: {key} {hint}")
    if call is not None:
        if len(_inferred) >= INFER_CACHE_SIZE:
            _inferred.clear()
        _inferred[call] = output
    return output


def _seen(value: Any) -> Any:
    """What a contract can see of an argument. 1, 1.0, True and NumPy's 1 are four things."""
    if isinstance(value, (list, tuple)):
        return type(value), *map(_seen, value)
    shape = getattr(value, "shape", ())
    return (type(value), shape, value.dtype) if shape else (type(value), value)


def _named(signature: inspect.Signature, args: tuple, options: dict) -> tuple[dict, dict]:
    bound = signature.bind(*args, **options)
    bound.apply_defaults()
    keywords = {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    inputs = {k: v for k, v in bound.arguments.items() if k not in keywords}
    return inputs, {k: v for k, v in bound.arguments.items() if k in keywords}


def dispatched(definition: Callable) -> Callable:
    """The public face of an op: same name, signature and docstring, sent to the active backend."""

    @functools.wraps(definition)
    def public(*args, **options):
        return dispatch(definition.__name__, args, options)

    return public
