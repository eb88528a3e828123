"""What every op takes, gives, costs and refuses, as plain values for JSON, tests and C.

All of it is read from the ops' declarations; wrong calls are made from the sample calls.
"""

import inspect
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from refsd.contracts import FLOATS, INTEGERS, Spec
from refsd.examples import Call, calls, tensors, with_tensors
from refsd.golden.tolerances.bounds import error_model, moves_data
from refsd.registry import Op, ops
from refsd.shapes import Refusal, Tensor

SCHEMA = 3
DTYPES = ("float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "uint16",
          "int32", "uint32", "int64", "uint64")
TAKEN = {"float": list(FLOATS), "int": [d for d in DTYPES if d in INTEGERS],
         "real": [d for d in DTYPES if d != "bool"]}
FORMS = {"list": "list of tensors", "number": "tensor or number"}
STRANGE = (None, "?", True, -1, 0, 1, 1.5, 10**6, math.inf, math.nan, (1, 0), (1, 2, 3),
           ((1, 1), (1, -1)))

logger = logging.getLogger(__name__)


def describe_ops() -> dict[str, Any]:
    """The contracts of all ops that a port can be tested on; what is left out is said."""
    judged = judged_ops()
    if left := sorted(ops().keys() - judged.keys()):
        logger.warning("left out, since no bound is derived for them: %s", ", ".join(left))
    return {name: describe(op) for name, op in judged.items()}


def judged_ops() -> dict[str, Op]:
    """The ops whose worst case is derived. An op that a user declares has none."""
    return {name: op for name, op in ops().items() if error_model(name)}


def describe(op: Op) -> dict[str, Any]:
    """One op's contract as JSON values; docs/porting.md says what each key holds."""
    formula, _, description = inspect.getdoc(op.definition).partition("\n")
    contract, parameters = op.contract, op.signature.parameters
    inputs = {t.name: _input(op, t) for t in contract.tensors}
    options = {name: {"required": parameters[name].default is inspect.Parameter.empty,
                      **_default(op, name), "types": list(option.types), **option.facts(),
                      "wanted": option.words} for name, option in contract.options.items()}
    as_options = {name for name in inputs
                  if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY}
    options |= {name: {"required": False, **_default(op, name), "types": ["tensor"],
                       "shape": inputs[name]["shape"], "dtypes": inputs[name]["dtypes"]}
                for name in as_options}
    return {
        "signature": f"{op.name}{op.signature}", "formula": formula,
        "description": description.partition(">>>")[0].strip(),
        "inputs": {name: tensor for name, tensor in inputs.items() if name not in as_options},
        "options": {name: options[name] for name in parameters if name in options},
        "output": {"shape": list(contract.result), "dtype": _result_dtype(op)},
        "requires": dict(contract.rules),
        "examples": [_example(op, call) for call in calls(op)],
        "error_model": _error_model(op.name),
        "refuses": [{**_plain(call), "message": message} for call, message in refusals(op)],
    }


def refused(op: Op, call: Call) -> Refusal | None:
    """What the contract says against a call, or None."""
    try:
        op.contract(**call.inputs, **call.options)
    except Refusal as error:
        return error
    return None


def _input(op: Op, tensor: Tensor) -> dict[str, Any]:
    default = op.signature.parameters[tensor.name].default
    return {"kind": FORMS.get(tensor.form, "tensor"), "shape": list(tensor.letters),
            "required": default is inspect.Parameter.empty, "dtypes": TAKEN[tensor.kind]}


def _default(op: Op, name: str) -> dict[str, Any]:
    default = op.signature.parameters[name].default
    return {} if default is inspect.Parameter.empty else {"default": default}


def _result_dtype(op: Op) -> str:
    """Where the result's dtype comes from."""
    if "dtype" in op.contract.options:
        return "option dtype"
    return f"as {next(t.name for t in op.contract.tensors if t.kind == 'float')}"


def _example(op: Op, call: Call) -> dict[str, Any]:
    output = op.contract(**call.inputs, **call.options)
    return {**_plain(call), "output": {"shape": list(output.shape), "dtype": output.dtype},
            "flops": output.flops, "bytes": output.bytes}


def _error_model(name: str) -> dict[str, Any]:
    """Which derivation refsd.golden.tolerances.bounds.bound takes: docs/tolerances.md has it.

    kind: "exact" (data are moved, nothing is rounded but by the format) or "rounded"; worst is the
    function of the worst case, likely whether there is a narrower bound for chance's errors.
    """
    model = error_model(name)
    worst = getattr(model.worst_of_ports, "func", model.worst_of_ports)
    kind = "exact" if moves_data(name) else "rounded"
    return {"kind": kind, "worst": f"{worst.__module__}.{worst.__name__}",
            "likely": model.variance is not None}


def refusals(op: Op) -> list[tuple[Call, str]]:
    """Wrong calls made from the sample calls, one for each check of the contract that they meet."""
    first: dict[tuple, tuple[Call, str]] = {}
    for call in calls(op):
        for wrong in _spoiled(op, call):
            refusal = refused(op, wrong)
            if refusal is not None:
                first.setdefault(refusal.check, (wrong, str(refusal)))
    return list(first.values())


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
            yield call._replace(inputs={**call.inputs, name: []})
    halves = [n // 2 for n in call.options.values() if isinstance(n, int)]
    for name, option in op.contract.options.items():
        for strange in (*STRANGE, *halves, *option.facts().get("choices", ())):
            yield call._replace(options={**call.options, name: strange})


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
