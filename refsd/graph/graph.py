"""A graph of ops: plain data in single static assignment form.

A value is made once, by a node, or comes from outside: an input, a weight under its checkpoint's
path, or a constant. Values are numbered in the order in which they come up; nodes stand in an order
in which they can run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.registry import ops

KINDS = ("input", "weight", "constant", "result")


class Ref(NamedTuple):
    """Where a node reads a value: its number. What is no Ref is a number, a text, None."""

    number: int


class Value(NamedTuple):
    """An array's shape and dtype; its kind is one of KINDS.

    name: of an input its parameter's, of a weight its path in the checkpoint, of a constant its
    number, of a result the op's that makes it.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: str


class Node(NamedTuple):
    """A call of an op: inputs by its parameters (Refs, lists of them, plain values), options.

    An option that is an array, as attention's mask, is a Ref too. result is the number of the value
    that it makes, path the checkpoint's of its weights, or None.
    """

    op: str
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    result: int
    path: str | None = None

    @property
    def reads(self) -> tuple[int, ...]:
        """The numbers of the values that it reads, in order; one that is read twice stands twice.
        """
        return tuple(_reads([*self.inputs.values(), *self.options.values()]))


def _reads(inputs: Any) -> Iterator[int]:
    for value in inputs:
        if isinstance(value, Ref):
            yield value.number
        elif isinstance(value, (list, tuple)):
            yield from _reads(value)


@dataclass(frozen=True)
class Graph:
    """Values by number, nodes in their order, and what goes out.

    outputs: numbers; `single` says that the function gave an array and no tuple. held: the arrays
    and leaves of weights and constants that were there when it was traced, by number.
    """

    values: Mapping[int, Value]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    single: bool = True
    held: Mapping[int, Any] = field(default_factory=dict, repr=False)

    def numbers(self, kind: str) -> tuple[int, ...]:
        """The values of a kind: those of inputs in the order of the parameters."""
        return tuple(number for number, value in self.values.items() if value.kind == kind)

    def makers(self) -> dict[int, int]:
        """By a result's number, the index of the node that makes it."""
        return {node.result: i for i, node in enumerate(self.nodes)}

    def users(self) -> dict[int, list[int]]:
        """By a value's number the indices of the nodes that read it; an output's has len(nodes)."""
        found: dict[int, list[int]] = {number: [] for number in self.values}
        for i, node in enumerate(self.nodes):
            for number in dict.fromkeys(node.reads):
                found[number].append(i)
        for number in dict.fromkeys(self.outputs):
            found[number].append(len(self.nodes))
        return found

    def with_nodes(self, nodes: tuple[Node, ...]) -> "Graph":
        """Of other nodes; values that nothing makes or reads any more are gone."""
        there = {*self.outputs, *self.numbers("input")}
        for node in nodes:
            there |= {node.result, *node.reads}
        return replace(self, nodes=tuple(nodes),
                       values={n: value for n, value in self.values.items() if n in there},
                       held={n: array for n, array in self.held.items() if n in there})

    def check(self) -> "Graph":
        """Itself. UsageError where a node reads what is not made yet, or does not fit its contract.

        What each op gives is inferred anew from what it reads, and has to be the value it makes.
        """
        made = {n for n, value in self.values.items() if value.kind != "result"}
        for i, node in enumerate(self.nodes):
            for number in node.reads:
                _need(number in made, f"node {i}, {node.op}, reads %{number}, which is made later "
                                      "or never")
            _need(node.result not in made, f"node {i}, {node.op}, makes %{node.result} again")
            inferred = ops()[node.op].contract(
                *self.arguments(node, self.values.__getitem__),
                **self.options(node, self.values.__getitem__))
            value = self.values[node.result]
            _need((inferred.shape, inferred.dtype, value.kind)
                  == (value.shape, value.dtype, "result"),
                  f"node {i}, {node.op}, gives {inferred.dtype} {inferred.shape}, and %"
                  f"{node.result} is {value.dtype} {value.shape}")
            made.add(node.result)
        for number in self.outputs:
            _need(number in made, f"the output %{number} is never made")
        return self

    @staticmethod
    def arguments(node: Node, found: Callable[[int], Any]) -> list[Any]:
        """The inputs of a node's op, in order, with found(number) for each Ref."""
        return [_resolved(value, found) for value in node.inputs.values()]

    @staticmethod
    def options(node: Node, found: Callable[[int], Any]) -> dict[str, Any]:
        """The options of a node's op, with found(number) for each Ref."""
        return {name: found(value.number) if isinstance(value, Ref) else value
                for name, value in node.options.items()}

    def __str__(self) -> str:
        from refsd.graph.listing import listing

        return listing(self)


def _resolved(value: Any, found: Callable[[int], Any]) -> Any:
    if isinstance(value, Ref):
        return found(value.number)
    return [_resolved(one, found) for one in value] if isinstance(value, (list, tuple)) else value


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise UsageError(f"graph: {what}; see what changed it")


def spec_of(value: Value) -> Spec:
    """The Spec of a value."""
    return Spec(value.shape, value.dtype)
