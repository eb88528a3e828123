"""How many blocks of a kernel a multiprocessor holds, by registers and memory of the gate's table.

tests/cuda/gate.json is what the assembler says of every variant, held by tests/cuda/test_gate.py.
"""

import functools
import json
from typing import Any, NamedTuple

from benchmarks import ROOT

TABLE = ROOT / "tests" / "cuda" / "gate.json"


class Multiprocessor(NamedTuple):
    """What one has, by CUDA's programming guide: threads, blocks, bytes of shared memory."""

    threads: int
    blocks: int
    shared: int
    of_the_system: int  # bytes of shared memory that each block loses
    registers: int = 1 << 16


HARDWARE = {
    75: Multiprocessor(1024, 16, 64 << 10, 0), 80: Multiprocessor(2048, 32, 164 << 10, 1024),
    86: Multiprocessor(1536, 16, 100 << 10, 1024), 89: Multiprocessor(1536, 24, 100 << 10, 1024),
    90: Multiprocessor(2048, 32, 228 << 10, 1024)}


@functools.cache
def table() -> dict[str, Any]:
    """By variant and capability."""
    return json.loads(TABLE.read_text()) if TABLE.is_file() else {}


def assembled(kernel: str, capability: int) -> dict[str, Any] | None:
    """What the gate knows of a variant: registers, shared, instructions; None if nothing."""
    rows = table().get(kernel, {})
    return rows.get(f"{capability}a") or rows.get(str(capability))


def resident(kernel: str, threads: int, capability: int) -> tuple[int, str] | None:
    """Blocks on one multiprocessor at once, and what limits them."""
    about = assembled(kernel, capability)
    if about is None:
        return None
    has, warps = HARDWARE[capability], -(-threads // 32)
    # A warp's registers are given out by 256, so a thread's by 8.
    of_warp = -(-about["registers"] * 32 // 256) * 256
    limits = {"registers": has.registers // of_warp // warps, "threads": has.threads // threads,
              "blocks": has.blocks}
    if about["shared"]:
        limits["shared memory"] = has.shared // (about["shared"] + has.of_the_system)
    what = min(limits, key=lambda name: limits[name])
    return limits[what], what
