"""Weights: the leaves of a model's tree, which know their name and keep what is prepared of them.

A leaf never changes. To change a model, put another leaf, or a plain array, in the tree: nothing
that was prepared of the old one can be taken for the new one's, and it is freed with the old one.

NumPy's own flag is no promise that an array stays: whoever holds it, or what it is a view of, sets
the flag again, writes, and takes it back, and nothing tells. So a leaf's memory is sealed: it
belongs to an object that gives no writable buffer, and NumPy refuses `flags.writeable = True` for
the array and for all its views.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refsd.dense import to_dense


class _Seal:
    """Memory under NumPy's array interface, for reading only."""

    def __init__(self, array: np.ndarray):
        self._array = array
        self.__array_interface__ = {
            "data": (array.__array_interface__["data"][0], True), "shape": array.shape,
            "strides": array.strides, "typestr": array.dtype.str, "version": 3}


def seal(array: np.ndarray) -> np.ndarray:
    """The same memory, read-only for good. For who holds the only reference to it."""
    return np.asarray(_Seal(array)).view(array.dtype)  # the interface calls bfloat16 bytes


def _is_sealed(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, _Seal)


def is_multiplied(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the weight of a path is a matrix or a kernel, and no table that is looked up."""
    return len(shape) in (2, 4) and "embeddings" not in name.split(".")


class _Identity:
    """A key that is as old as its leaf: arrays, and so leaves, are == element by element."""

    __slots__ = ("__weakref__",)


class Weight(np.lib.mixins.NDArrayOperatorsMixin):
    """A tensor of a checkpoint: `name` is its path there, "unet.conv_in.weight".

    Ops take it wherever they take an array. `shape` and `dtype` are what contracts see, `dense()`
    the array that it stands for, which definitions compute with; `nbytes` is the memory of its own
    form. Another form (quantized, low-rank) is a subclass that overrides these. Everything else
    that an array has is that of `dense()`: w[0], w.T, w.copy(), w + 1, w == v, np.asarray(w). What
    others keep for a leaf is keyed weakly by its `identity`. The array is copied unless it is
    sealed.
    """

    __slots__ = ("__weakref__", "_array", "_prepared", "identity", "name")
    fetch: Callable[[], "Weight"] | None = None  # of one whose memory is elsewhere

    def __init__(self, array: Any, name: str | None = None):
        self._array = self._hold(to_dense(array))
        self._prepared: dict[str, tuple[tuple, Any]] = {}
        self.identity, self.name = _Identity(), name

    def _hold(self, array: Any) -> Any:
        """The memory of its own that an array is kept in."""
        return array.view() if _is_sealed(array) else seal(np.array(array))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def nbytes(self) -> int:
        """The bytes from its first element to its last, gaps between rows included."""
        steps = zip(self._array.shape, self._array.strides)
        return self._array.size and self._array.itemsize + sum((n - 1) * s for n, s in steps)

    def made(self, empty: Any = None) -> "Weight":
        """What it is held as: itself, where nothing is left to do (refsd.quantized.AsRead)."""
        return self

    def dense(self) -> np.ndarray:
        """The values, read-only."""
        return self._array.view()  # of which anybody can set the shape

    def prepared(self, use: str, key: tuple, make: Callable[[np.ndarray], Any]) -> Any:
        """make(dense array), an array or a list of them, kept for the last key of each use."""
        kept = self._prepared.get(use)
        if kept is None or kept[0] != key:
            kept = self._prepared[use] = key, make(self.dense())
        return kept[1]

    @property
    def prepared_bytes(self) -> int:
        """The memory of what is kept beside the weight's own."""
        kept = [made for _, made in [*self._prepared.values()]]
        arrays = [array for made in kept for array in (made if isinstance(made, list) else [made])]
        return sum(a.nbytes for a in arrays if not np.may_share_memory(a, self._array))

    def __getattr__(self, name: str) -> Any:
        # Not NumPy's protocols: they would tie an array's address to the leaf, not to the array.
        if name.startswith("__") or not hasattr(np.ndarray, name):
            raise AttributeError(f"a weight has no {name!r}")
        return getattr(self.dense(), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.dense(), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if "out" in options:
            options["out"] = tuple(map(to_dense, options["out"]))
        return getattr(ufunc, method)(*map(to_dense, inputs), **options)

    def __getitem__(self, key: Any) -> Any:
        return self.dense()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        raise ValueError(f"weight {self.name} is read-only: put a changed copy in its place")

    def __len__(self) -> int:
        return len(self._array)

    def __reduce__(self) -> tuple:
        return type(self), (self.dense(), self.name)

    def __copy__(self) -> "Weight":
        return self

    def __deepcopy__(self, _: dict) -> "Weight":
        return self

    def __repr__(self) -> str:
        return f"<weight {self.name} {self.dtype} {self.shape}>"


class Away(Weight):
    """A weight whose memory comes when it is asked for, and goes again: `source.fetch(leaf)`.

    What is fetched is a leaf of the same name, shape and dtype, of whatever form; `loaded_bytes` is
    about what it takes while it is there, `waiting_bytes` after it was read, before it is. Kernels
    are given it, listeners the one that is away.
    """

    __slots__ = ("_dtype", "_shape", "loaded_bytes", "source", "waiting_bytes")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype, loaded_bytes: int,
                 waiting_bytes: int, source: Any):
        self._prepared, self.identity, self.name = {}, _Identity(), name
        self.waiting_bytes = waiting_bytes
        self._shape, self._dtype, self.loaded_bytes = shape, np.dtype(dtype), loaded_bytes
        self.source = source

    def fetch(self) -> Weight:
        """The leaf that is in memory. ResourceError where it cannot be read."""
        return self.source.fetch(self)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype:
        return self._dtype

    @property
    def nbytes(self) -> int:
        """None of its own."""
        return 0

    def dense(self) -> np.ndarray:
        """The values, read-only: memory that is not kept here."""
        return self.fetch().dense()

    def __len__(self) -> int:
        return self._shape[0]

    def __reduce__(self) -> tuple:
        return self.fetch().__reduce__()


def layer_of(inputs: Mapping[str, Any]) -> str | None:
    """The layer whose weights are among an op's inputs, by its path: "unet.conv_in"; or None."""
    names = (getattr(value, "name", None) for value in inputs.values())
    return next((name.rpartition(".")[0] for name in names if name), None)
