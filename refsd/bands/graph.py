"""The graph of a network, and the passes of bands through it."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from refsd import functional as F
from refsd.backends import Backend, find_backend
from refsd.bands.streams import Rows, Window, keeping, pieces, shared
from refsd.contracts import itemsize
from refsd.dense import here, to_dense
from refsd.errors import UsageError
from refsd.half import is_half, to_float32, to_half
from refsd.memory_models import BAND, KEPT
from refsd.ops.conv import pair, sides
from refsd.registry import active_backend

MAPS = ("silu", "add")


class Node:
    """The result of an op: (N, C, H, W) in bands, or of another shape, which is computed whole."""

    def __init__(self, op: str, inputs: dict[str, Any], options: dict[str, Any],
                 shape: tuple[int, ...], dtype: Any):
        self.op, self.inputs, self.options = op, inputs, options
        self.shape, self.dtype = shape, dtype
        self.sources = [value for value in inputs.values() if isinstance(value, Node)]
        self.nbytes = math.prod(shape) * itemsize(str(dtype))

    def in_bands(self) -> bool:
        """Whether its bands can be computed from those of its inputs."""
        if self.op == "upsample_nearest":  # by a power of two every index is exact
            H, ratio = self.inputs["x"].shape[2], self.options["height"]
            return ratio % H == 0 and (ratio // H).bit_count() == 1
        return self.op in ("conv2d", "group_norm", *MAPS) and all(
            len(source.shape) == 4 for source in self.sources)

    def rows(self) -> int:
        """The rows of a band, at least one."""
        return max(1, BAND * self.shape[2] // self.nbytes)


def rules_of(backend: Backend) -> ModuleType:
    """How a backend computes in bands of the same bits; UsageError if it cannot."""
    name = f"{backend.module}.bands"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    raise UsageError(f"backend {backend.name!r} has no exact tiling; take tiling off or blend")


class Graph:
    """The ops of a network in the order of its calls, and the bands that are kept of some."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.kept: dict[Node, deque] = {}
        self.normalise: dict[Node, Callable] = {}
        self.backend = find_backend(active_backend())
        self.rules = rules_of(self.backend)

    def source(self, x: Any) -> Node:
        """The node of an array."""
        node = Node("", {}, {}, x.shape, x.dtype)
        self.kept[node] = deque([x])
        return node

    def answer(self, op: str, inputs: dict[str, Any], options: dict[str, Any],
               inferred: Any) -> Node:
        """What registry.trace asks."""
        node = Node(op, inputs, options, inferred.shape, inferred.dtype)
        self.nodes.append(node)
        return node

    def compute(self, result: Node) -> Any:
        """The array of a node. Weights that are away are fetched once: each band needs them all."""
        for node in self.nodes:
            node.inputs = {name: here(value) for name, value in node.inputs.items()}
        goals = [node.sources if node.op == "group_norm" or not node.in_bands() else []
                 for node in self.nodes]
        goals.append([result])
        for i, node in enumerate(self.nodes):
            later = sum(goals[i:], [])
            if not node.in_bands():
                self.kept[node] = deque([self._whole(node, sum(goals[i + 1:], []))])
            elif node.op == "group_norm":
                self.normalise[node] = self._normaliser(node, later)
        return self._gather(result, [])

    def _whole(self, node: Node, later: list[Node]) -> Any:
        """The result of an op on its whole inputs, of which those that nobody needs are let go."""
        waiting = list(node.sources)  # of which each is gathered, and then not needed for this
        inputs = [self._gather(waiting.pop(0), [*later, *waiting]) if isinstance(value, Node)
                  else value for value in node.inputs.values()]
        needed = self._reach(later, self.kept)
        self.kept = {one: bands for one, bands in self.kept.items() if one in needed}
        return getattr(F, node.op)(*inputs, **node.options)

    def _gather(self, node: Node, later: list[Node]) -> Any:
        bands = list(self._pass(node, later) if len(node.shape) == 4 else self.kept[node])
        return bands[0] if len(bands) == 1 else F.concat(bands, axis=2)

    def _normaliser(self, node: Node, later: list[Node]) -> Callable[[Any], Any]:
        """What normalises a band of a group norm's input, from sums over all of it."""
        x, (weight, bias) = node.inputs["x"], map(to_dense, list(node.inputs.values())[1:])
        widen = is_half(x.dtype) and not self.rules.READS_HALVES

        def bands():
            return map(to_float32, self._pass(x, later)) if widen else self._pass(x, later)

        if widen:
            weight, bias = to_float32(weight), to_float32(bias)
        normalise = self.rules.group_norm(x.shape, weight, bias, bands=bands, **node.options)
        if widen:
            return lambda band: to_half(normalise(to_float32(band)), x.dtype)
        return normalise

    @staticmethod
    def _reach(goals: Iterable[Node], kept: Iterable[Node]) -> list[Node]:
        """What has to be there for these nodes, back to what is kept; the last of the model first.
        """
        found: dict[Node, None] = {}
        stack = list(goals)
        while stack:
            node = stack.pop()
            if node not in found:
                found[node] = None
                stack.extend(() if node in kept else node.sources)
        return list(found)

    def _pass(self, goal: Node, later: list[Node]) -> Iterator[Any]:
        """The bands of a node. What is not needed later is let go of as it is read."""
        nodes = self._reach([goal], self.kept)
        chosen, needed = self._choose(goal, nodes, later)
        users = dict.fromkeys(nodes, 0) | {goal: 1}
        for node in nodes:
            for source in node.sources if node not in self.kept else ():
                users[source] += 1
        found = {node: bands for node, bands in self.kept.items() if node in users}
        self.kept = {node: bands for node, bands in self.kept.items() if node in needed}
        if chosen is not None:
            self.kept[chosen] = deque()
        streams: dict[Node, list[Iterator]] = {}

        def stream(node):
            if node not in streams:
                bands = (pieces(found[node], node.rows(), node not in needed) if node in found
                         else self._bands(node, stream))
                bands = keeping(bands, self.kept[node]) if node is chosen else bands
                streams[node] = shared(bands, users[node])
            return streams[node].pop()

        return stream(goal)

    def _choose(self, goal: Node, nodes: list[Node], later: list[Node]
                ) -> tuple[Node | None, set[Node]]:
        """What this pass keeps, and what later ones then need.

        The goal, or else what is enlarged for it, if that fits beside all else that is needed.
        """
        enlarged = [node.inputs["x"] for node in nodes if node.op == "upsample_nearest"]
        for node in (goal, *enlarged):
            needed = set(self._reach(later, {*self.kept, node}))
            beside = sum(one.nbytes for one in self.kept if one in needed)
            if node in needed and node not in self.kept and beside + node.nbytes <= KEPT:
                return node, needed
        return None, set(self._reach(later, self.kept))

    def _bands(self, node: Node, stream: Callable[[Node], Iterator]) -> Iterator[Any]:
        """The bands of a node, of those of its inputs."""
        if node.op == "conv2d":
            return self._convolved(node, stream(node.inputs["x"]))
        if node.op == "group_norm":
            return map(self.normalise[node], stream(node.inputs["x"]))
        if node.op == "upsample_nearest":
            return _enlarged(node, stream(node.inputs["x"]))
        return _mapped(node, [stream(source) for source in node.sources])

    def _convolved(self, node: Node, bands: Iterator) -> Iterator[Any]:
        """Bands of a convolution, each of the rows of its input that it sees."""
        x, weight, bias = node.inputs.values()
        (N, C, H, _), (_, O, Ho, Wo) = x.shape, node.shape
        stride, dilation = pair(node.options["stride"]), pair(node.options["dilation"])
        (above, _), across = sides(node.options["padding"])
        reach, result = dilation[0] * (weight.shape[2] - 1) + 1, (N, Ho, Wo, O)
        options = {**node.options, "stride": stride, "dilation": dilation}
        del options["padding"], options["algorithm"]
        algorithm = self.backend.conv2d_choice(
            result, tuple(weight.shape), dtype=x.dtype, algorithm=node.options["algorithm"],
            **options).algorithm
        tall = self.rules.conv2d_rows(C, weight.shape, result, algorithm, itemsize(str(x.dtype)),
                                      min(node.rows(), max(1, x.rows() // stride[0])))
        if not tall:
            raise UsageError(f"exact tiling: {algorithm} has no bands of the same bits for a "
                             f"{weight.shape[2]} x {weight.shape[3]} kernel; take tiling off or "
                             "blend")
        window = Window(bands)
        for i in range(0, Ho, tall):
            n = min(tall, Ho - i)
            low, high = i * stride[0] - above, (i + n - 1) * stride[0] + reach - above
            following = max(0, (i + tall) * stride[0] - above)
            yield F.conv2d(window.see(max(low, 0), min(high, H), following), weight, bias,
                           padding=((max(-low, 0), max(high - H, 0)), across),
                           algorithm=algorithm, **options)


def _enlarged(node, bands):
    """Nearest neighbours: each row becomes `ratio` of them."""
    height, width = node.options["height"], node.options["width"]
    ratio, rows = height // node.inputs["x"].shape[2], Rows(bands)
    tall = max(1, node.rows() // ratio)
    for i in range(0, height // ratio, tall):
        band = rows.take(min(tall, height // ratio - i))
        yield F.upsample_nearest(band, height=ratio * band.shape[2], width=width)


def _mapped(node, streams):
    """Element by element, in the bands of the last input."""
    *others, last = streams
    rows = [Rows(stream) for stream in others]

    def apply(band):
        aligned = iter([*(each.take(band.shape[2]) for each in rows), band])
        return getattr(F, node.op)(*(next(aligned) if isinstance(value, Node) else value
                                     for value in node.inputs.values()), **node.options)

    return map(apply, last)  # which, unlike a generator, holds no band while it waits
