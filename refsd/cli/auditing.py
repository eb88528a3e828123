"""--audit: how near each op comes to the ends of float16 and bfloat16, as a table."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refsd.cli.report import note, one_line, result

ROWS = 12


@contextmanager
def auditing(wanted: bool, *, show: bool, to_stdout: bool = True) -> Iterator[Any]:
    """The Audit of what is drawn inside, shown afterwards, also when drawing fails; or None."""
    if not wanted:
        yield None
        return
    from refsd.profiling.audit import Audit
    from refsd.registry import watch

    audit = Audit()
    try:
        with watch(audit):
            yield audit
    finally:
        if show and audit.rows:
            for line in lines(audit):
                (result if to_stdout else note)(line)


def lines(audit: Any) -> Iterator[str]:
    """The first overflow of each format, where most becomes 0, and the worst rows."""
    from refsd.profiling.audit import FORMATS, describe

    rows = audit.rows
    for name in FORMATS:
        worst = max(rows, key=lambda row: row.underflow(name))
        share = worst.underflow(name)
        yield one_line(describe(audit, name) + (
            f"; most becomes 0 in {worst.op} of {worst.layer or 'no layer'}, {share:.2%}"
            if share else "; nothing becomes 0"), 400)
    names = [one_line(f"{row.layer} {row.op}".strip(), 80) for row in rows[:ROWS]]
    width = max(24, *map(len, names)) + 1
    yield (f"{'headroom (below 1: overflow)':<{width}}{'largest in':>11}{'out':>10}"
           + "".join(f"{name:>10}{'to 0':>7}" for name in FORMATS))
    for name, row in zip(names, rows):
        yield (f"{name:<{width}}{row.inputs:>11.3g}{row.output:>10.3g}"
               + "".join(f"{row.headroom(form):>10.3g}{row.underflow(form):>7.1%}"
                         for form in FORMATS))
    if len(rows) > ROWS:
        yield f"... and {len(rows) - ROWS} more"


def plain(audit: Any) -> dict[str, Any]:
    """All of it as JSON can hold it: infinities are null."""
    from refsd.profiling.audit import FORMATS

    return {
        "first": {name: {**first._asdict(), "largest": _finite(first.largest),
                         "inputs": {key: _finite(value) for key, value in first.inputs.items()}}
                  for name, first in audit.first.items()},
        "rows": [{"layer": row.layer, "op": row.op, "calls": row.calls,
                  "inputs": _finite(row.inputs), "output": _finite(row.output),
                  "headroom": {name: _finite(row.headroom(name)) for name in FORMATS},
                  "underflow": {name: row.underflow(name) for name in FORMATS}}
                 for row in audit.rows],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
