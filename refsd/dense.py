"""Leaves (refsd.leaf) as the arrays that they stand for."""

import inspect
from typing import Any


def to_dense(value: Any) -> Any:
    """The dense array of a leaf, also in a list or a tuple; all else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(to_dense, value))
    dense = getattr(value, "dense", None)
    return value if dense is None else dense()


def dense_call(signature: inspect.Signature, args: tuple, options: dict) -> tuple[tuple, dict]:
    """The arguments of an op with dense arrays, and x as its weight `meets` it (W8A8)."""
    meet = getattr(options.get("weight", args[1] if len(args) > 1 else None), "meet", None)
    if meet is not None:
        bound = signature.bind(*args, **options)
        if {"x", "weight"} <= bound.arguments.keys():
            bound.arguments["x"] = meet(bound.arguments["x"])
        args, options = bound.args, bound.kwargs
    return tuple(map(to_dense, args)), {key: to_dense(options[key]) for key in options}


def here(value: Any) -> Any:
    """The leaf in memory of one that is away, also in a list or a tuple; all else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(here, value))
    fetch = getattr(value, "fetch", None)
    return value if fetch is None else fetch()
