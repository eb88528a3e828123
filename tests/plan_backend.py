"""A backend without numbers: every op answers with the shape and dtype that its contract foretells.

With it a model of any size runs on `Spec`s in milliseconds and without weights.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import refsd
from refsd import registry
from refsd.contracts import Output, Spec


class Planned(NamedTuple):
    """One op that would run."""

    op: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    output: Output


def _kernel(op, plan):
    def kernel(*args, **options):
        foretold = op.contract(*args, **options)
        bound = op.signature.bind(*args, **options)
        bound.apply_defaults()
        keywords = {p.name for p in op.signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
        plan.append(Planned(op.name, {k: v for k, v in bound.arguments.items()
                                      if k not in keywords},
                            {k: v for k, v in bound.arguments.items() if k in keywords}, foretold))
        return Spec(foretold.shape, foretold.dtype)

    return kernel


@contextmanager
def planning():
    """Inside the block ops are planned instead of computed; yields the list they are added to."""
    plan = []
    kernels = {("plan", name): _kernel(op, plan) for name, op in registry.ops().items()}
    with mock.patch.dict(registry.BACKENDS, {"plan": "refsd.ops"}), \
            mock.patch.dict(registry._kernels, kernels), refsd.use("plan"):
        yield plan
