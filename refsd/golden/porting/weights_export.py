"""A model's weights as plain files, part by part: any kind, any layout, float32 or half of it."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from refsd.errors import UsageError
from refsd.families import COMPONENTS
from refsd.golden.porting.export import Files, chosen
from refsd.half import HALVES
from refsd.weights.checkpoint import iter_leaves
from refsd.weights.plan import Plan, plan_whole
from refsd.weights.reader import nonfinite

DTYPES = ("float32", "float16", "bfloat16")

logger = logging.getLogger(__name__)


def export_weights(model: Path, folder: str | Path, kind: str, *, layout: str = "NCHW",
                   dtype: str = "float32", parts: Iterable[str] = COMPONENTS,
                   only: Iterable[str] = (), variant: str | None = None) -> Files:
    """Every tensor of a model's folder or file as "unet.conv_in.weight"; memory as export_pack.

    float16 and bfloat16 are rounded to nearest; what grows beyond it is logged.
    Raises UsageError for a part or a dtype there is none of, and as refsd.weights.load_checkpoint.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
    wrong = [part for part in parts if part not in COMPONENTS]
    if wrong:
        raise UsageError(f"--part {wrong[0]!r} is not one of: {', '.join(COMPONENTS)}; give one")
    plans = {part: plan for part, plan in plan_whole(model, variant=variant).items()
             if part in parts}
    names = [f"{part}.{name}" for part, plan in plans.items() for name in plan.shapes]
    wanted = set(chosen(names, only))
    with Files(folder, kind, layout=layout) as out:
        for part, plan in plans.items():
            for name, array in _tensors(part, plan, wanted):
                out.add(name, _rounded(name, array, dtype))
    return out


def _tensors(part: str, plan: Plan, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    for name in plan.shapes:
        if f"{part}.{name}" in wanted:
            for _, leaf in iter_leaves(part, plan, dtype="float32", names=[name]):
                yield f"{part}.{name}", leaf.dense()


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = array.astype(HALVES.get(dtype, dtype), copy=False)
    if not np.isfinite(rounded).all() and not nonfinite(array):
        logger.warning("%s: numbers beyond %s became infinite", name, dtype)
    return rounded
