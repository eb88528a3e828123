"""A memory image: the arena of a planned run after one op, for whoever ports the plan.

FOLDER/arena.bin has its bytes, FOLDER/image.json says what lies in them: schema 1, which
docs/graph.md describes. It is checked to the last key before anything is made of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refsd import rules
from refsd.atomic import write_file
from refsd.contracts import BYTES
from refsd.errors import ModelError, UsageError
from refsd.graph.arena import plan_memory
from refsd.graph.graph import Graph
from refsd.graph.placing import Arena
from refsd.graph.running import arrays, last_uses
from refsd.half import HALVES
from refsd.registry import active_backend
from refsd.weights.files import parse_json, read_bytes, read_text

FORMAT, SCHEMA, MOST = "refsd.memory", 1, 16 << 20  # bytes of image.json
WHOLE = rules.integer(0, 2**53)
IMAGE = {"format": rules.only(FORMAT), "schema": rules.integer(SCHEMA, SCHEMA), "node": WHOLE,
         "op": rules.text(100), "path": rules.optional(rules.text(1000)), "bytes": WHOLE,
         "sha256": rules.text(64), "values": rules.each(rules.anything)}
LIVE = {"number": WHOLE, "name": rules.text(1000), "offset": WHOLE,
        "shape": rules.each(WHOLE, most=32), "strides": rules.each(WHOLE, most=32),
        "dtype": rules.only(*BYTES)}


class Live(NamedTuple):
    """A value in the arena: from byte `offset` on, its axes `strides` bytes apart."""

    number: int
    name: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class MemoryImage:
    """The arena when node `node` is done, and what it reads is still there: 1-D uint8."""

    node: int
    op: str
    path: str | None
    memory: np.ndarray
    values: tuple[Live, ...]

    def value(self, number: int) -> np.ndarray:
        """A live value by its number in the graph, a view of the arena."""
        for live in self.values:
            if live.number == number:
                dtype = np.dtype(HALVES.get(live.dtype, live.dtype))
                return np.ndarray(live.shape, dtype, self.memory, live.offset, live.strides)
        there = ", ".join(f"%{live.number}" for live in self.values)
        raise UsageError(f"memory image: %{number} is not in it; there are {there}; give one of "
                         "these")


def memory_image(graph: Graph, *inputs: Any, at: int,
                 weights: Mapping[str, Any] | None = None) -> MemoryImage:
    """Of a run of the graph as run(graph, *inputs, weights=weights), after node `at` (an index).

    UsageError for another index, and for a backend that cannot be told where results lie.
    """
    if not 0 <= at < len(graph.nodes):
        raise UsageError(f"memory image: at is {at}, and the graph has the nodes 0 to "
                         f"{len(graph.nodes) - 1}; give one of these")
    arena = Arena(graph, plan_memory(graph, active_backend()))
    found, last = arrays(graph, inputs, weights), last_uses(graph)
    with arena.running(graph) as call:
        if arena.memory is None:
            raise UsageError(f"memory image: {active_backend()} places results itself; use numba")
        arena.memory[:] = 0  # so that what nobody wrote is the same in every image
        for i, node in enumerate(graph.nodes[:at + 1]):
            arguments = tuple(graph.arguments(node, found.__getitem__))
            found[node.result] = call(i, node, arguments, graph.options(node, found.__getitem__))
            del arguments
            for number in last.get(i, ()) if i < at else ():
                del found[number]
        values = [_live(graph, arena, number, found[number]) for number in sorted(found)
                  if graph.values[number].kind == "result"]
        return MemoryImage(at, node.op, node.path, arena.memory.copy(),
                           tuple(live for live in values if live is not None))


def _live(graph: Graph, arena: Arena, number: int, array: np.ndarray) -> Live | None:
    offset = array.__array_interface__["data"][0] - arena.address()
    if not 0 <= offset < arena.memory.size or array.size == 0:
        return None  # it goes out, or is a copy elsewhere
    _, name, shape, dtype = graph.values[number]
    return Live(number, name, offset, shape, array.strides, dtype)


def write_image(folder: Any, image: MemoryImage) -> None:
    """arena.bin, then image.json, which says that it is whole. The folder is made."""
    folder, data = Path(folder), image.memory.tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "arena.bin", [data])
    shown = {"format": FORMAT, "schema": SCHEMA, "node": image.node, "op": image.op,
             "path": image.path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
             "values": [live._asdict() for live in image.values]}
    write_file(folder / "image.json", [f"{json.dumps(shown, indent=1)}\n".encode()])


def read_image(folder: Any) -> MemoryImage:
    """The image that write_image wrote. ModelError for whatever else."""
    where, place = Path(folder) / "image.json", Path(folder) / "arena.bin"
    found = parse_json(read_text(where, limit=MOST), where)
    rules.check(found, IMAGE, where)
    data = read_bytes(place, limit=found["bytes"])
    if len(data) != found["bytes"] or hashlib.sha256(data).hexdigest() != found["sha256"]:
        raise ModelError(f"{place}: {len(data)} bytes, which are not the {found['bytes']} that "
                         "image.json describes; write both anew")
    values = {}
    for i, row in enumerate(found["values"]):
        at = f"{where}: values[{i}]"
        rules.check(row, LIVE, at)
        live = Live(**{**row, "shape": tuple(row["shape"]), "strides": tuple(row["strides"])})
        if live.number in values:
            raise ModelError(f"{at}: a second %{live.number}; give each value once")
        if len(live.strides) != len(live.shape) or 0 in live.shape:
            raise ModelError(f"{at}: shape {live.shape} with strides {live.strides}; give each "
                             "axis, of 1 or more, a stride")
        stop = live.offset + BYTES[live.dtype] + sum(
            (n - 1) * stride for n, stride in zip(live.shape, live.strides))
        if stop > len(data):
            raise ModelError(f"{at}: ends at byte {stop} of {len(data)}; write it anew")
        values[live.number] = live
    memory = np.frombuffer(data, np.uint8)
    return MemoryImage(found["node"], found["op"], found["path"], memory, tuple(values.values()))
