"""Tracing: a function of ops is called once with arrays that have no values, and its calls noted.

Ops answer with what their contracts infer (refsd.registry.trace), so that nothing is computed, no
weights are needed, and a network of any size takes milliseconds. What the function itself decides
by shapes and configs is decided as in that call.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.graph.graph import Graph, Node, Ref, Value
from refsd.leaf import layer_of
from refsd.registry import trace as tracing


class _Traced(Spec):
    """The Spec of a value in the graph that is being made: its number."""

    number: int


class _Tracer:
    """What has been seen so far."""

    def __init__(self) -> None:
        self.values: dict[int, Value] = {}
        self.nodes: list[Node] = []
        self.held: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}  # of weights and constants, by the object's identity
        self.objects: list[Any] = []  # which are alive as long as their identities count

    def new(self, kind: str, name: str, shape: Any, dtype: Any) -> _Traced:
        """A value that was not there before."""
        traced = _Traced(tuple(shape), str(dtype))
        traced.number = len(self.values)
        self.values[traced.number] = Value(kind, name or str(traced.number), *traced)
        return traced

    def inputs(self, name: str, value: Any) -> Any:
        """An argument, with an input in the place of each Spec."""
        if type(value) is Spec:
            return self.new("input", name, *value)
        if type(value) in (list, tuple):
            return type(value)(self.inputs(f"{name}[{i}]", one) for i, one in enumerate(value))
        return value

    def read(self, value: Any) -> Any:
        """What a node says of one of an op's inputs."""
        if isinstance(value, _Traced):
            return Ref(value.number)
        if isinstance(value, (list, tuple)) and not isinstance(value, Spec):
            return [self.read(one) for one in value]
        return Ref(self.outside(value)) if hasattr(value, "dtype") else value

    def outside(self, array: Any) -> int:
        """The number of a weight or a constant, the same for the same object."""
        number = self.numbers.get(id(array))
        if number is None:
            name = getattr(array, "name", None)
            number = self.new("weight" if name else "constant", name, array.shape,
                              array.dtype).number
            self.numbers[id(array)] = number
            self.objects.append(array)
            if not isinstance(array, Spec):
                self.held[number] = array
        return number

    def answer(self, op: str, inputs: dict[str, Any], options: dict[str, Any],
               inferred: Any) -> _Traced:
        """What registry.trace asks of each op."""
        read = {name: self.read(value) for name, value in inputs.items()}
        options = {name: self.read(value) if hasattr(value, "dtype") else value
                   for name, value in options.items()}
        result = self.new("result", op, inferred.shape, inferred.dtype)
        self.nodes.append(Node(op, read, options, result.number, layer_of(inputs)))
        return result


def trace(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Graph:
    """The graph of function(*arguments, **keywords).

    A Spec among the arguments, or in a list of them, is an input, named by its parameter. Leaves
    (refsd.leaf, or planning's WeightSpecs) are weights, other arrays constants. Of lists in what
    the function gives the graph gives the arrays, one after the other. Raises UsageError if these
    are no results of ops or inputs, and what the ops' contracts raise.
    """
    if isinstance(function, partial):  # a network's call, whose arguments are in it (`calls`)
        arguments, keywords = (*function.args, *arguments), {**function.keywords, **keywords}
        function = function.func
    tracer, call = _Tracer(), inspect.signature(function).bind(*arguments, **keywords)
    for name, value in call.arguments.items():
        rest = call.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        call.arguments[name] = ({key: tracer.inputs(key, one) for key, one in value.items()}
                                if rest else tracer.inputs(name, value))
    with tracing(tracer.answer):
        found = function(*call.args, **call.kwargs)
    outputs = list(_flat(found))
    for value in outputs:
        if not isinstance(value, _Traced):
            raise UsageError(f"trace: {_named(function)} gives a {type(value).__name__} beside "
                             "results of ops; give a function of arrays that returns arrays")
    return Graph(tracer.values, tuple(tracer.nodes), tuple(value.number for value in outputs),
                 isinstance(found, Spec), tracer.held)


def _flat(found: Any) -> Iterator[Any]:
    if isinstance(found, (list, tuple)) and not isinstance(found, Spec):
        for value in found:
            yield from _flat(value)
    else:
        yield found


def _named(function):
    return getattr(function, "__name__", "the function")
