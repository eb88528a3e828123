"""Whether a memory plan holds: its graph is walked through with bytes that have an owner.

Nothing that the plan says of lifetimes is believed. What a node reads, through however many views,
must be there as it was made, whole, when the node runs, and no byte of what it writes, its result
or what it works in, may be one that it reads.
"""

from typing import TYPE_CHECKING

from refsd.contracts import array_bytes
from refsd.errors import UsageError
from refsd.graph.graph import Graph, Node
from refsd.planning import VIEWS

if TYPE_CHECKING:
    from refsd.graph.arena import MemoryPlan, Place

ALIGNED = 64  # bytes of a line of the cache, and of the widest vector: where places begin


def check(plan: "MemoryPlan", graph: Graph) -> None:
    """UsageError for the first node at which the plan fails."""
    written: dict[int, Place] = {}  # by number what is in the arena, whole
    seen: dict[int, int] = {}  # by a view's number whose memory it is in
    results = {node.result for node in graph.nodes}
    for i, node in enumerate(graph.nodes):
        where = f"node {i}, {node.op}"
        reads = {seen.get(number, number) for number in node.reads}
        for number in reads & results - plan.outside.keys():
            _need(number in written, f"{where}, reads %{number}, which is overwritten by then")
        if node.op in VIEWS:
            first = node.reads[0]
            seen[node.result] = seen.get(first, first)
            _need(node.result not in plan.results and i not in plan.work,
                  f"{where}, gives a view, %{node.result}, which has no place of its own")
            continue
        writes = _writes(plan, graph, node, i, where)
        for place in writes:
            for number in reads & written.keys():
                _need(not _share(place, written[number]),
                      f"{where}, would write over %{number}, which it reads")
            for number in [n for n, other in written.items() if _share(place, other)]:
                del written[number]
        if node.result in plan.results:
            written[node.result] = plan.results[node.result]
    for number in graph.outputs:
        number = seen.get(number, number)
        _need(number not in results or number in plan.outside,
              f"%{number} goes out, and lies in the arena, where the next call overwrites it")
    for number in {*plan.results, *plan.outside} - results:
        _need(False, f"%{number} has a place, and no node makes it")


def _writes(plan: "MemoryPlan", graph: Graph, node: Node, i: int, where: str) -> "list[Place]":
    """The places that a node writes to, in the arena, aligned, as large as they must be, apart."""
    size = array_bytes(graph.values[node.result])
    found = [places[key] for places, key in ((plan.results, node.result), (plan.work, i))
             if key in places]
    if node.result in plan.outside:
        _need(node.result not in plan.results, f"{where}, gives %{node.result} in two places")
    else:
        _need(node.result in plan.results, f"{where}, gives %{node.result}, which has no place")
        _need(found[0].size == size, f"{where}, gives {size} bytes, and %{node.result} has room "
                                     f"for {found[0].size}")
    for place in found:
        _need(place.offset % ALIGNED == 0, f"{where}, writes from byte {place.offset} on, which is "
                                           f"no multiple of {ALIGNED}")
        _need(place.offset >= 0 and place.stop <= plan.arena,
              f"{where}, writes outside of the arena of {plan.arena} bytes")
    _need(len(found) < 2 or not _share(*found), f"{where}, works in bytes of its own result")
    return found


def _share(a: "Place", b: "Place") -> bool:
    return a.offset < b.stop and b.offset < a.stop


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise UsageError(f"memory plan: {what}; make it of this graph by plan_memory(graph)")
