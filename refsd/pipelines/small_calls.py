"""What the networks of all families compute, as calls of a few numbers each: to warm a backend up.

A backend that compiles does it for types, never for sizes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refsd.families import FAMILIES, WRITING
from refsd.half import HALVES
from refsd.models.vae import sample_posterior
from refsd.pipelines.planned import calls, planned_networks
from refsd.planning import VIEWS, Asked, Planned, planning

MOST = 64  # numbers along an axis
SMALL = Asked(pictures=1, copies=2, height=8, width=8, downscale=8)


def small_calls(backend: str, dtype: str) -> Iterator[tuple[str, tuple, dict]]:
    """(op, inputs, options) as they come in a drawing, or a text, of each family; none twice."""
    seen = set()
    for planned in _ops(backend, dtype):
        if planned.op in VIEWS:
            continue
        heads = planned.options.get("heads")  # they stay, and so does what they divide
        kept = () if heads is None else (heads, planned.inputs["q"].shape[-1])
        inputs, options = _small(planned.inputs, kept), _small(planned.options, kept)
        if (key := repr((planned.op, inputs, options))) not in seen:
            seen.add(key)
            yield planned.op, tuple(map(_zeros, inputs.values())), {
                name: _zeros(value) for name, value in options.items()}


def _ops(backend: str, dtype: str) -> Iterator[Planned]:
    """Of all families' networks; in halves also of VAEs in float32, as some have to be."""
    for family in (*FAMILIES, *WRITING):
        asked = SMALL if family in FAMILIES else None
        networks = planned_networks(family.configs, backend=backend, dtype=dtype)
        more = {"vae": family.configs["vae"]} if asked and dtype in HALVES else {}
        for found in (networks, planned_networks(more, backend=backend)):
            for name, (_, plan, result) in calls(found, asked).items():
                yield from plan
                if name == "encode":
                    with planning() as latents:
                        sample_posterior(*result, result[0])
                    yield from latents


class _Shape(tuple):
    """The shape and the dtype of an array."""


def _small(value: Any, kept: tuple) -> Any:
    """With each array's shape, no longer than MOST along an axis that is not kept, in its place."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _Shape((tuple(n if n in kept else min(n, MOST) for n in value.shape),
                       str(value.dtype)))
    if isinstance(value, Mapping):
        return {name: _small(one, kept) for name, one in value.items()}
    return [_small(one, kept) for one in value] if type(value) in (list, tuple) else value


def _zeros(value: Any) -> Any:
    if isinstance(value, _Shape):
        shape, dtype = value
        return np.zeros(shape, HALVES.get(dtype, dtype))
    return [_zeros(one) for one in value] if type(value) in (list, tuple) else value
