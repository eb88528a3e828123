"""Contracts: what an op takes, gives, costs and refuses, declared as data beside its definition.

    @op("x (... K), weight (out K), bias (out) -> (... out)", flops="2 * size * K")

Shapes are written in letters; the same letter is the same size everywhere, `...` any number of
axes. From the declaration come validation and its messages, the result's shape and dtype without
computing it, the cost, and what `refsd export contracts` writes. A contract reads only `.shape` and
`.dtype`, so a `Spec` can stand in for an array and a model can be planned without weights.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from refsd.errors import UsageError
from refsd.options import Option, is_number
from refsd.shapes import Refusal, Tensor, bind, names, read, sizes_of, value

HALVES = ("bfloat16", "float16")
FLOATS = (*HALVES, "float32", "float64")
INTEGERS = {f"{kind}{8 * size}": size for kind in ("int", "uint") for size in (1, 2, 4, 8)}
BYTES = {  # an element, by the dtype's name
    "bool": 1, **INTEGERS, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 1),
    "complex64": 8, "complex128": 16}


class Spec(NamedTuple):
    """The shape and dtype of an array that need not exist."""

    shape: tuple[int, ...]
    dtype: str


class Output(NamedTuple):
    """What an op will give: shape, dtype, and its cost in FLOPs (multiply and add count as two).

    `bytes` is the least traffic possible: every input read once and the output written once.
    """

    shape: tuple[int, ...]
    dtype: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Contract:
    """An op's declaration. Called with the op's arguments it gives an Output, or raises Refusal.

    tensors come in the order of the parameters; `result` is in letters too. rules: expressions that
    must hold -> the sentence that says they do not. flops: an expression; `reads`: the tensors that
    are read whole, "result" for as much as is written. In expressions a letter is a size, the name
    of a tensor its shape, that of an option its value, `size` the number of results. infer(
    arguments) gives sizes that letters cannot say, or raises Refusal (see `need`).
    """

    name: str
    signature: inspect.Signature
    tensors: tuple[Tensor, ...]
    result: tuple[str, ...]
    options: Mapping[str, Option]
    rules: Mapping[str, str]
    flops: str
    reads: tuple[str, ...] | None
    infer: Callable[..., dict[str, Any]] | None

    @property
    def __signature__(self) -> inspect.Signature:
        return self.signature

    def __call__(self, *args: Any, **options: Any) -> Output:
        arguments = self._bind(args, options)
        arrays = self._arrays(arguments)
        dtype = self._dtype(arrays)
        # A list stands for its first array: others differ along one axis, which infer looks at.
        sizes = {name.removesuffix("[0]"): tuple(array.shape) for name, array in arrays.items()}
        self._check_options(arguments, sizes)
        self._match(arrays, sizes)
        for rule, sentence in self.rules.items():
            if not value(rule, sizes):
                raise Refusal(self.name, sentence.format(**sizes), ("rule", rule))
        if self.infer is not None:
            sizes |= self.infer(**arguments)

        shape = sizes_of(self.result, sizes)
        sizes["size"] = math.prod(shape)
        dtype = str(arguments.get("dtype", dtype))
        all_of = {**arrays, "result": Spec(shape, dtype)}
        touched = (*(arrays if self.reads is None else self.reads), "result")
        return Output(shape, dtype, int(value(self.flops, sizes)), sum(
            array_bytes(all_of[name]) for name in touched))

    def floats(self, args: tuple, options: dict[str, Any]) -> dict[str, Any]:
        """The arrays of a call that may hold nothing but floats, by name."""
        arrays = self._arrays(self._bind(args, options))
        return {name: arrays[name] for name in arrays if self.tensor(name).kind == "float"}

    def _bind(self, args, options) -> dict[str, Any]:
        try:
            bound = self.signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{self.name}() {error}") from None
        bound.apply_defaults()
        return bound.arguments

    def _arrays(self, arguments) -> dict[str, Any]:
        """The arrays of a call by name, "arrays[0]" those of a list; None and numbers left out."""
        arrays = {}
        for tensor in self.tensors:
            array, name = arguments[tensor.name], tensor.name
            if array is None and self.signature.parameters[name].default is None:
                continue
            if tensor.form == "list":
                if not isinstance(array, (list, tuple)) or not array:
                    raise Refusal(self.name, f"{name} is no list of one array or more",
                                  ("list", name))
                arrays |= {f"{name}[{i}]": item for i, item in enumerate(array)}
            elif not (tensor.form == "number" and is_number(array)):
                arrays[name] = array
        for name, array in arrays.items():
            if not hasattr(array, "shape") or not hasattr(array, "dtype"):
                raise Refusal(self.name, f"{name} has type {type(array).__name__}, wanted an array",
                              ("array", name.partition("[")[0]))
            if hasattr(array, "filled") or hasattr(array, "getA1"):  # masked, or a matrix
                raise Refusal(self.name, f"{name} is a {type(array).__name__}, wanted a plain array"
                              ": np.asarray drops what is more", ("plain", name.partition("[")[0]))
        scalars = [t.name for t in self.tensors if t.form == "number" and t.name not in arrays]
        return arrays | {name: Spec((), str(next(iter(arrays.values())).dtype)) for name in scalars}

    def _dtype(self, arrays) -> str:
        """The common dtype of all floats among the arrays."""
        floats = {}
        for name, array in arrays.items():
            dtype, kind = str(array.dtype), self.tensor(name).kind
            if kind == "float":
                floats[name] = dtype
            takes = {"float": dtype in FLOATS, "int": dtype in INTEGERS,
                      "real": dtype in INTEGERS or "float" in dtype}
            if not takes[kind]:
                floats = f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}: convert it first"
                sentences = {"float": floats, "int": "integers", "real": "integers or floats"}
                raise Refusal(self.name, f"{name} has dtype {dtype}, wanted {sentences[kind]}",
                              ("dtype", name.partition("[")[0]))
        if len(set(floats.values())) > 1:
            raise Refusal(self.name, "one dtype for all, got " + ", ".join(
                f"{name} {dtype}" for name, dtype in floats.items()), ("one dtype",))
        return next(iter(floats.values()), "float32")

    def tensor(self, name: str) -> Tensor:
        """The declaration of an array; "arrays[0]" is one of "arrays"."""
        name = name.partition("[")[0]
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def _check_options(self, arguments, sizes) -> None:
        for name, option in self.options.items():
            if not option.takes(arguments[name], sizes):
                wanted = option.wanted(sizes)
                raise Refusal(self.name, f"{name} is {arguments[name]!r}, wanted {wanted}",
                              ("option", name))
            sizes[name] = arguments[name]

    def _match(self, arrays, sizes) -> None:
        """Bind the letters of all arrays to their sizes. Raises Refusal where they do not fit."""
        origins = {name: str(sizes[name]) for name in self.options}
        for name, array in arrays.items():
            tensor, shape = self.tensor(name), tuple(array.shape)
            letters = f"({', '.join(tensor.letters)})"
            if tensor.form == "list":
                continue
            if tensor.form == "broadcast":
                target = sizes_of(tensor.letters, sizes)
                if len(shape) > len(target) or any(
                        n not in (1, m) for n, m in zip(shape[::-1], target[::-1])):
                    raise Refusal(self.name, f"{name} {shape} does not broadcast to {letters} = "
                                  f"{target}", ("shape", name))
                continue
            before = sizes.copy()
            if not bind(tensor.letters, shape, sizes, self.name):
                bindings = [f"{letter} = {origins[letter]}" for letter in names(tensor.letters)
                        if letter in before]
                where = f" where {', '.join(bindings)}" if bindings else ""
                fault = "axes" if len(shape) != len(tensor.letters) else "sizes"
                raise Refusal(self.name, f"{name} has shape {shape}, wanted {letters}{where}",
                              ("shape", name, fault))
            for letter in sizes.keys() - before.keys():
                origins[letter] = f"{sizes[letter]} ({name} {shape})"


def declare(name: str, signature: inspect.Signature, shapes: str, *, flops: str = "0",
            rules: Mapping[str, str] | None = None, reads: str | None = None,
            infer: Callable | None = None, **options: Option) -> Contract:
    """The contract of an op from its declaration; refsd.shapes says how shapes are written.

    ImportError for a declaration that does not name every parameter of the signature.
    """
    tensors, result = read(shapes)
    named = [tensor.name for tensor in tensors] + list(options)
    if sorted(named) != sorted(signature.parameters) or "->" not in shapes:
        raise ImportError(f"the contract of {name} declares {', '.join(named)}; its parameters are "
                          f"{', '.join(signature.parameters)}")
    return Contract(name, signature, tensors, result, options, dict(rules or {}), flops,
                    None if reads is None else tuple(reads.split()), infer)


def need(condition: bool, op: str, message: str, check: str = "") -> None:
    """Raise `op: message` unless the condition holds; `check` tells one condition from others."""
    if not condition:
        raise Refusal(op, message, ("need", check))


def array_bytes(array: Any) -> int:
    """Bytes of an array of this shape and dtype, of a Spec, or of what else has both."""
    return math.prod(array.shape) * itemsize(array.dtype)


def itemsize(dtype: Any) -> int:
    """Bytes an element ("int64" -> 8). UsageError for a dtype without a known, whole number."""
    size = BYTES.get(str(dtype))
    if size is None:
        raise UsageError(f"dtype {dtype} has no known number of bytes; give one of "
                         f"{', '.join(BYTES)}")
    return size
