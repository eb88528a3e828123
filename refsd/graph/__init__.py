"""Networks as graphs of ops: traced once from the functions of refsd.models, looked at, run again.

    >>> from refsd import F
    >>> from refsd.contracts import Spec
    >>> from refsd.graph import trace
    >>> print(trace(lambda x: F.add(F.silu(x), x), Spec((2, 3), "float32")))
    %0 = input x                              (2, 3) float32
    %1 = silu(%0)                             (2, 3) float32
    %2 = add(%1, %0)                          (2, 3) float32
    return %2
"""

from refsd.graph.arena import MemoryPlan, plan_memory
from refsd.graph.dot import dot
from refsd.graph.graph import Graph, Node, Ref, Value
from refsd.graph.image import MemoryImage, memory_image, read_image, write_image
from refsd.graph.json import from_json, read, to_json
from refsd.graph.placing import Arena
from refsd.graph.running import run
from refsd.graph.tracing import trace

__all__ = ["Arena", "Graph", "MemoryImage", "MemoryPlan", "Node", "Ref", "Value", "dot",
           "from_json", "memory_image", "plan_memory", "read", "read_image", "run", "to_json",
           "trace", "write_image"]
