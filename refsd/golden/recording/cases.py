"""A handful of calls of every op, with inputs that are hard in some way: the pack of ops.

Inputs come from Philox4x64-10 (Salmon et al. 2011), keyed by the SHA-256 of OP/CASE:PARAMETER, so
that anyone can make them again: `numbers` says how. They are stored all the same.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd import parallel
from refsd.golden.packs.manifest import Manifest, read_manifest
from refsd.golden.packs.writer import MANIFEST, Writer
from refsd.golden.recording.case_table import rows
from refsd.golden.recording.replay import compute
from refsd.golden.recording.request import TRUTH
from refsd.registry import ops

GENERATOR = ("Philox4x64-10, counter from 0, key: the first 16 bytes of the SHA-256 of "
             "OP/CASE:PARAMETER as a little-endian number; plain: (the sum of a word's four 16-bit "
             "fields - 131070) / 32768")
MAX_EXPONENT = 16
TITLE = "The ops of refsd, one by one, on inputs that are hard"


class Case(NamedTuple):
    """One call of an op."""

    op: str
    name: str
    inputs: dict[str, Any]
    options: dict[str, Any]


def families() -> list[str]:
    """The files of refsd/ops that define ops."""
    return sorted({declared.family for declared in _own()})


def _own():
    """The ops of refsd itself, in the order of their names."""
    return [declared for _, declared in sorted(ops().items())
            if declared.definition.__module__.startswith("refsd.")]


def cases(op: str | None = None, family: str | None = None) -> Iterator[Case]:
    """Every case of an op, of a family, or of all ops in the order of their names."""
    for declared in _own():
        if op not in (None, declared.name) or family not in (None, declared.family):
            continue
        for case, inputs, options in rows(declared):
            where = f"{declared.name}/{case}"
            yield Case(declared.name, case, {key: _made(f"{where}:{key}", value)
                                             for key, value in inputs.items()}, options)


def _made(where, value):
    if isinstance(value, list):
        return [_made(f"{where}.{i}", item) for i, item in enumerate(value)]
    return numbers(where, *value) if isinstance(value, tuple) else value


def numbers(where: str, shape: tuple[int, ...], kind: str = "plain",
            scale: float = 1.0) -> np.ndarray:
    """The numbers of a parameter, `scale` (a power of two) times those of its kind.   -> float32

    plain: between -4 and 4, standard deviation 2 / sqrt(3). zeros: plain, 0 where the next word is
    a multiple of 3. wide: plain times 2^(next word mod 33 - 16). big: 1024 + plain / 64. border:
    plain on the edge of the last two axes, else 0. positive: |plain| + 2^-10. below_N: next word
    mod N, as int64.
    """
    count = int(np.prod(shape))
    key = int.from_bytes(hashlib.sha256(where.encode()).digest()[:16], "little")
    both = 2 if kind in ("zeros", "wide") or kind.startswith("below_") else 1
    words = np.random.Philox(key=key).random_raw(both * count).reshape(both, *shape)
    plain = np.zeros(shape, np.int64)
    for i in range(4):  # a field at a time: these may be large
        plain += ((words[0] >> np.uint64(16 * i)) & np.uint64(0xFFFF)).view(np.int64)
    plain = (plain - 131070) / 32768
    if kind.startswith("below_"):
        return (words[1] % np.uint64(kind.removeprefix("below_"))).astype(np.int64)
    if kind == "zeros":
        plain = np.where(words[1] % np.uint64(3) == 0, 0.0, plain)
    elif kind == "wide":
        exponents = (words[1] % np.uint64(2 * MAX_EXPONENT + 1)).astype(np.int64) - MAX_EXPONENT
        plain = np.ldexp(plain, exponents.astype(np.int32))
    elif kind == "big":
        plain = 1024 + plain / 64
    elif kind == "border":
        plain[..., 1:-1, 1:-1] = 0.0
    elif kind == "positive":
        plain = np.abs(plain) + 2.0**-10
    return (plain * scale).astype(np.float32)


def make_ops(folder: str | Path, *, op: str | None = None, family: str | None = None,
             resume: bool = False, tolerance: Callable | None = None) -> Manifest:
    """Record all cases, or those of one op or of one family, as a pack of the kind "ops".

    tolerance(op, inputs, options, truth) gives what goes into an entry's `tolerance`.
    """
    about = {"generator": GENERATOR, "op": op, **TRUTH}
    if family is not None:
        about["family"] = family
    with parallel.limited(1), Writer(folder, recipe=about, model={}, kind="ops", resume=resume,
                                     title=TITLE) as writer:
        for case in cases(op, family):
            add_case(writer, case, tolerance)
    return read_manifest((Path(folder) / MANIFEST).read_bytes())


def add_case(writer: Any, case: Case, tolerance: Callable | None, note: str = "") -> None:
    """Write a case's inputs and its result."""
    name = f"ops/{case.op}/{case.name}"
    references = {key: _stored(writer, f"{name}:{key}", value)
                  for key, value in case.inputs.items()}
    truth = compute(name, case.op, case.inputs, case.options)
    bounds = {} if tolerance is None else tolerance(case.op, case.inputs, case.options, truth)
    writer.add(name, truth, op=case.op, stage="ops", options=case.options, inputs=references,
               tolerance=bounds, note=note)


def _stored(writer, name, value):
    if isinstance(value, list):
        return [_stored(writer, f"{name}.{i}", item) for i, item in enumerate(value)]
    if not isinstance(value, np.ndarray):
        return value
    writer.add(name, value, stage="ops", note="an input")
    return f"tensor:{name}"
