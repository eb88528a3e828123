"""What every op takes, gives, costs and refuses, as plain values for JSON, tests and C.

Nothing is typed a second time. Shapes as letters are read from the docstrings and the contracts'
own words; which types, dtypes and ranges are taken is found out by asking the contract.
"""

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.golden.porting.contracts_calls import Call, calls, tensors, with_tensors
from refsd.golden.tolerances.bounds_likely import VARIANCE
from refsd.golden.tolerances.bounds_moved import MOVEMENT
from refsd.golden.tolerances.bounds_worst import WORST_OF_PORTS
from refsd.registry import Op, ops

SCHEMA = 1
DTYPES = ("float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "uint16",
          "int32", "uint32", "int64", "uint64")
INTEGERS = (*range(-8, 10), 10**6)
# In this order, so that the first accepted tells whether zero and less are.
NUMBERS = (-1.5, 0.0, 1e-30, 0.5, 1e6)
STRANGE = (None, "?", True, -1, 0, 1, 1.5, 10**6, math.inf, math.nan, (1, 0), (1, 2, 3),
           ((1, 1), (1, -1)))


def describe_ops() -> dict[str, Any]:
    """Every op's contract, in the order of refsd.functional's families."""
    return {name: describe(op) for name, op in ops().items()}


def describe(op: Op) -> dict[str, Any]:
    """One op's contract as JSON values; docs/porting.md says what each key holds."""
    formula, _, rest = inspect.getdoc(op.definition).partition("\n")
    worked = calls(op.name)
    inputs = {p.name: _input(op, p, worked) for p in parameters(op) if p.kind is not p.KEYWORD_ONLY}
    options = {p.name: _option(op, p, worked) for p in parameters(op) if p.kind is p.KEYWORD_ONLY}
    letters, result = shapes_as_letters(op)
    for name, shape in letters.items():
        (inputs if name in inputs else options)[name]["shape"] = shape
    return {
        "signature": f"{op.name}{op.signature}", "formula": formula, "description": rest.strip(),
        "inputs": inputs, "options": options, "output": {"shape": result, **_result(op, worked)},
        "examples": [_example(op, call) for call in worked],
        "error_model": _error_model(op.name),
        "refuses": [{**_plain(call), "message": message} for call, message in refusals(op)],
    }


def parameters(op: Op) -> Iterable[inspect.Parameter]:
    """The op's parameters in order; arrays come first, options are keywords."""
    return op.signature.parameters.values()


def refused(op: Op, call: Call) -> str | None:
    """What the contract says against a call, or None."""
    try:
        op.contract(**call.inputs, **call.options)
    except UsageError as error:
        return str(error)
    return None


def _taken(op: Op, worked: list[Call], name: str, value: Any) -> bool:
    """Whether the contract takes the value for this parameter, in any of the worked calls."""
    return any(refused(op, _replaced(op, call, name, value)) is None for call in worked)


def _replaced(op: Op, call: Call, name: str, value: Any) -> Call:
    parameter = op.signature.parameters[name]
    part = "options" if parameter.kind is parameter.KEYWORD_ONLY else "inputs"
    return call._replace(**{part: {**getattr(call, part), name: value}})


# -- inputs


def _input(op: Op, parameter: inspect.Parameter, worked: list[Call]) -> dict[str, Any]:
    name = parameter.name
    first = worked[0].inputs[name]
    return {
        "kind": "list of tensors" if isinstance(first, list) else
                "tensor or number" if _taken(op, worked[:1], name, 0.5) else "tensor",
        "required": parameter.default is parameter.empty,
        "shape": "any",
        "dtypes": _dtypes(op, name, worked),
    }


def _dtypes(op: Op, name: str, worked: list[Call]) -> list[str]:
    """What the tensor may be, with the tensors of its kind (floats, integers) beside it."""

    def taken(dtype, call):
        kinds = {n.partition(".")[0]: spec.dtype for n, spec in tensors(call)}
        if name not in kinds:
            return False
        return refused(op, with_tensors(call, lambda _, spec: Spec(
            spec.shape, dtype if spec.dtype == kinds[name] else spec.dtype))) is None

    return [dtype for dtype in DTYPES if any(taken(dtype, call) for call in worked)]


def shapes_as_letters(op: Op) -> tuple[dict[str, Any], Any]:
    """Parameter -> ["N", "C", "H", "W"] as the docstring or the contract writes it; the result's.

    Words stay words: "the same", "broadcast". Parameters of any shape are left out.
    """
    text, first = inspect.getdoc(op.definition).replace("\n", " "), calls(op.name)[0]
    names = [p.name for p in parameters(op)]
    found: dict[str, Any] = {}
    for words, shape in re.findall(r"((?:\w+(?:, | and ))*\w+)(?: is| are| broadcast to)? "
                                   r"\(([\w ,./]*)\)", text):
        for word in re.split(r", | and ", words):
            if word in names:
                found.setdefault(word, _letters(shape))

    left, arrow, right = text.partition("->")
    unnamed = re.findall(r"\(([^()]*)\)", left.rpartition("   ")[2])
    if isinstance(first.inputs[names[0]], list):
        found[names[0]] = [_letters(shape) for shape in unnamed]
    elif names[0] not in found:
        found |= dict(zip(names, map(_letters, unnamed)))

    for name in dict(tensors(first)):  # the contract's own words: "x has shape .., wanted (N C)"
        if name in names and name not in found:
            wrong = with_tensors(first, lambda n, spec, name=name: Spec(
                (2,) * 9, spec.dtype) if n == name else spec)
            said = re.match(rf"{op.name}: {name} has shape \([^()]*\), wanted \(([A-Z][^()]*)\)",
                            refused(op, wrong) or "")
            found |= {name: _letters(said[1])} if said else {}
    if not arrow:
        return found, "broadcast" if "broadcast" in text else "the same"
    result = re.match(r" (?:\(([^()]*)\)|(?:the )?(same(?:(?!  )[^.])*))", right)
    return found, f"the {result[2]}" if result[1] is None else _letters(result[1])


def _letters(text: str) -> list[str]:
    return [letter.strip() for letter in text.split(",") if letter.strip()]


# -- options


def _option(op: Op, parameter: inspect.Parameter, worked: list[Call]) -> dict[str, Any]:
    name = parameter.name
    found: dict[str, Any] = {"required": parameter.default is parameter.empty}
    if not found["required"]:
        found["default"] = parameter.default
    if any(isinstance(call.options.get(name), Spec) for call in worked):
        return {**found, "types": ["tensor"], "shape": "any", "dtypes": _dtypes(op, name, worked)}
    found["types"] = types = _types(op, name, worked)
    if "number" in types:
        types.remove("integer")
        allowed = [x for x in NUMBERS if _taken(op, worked[:1], name, x)]
        found["above" if allowed[0] == 1e-30 else "minimum"] = (
            0 if allowed[0] in (0.0, 1e-30) else None)
    elif "integer" in types:
        allowed = [n for n in INTEGERS if _taken(op, worked[:1], name, n)]
        found["minimum"] = min(allowed) if min(allowed) > INTEGERS[0] else None
        found["maximum"] = max(allowed) if max(allowed) < INTEGERS[-1] else None
        found["range_depends_on_shapes"] = found["maximum"] is not None
    elif "string" in types:
        found["choices"] = [word for word in _words(op, name, worked)
                            if _taken(op, worked, name, word)]
    found["wanted"] = _wanted(refused(op, _replaced(op, worked[0], name, "?")).partition(": ")[2])
    return found


def _wanted(message: str) -> str:
    """What an option may be, from what is said against "?", without the sizes of that call."""
    said, must, wanted = message.partition(" must ")
    if must:
        return re.sub(r"^(be|satisfy) ", "", re.sub(r"<= \d+$", "<= the axis's size", wanted))
    axis = "an axis: from -n to n - 1 for n of them"
    return axis if said.startswith("axis ") else message.rpartition("wanted ")[2]


def _types(op: Op, name: str, worked: list[Call]) -> list[str]:
    rank = len(next(tensors(worked[0]))[1].shape)
    probes = {
        "boolean": (True, False), "integer": INTEGERS, "number": NUMBERS,
        "string": _words(op, name, worked), "pair": ((1, 2),),
        "pairs": (((0, 1), (1, 0)),),
        "one an axis": (tuple(reversed(range(rank))),),
        "pair an axis": (((0, 1),) * rank,),
    }
    found = [kind for kind, values in probes.items()
             if any(_taken(op, worked[:1], name, value) for value in values)]
    return [kind for kind in found if not (kind == "one an axis" and "pair" in found)]


def _words(op: Op, name: str, worked: list[Call]) -> list[str]:
    """The words that the contract's refusal offers: "wanted auto, im2col or fft"."""
    message = refused(op, _replaced(op, worked[0], name, "?")) or ""
    return re.findall(r"\w+", message.rpartition("wanted ")[2]) if "wanted" in message else []


# -- results and refusals


def _result(op: Op, worked: list[Call]) -> dict[str, str]:
    """Where the result's dtype comes from."""
    if "dtype" in op.signature.parameters:
        return {"dtype": "option dtype"}
    for name, spec in tensors(worked[0]):
        if op.contract(**worked[0].inputs, **worked[0].options).dtype == spec.dtype:
            return {"dtype": f"as {name.partition('.')[0]}"}
    raise UsageError(f"{op.name}: no parameter has the dtype of the result")


def _example(op: Op, call: Call) -> dict[str, Any]:
    output = op.contract(**call.inputs, **call.options)
    return {**_plain(call), "output": {"shape": list(output.shape), "dtype": output.dtype},
            "flops": output.flops, "bytes": output.bytes}


def _error_model(name: str) -> dict[str, Any]:
    """Which derivation refsd.golden.tolerances.bounds.bound takes: docs/tolerances.md has it.

    kind: "exact" (data are moved, nothing is rounded but by the format) or "rounded"; worst is the
    function of the worst case, likely whether there is a narrower bound for chance's errors.
    """
    worst = WORST_OF_PORTS[name]
    worst = getattr(worst, "func", worst)
    kind = "exact" if name in MOVEMENT else "rounded"
    return {"kind": kind, "worst": f"{worst.__module__}.{worst.__name__}",
            "likely": name in VARIANCE}


def refusals(op: Op) -> list[tuple[Call, str]]:
    """Wrong calls made from the worked ones, one for each way in which the contract objects."""
    found: dict[str, tuple[Call, str]] = {}
    for call in calls(op.name):
        for wrong in _spoiled(op, call):
            message = refused(op, wrong)
            if message is not None:
                found.setdefault(_kind(message), (wrong, message))
    return list(found.values())


def _kind(message: str) -> str:
    """A refusal without its values: what two calls that are wrong in the same way share."""
    kind = re.sub(r"-?\d+(\.\d+)?|'[^']*'|\b(True|None|inf|nan)\b", "#", message)
    while (shorter := re.sub(r"\((#|, )*,?\)", "#", kind)) != kind:
        kind = shorter
    return kind


def _spoiled(op: Op, call: Call) -> Iterable[Call]:
    """The call with one thing about it changed: most of these are wrong."""
    for name, spec in tensors(call):
        for other in _other_specs(spec):
            yield with_tensors(call, lambda n, s, name=name, other=other:
                               other if n == name else s)
    for size in sorted({n for _, spec in tensors(call) for n in spec.shape}):
        yield with_tensors(call, lambda _, spec, size=size: Spec(
            tuple(0 if n == size else n for n in spec.shape), spec.dtype))
    for name, value in call.inputs.items():
        if isinstance(value, list):
            yield _replaced(op, call, name, [])
    for parameter in parameters(op):
        name = parameter.name
        if parameter.kind is parameter.KEYWORD_ONLY and not isinstance(
                call.options.get(name), Spec):
            for strange in (*STRANGE, *_words(op, name, [call])):
                yield _replaced(op, call, name, strange)


def _other_specs(spec: Spec) -> Iterable[Any]:
    other = "int64" if spec.dtype.startswith("float") else "float32"
    yield None
    yield from (Spec(spec.shape, dtype) for dtype in ("float16", "float64", other, "bool"))
    yield from (Spec(shape, spec.dtype) for shape in (
        spec.shape[:-1], (*spec.shape, 2), spec.shape[-1:]))
    for axis, n in enumerate(spec.shape):
        for size in (n + 1, 0):
            yield Spec((*spec.shape[:axis], size, *spec.shape[axis + 1:]), spec.dtype)


def _plain(call: Call) -> dict[str, Any]:
    """A call as JSON values."""
    return {"inputs": {name: plain(value) for name, value in call.inputs.items()},
            "options": {name: plain(value) for name, value in call.options.items()}}


def plain(value: Any) -> Any:
    """A parameter as a JSON value: shapes for arrays, and names for what JSON cannot write."""
    if hasattr(value, "shape"):
        return {"shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    return value
