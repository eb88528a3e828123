"""The contracts as tests that a port runs without refsd: adapters to fill in, and cases.

A case holds inputs in float32, the result in float64, and for each format of numbers how far a
result may lie from it, element by element: the op's derived bound.
"""

import inspect
import io
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from refsd.examples import Call, calls, with_values
from refsd.golden.porting.contracts import judged_ops, plain, refused
from refsd.golden.porting.export import encode
from refsd.golden.recording.replay import raise_to_float64
from refsd.golden.tolerances.bounds import bound
from refsd.registry import Op, use

FORMATS = ("float32", "float16", "bfloat16")
WINOGRAD = {"algorithm": "winograd4"}
SEED = 20231120  # of the values of cases; any would do


def contract_tests(contracts: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a folder of contract tests by name.

    contracts is what `refsd export contracts` writes: the tests read the refusals from it.
    """
    cases, arrays = make_cases()
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return {
        "contracts.json": encode(contracts),
        "adapters.py": adapters().encode(),
        "test_contracts.py": (files("refsd") / "data" / "contract_tests.txt").read_bytes(),
        "cases.json": encode(cases),
        "cases.npz": packed.getvalue(),
    }


def make_cases() -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The sample calls of all ops with values: (cases, arrays by the keys that cases name)."""
    cases: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for name, op in judged_ops().items():
        for k, shapes in enumerate(calls(op)):
            call = with_values(op, shapes, SEED + len(cases))
            key = f"{name}.{k}"
            named = {part: {p: _keep(f"{key}.{p}", value, arrays) for p, value in values.items()}
                     for part, values in call._asdict().items()}
            arrays |= {f"{key}.{what}": array for what, array in _judged(op, call).items()}
            cases.append({"op": name, "case": k, **named})
    return cases, arrays


def _keep(key: str, value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """An array's key, after keeping it; other values as they are."""
    if isinstance(value, np.ndarray):
        arrays[key] = value
        return {"array": key}
    if isinstance(value, list):
        return [_keep(f"{key}.{k}", item, arrays) for k, item in enumerate(value)]
    return plain(value)


def _judged(op: Op, call: Call) -> dict[str, np.ndarray]:
    """The result in float64, and the largest error in each format, rounded up to float32."""
    wide = Call(*({name: raise_to_float64(value) for name, value in part.items()} for part in call))
    options = wide.options | ({"dtype": "float64"} if "dtype" in wide.options else {})
    with use("numpy", exact=True), np.errstate(all="ignore"):
        truth = np.asarray(op.definition(**wide.inputs, **options))
    arrays = {"result": truth}
    for name in FORMATS:
        arrays[f"bound.{name}"] = _worst(op, wide.inputs, options, truth, name)
        if op.name == "conv2d" and refused(op, Call(call.inputs, options | WINOGRAD)) is None:
            arrays[f"winograd.{name}"] = _worst(op, wide.inputs, options | WINOGRAD, truth, name)
    return arrays


def _worst(op: Op, inputs: dict, options: dict, truth: np.ndarray, name: str) -> np.ndarray:
    """The worst case, rounded up to float32."""
    worst = bound(op.name, inputs, options, truth, format=name).worst.astype("float32")
    return np.nextafter(worst, np.float32(np.inf))


def adapters() -> str:
    """adapters.py: a function an op that raises until the porter fills it in."""
    parts = [textwrap.dedent('''\
        """Your port: one function an op, each called by test_contracts.py.

        Every function is given float32 NumPy arrays (indices: int64) in the shapes that its
        docstring names, and returns a NumPy array. Fill in one after the other; what still raises
        NotImplementedError is skipped and counted as missing.
        """

        # What your port computes in: float32, float16 or bfloat16. It decides what may differ.
        FORMAT = "float32"
        # Whether wrong calls raise an error, as the contracts ask.
        REFUSES = True
        # Whether 3 x 3 convolutions may be as far off as Winograd's F(4 x 4, 3 x 3) makes them.
        WINOGRAD = False
        ''')]
    for name, op in judged_ops().items():
        text = textwrap.indent(inspect.getdoc(op.definition), "    ").strip()
        end = "\n    " if "\n" in text else ""
        parts.append(f"\n\ndef {name}{_signature(op)}:\n"
                     f'    """{text}{end}"""\n'
                     f'    raise NotImplementedError("{name}")\n')
    return "".join(parts)


def _signature(op: Op) -> str:
    signature = str(op.signature)
    if len(f"def {op.name}{signature}:") <= 100:
        return signature
    parts = [str(p) for p in op.signature.parameters.values()]
    parts.insert(next(i for i, p in enumerate(op.signature.parameters.values())
                      if p.kind is inspect.Parameter.KEYWORD_ONLY), "*")
    indent = "\n" + " " * len(f"def {op.name}(")
    return "(" + textwrap.fill(", ".join(parts), 80).replace("\n", indent) + ")"
