"""The arrays that callers hand to a pipeline: converted to its dtype, with the shapes it needs."""

from typing import Any

import numpy as np

from refsd.arguments import as_array
from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.places import on_host
from refsd.weights import flatten


def shaped(name: str, value: Any, wanted: tuple, dtype: Any) -> Any:
    """An array of `dtype` and the wanted shape; UsageError names the argument and both shapes.

    `wanted` holds sizes, and letters where any size of at least 1 will do: (1, "L", 768).
    """
    array = as_array(name, value, dtype)
    good = len(array.shape) == len(wanted) and all(
        (n >= 1 if isinstance(w, str) else n == w) for n, w in zip(array.shape, wanted))
    if not good:
        raise UsageError(f"{name} has shape {tuple(array.shape)}; give "
                         f"({', '.join(map(str, wanted))})")
    return array


def given(pipe: Any, name: str, value: Any, wanted: tuple) -> Any:
    """The same in a pipeline's dtype, where its backend computes; refused unless it is finite."""
    array = shaped(name, value, wanted, pipe.denoiser.dtype)
    if pipe.check_finite:
        require_finite(name, array)
    return BACKENDS[pipe.backend].put(array)


def not_finite(value: Any) -> str:
    """How many numbers of an array are NaN or infinite, and where the first is; "" for none."""
    bad = ~np.isfinite(np.asarray(on_host(value)))
    if not bad.any():
        return ""
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{int(bad.sum())} of {bad.size} numbers are NaN or infinite, the first at {where}"


def require_finite(name: str, value: Any) -> None:
    """UsageError for a caller's array that holds NaN or infinity, in the dtype of the pipeline."""
    if problem := not_finite(value):
        raise UsageError(f"{name}: {problem}; give finite numbers that {value.dtype} holds")


def text_width(tree: dict[str, Any]) -> int | str:
    """D of the text (N, L, D) that a UNet reads; "D" where it reads none."""
    widths = (leaf.shape[1] for name, leaf in flatten(tree).items()
              if name.endswith("attn2.to_k.weight"))
    return next(widths, "D")


def added_width(tree: dict[str, Any]) -> int | None:
    """How many numbers a sample the add_embedding of a UNet or a ControlNet reads, if it has one.
    """
    embedding = tree.get("add_embedding")
    return None if embedding is None else embedding["linear_1"]["weight"].shape[1]
