"""The page of an op, from its declaration in the registry and what is derived from it."""

import functools
import inspect
import itertools
import re

import numpy as np
from formulas import FORMULAS
from markup import block, code, escaped, from_docstring, table
from sources import ROOT, source_of, uses

from refsd import algorithms
from refsd.contracts import FLOATS, Spec
from refsd.examples import calls, with_values
from refsd.golden.porting.contracts import describe
from refsd.golden.porting.port import plan
from refsd.golden.tolerances.bounds import bound, error_model, moves_data
from refsd.registry import Op, kernels, ops

# Convolutions of Stable Diffusion 1.5, and a larger kernel: shapes of x and weight, options.
CONVOLUTIONS = [
    ((2, 320, 64, 64), (320, 320, 3, 3), {"padding": 1}),
    ((2, 320, 64, 64), (320, 320, 3, 3), {"padding": 1, "stride": 2}),
    ((2, 1280, 8, 8), (1280, 1280, 3, 3), {"padding": 1}),
    ((2, 640, 32, 32), (640, 640, 1, 1), {}),
    ((2, 4, 64, 64), (320, 4, 3, 3), {"padding": 1}),
    ((1, 64, 64, 64), (64, 64, 15, 15), {"padding": 7}),
]
FORMATS = ("float32", "float16", "bfloat16")


def formula(op: Op) -> str:
    """What the docstring begins with, without the shapes after it."""
    return inspect.getdoc(op.definition).partition("\n")[0].partition("   ")[0]


def page(op: Op) -> str:
    """The whole page, in Markdown."""
    described = describe(op) if error_model(op.name) else None
    sections = [section for section in (
        _shapes(op), _options(op), _errors(op, described), _side_by_side(op), _contract(op),
        _bound(op), _algorithms(op), _models(op)) if section]
    return "\n".join(["---\nhide-toc: true\n---\n", _head(op), _contents(sections), *sections])


def _contents(sections):
    """A line of links: these pages are as wide as the window, a list beside them would not fit."""
    titles = [section.partition("\n")[0].removeprefix("## ") for section in sections]
    return " · ".join(f"[{title}](#{title.lower().replace(' ', '-')})" for title in titles) + "\n"


def _head(op):
    text = inspect.getdoc(op.definition)
    line, _, rest = text.partition("\n")
    tex = FORMULAS.get(op.name)
    return "\n".join([
        f"# {op.name}\n",
        block(f"F.{op.name}{op.signature}"),
        f"$$\n{tex}\n$$\n" if tex else "",
        block(line, "text"),
        from_docstring(rest)])


def _shapes(op):
    parameters = op.signature.parameters
    takes = {"float": ", ".join(FLOATS), "int": "integers", "real": "integers or floats"}
    forms = {"list": "a list of arrays", "number": "an array or a Python number",
             "broadcast": "an array that broadcasts to this shape"}
    rows = [(code(t.name), code(f"({', '.join(t.letters)})"),
             forms.get(t.form, "an array") + (
                 ", or None" if parameters[t.name].default is None else ""),
             takes[t.kind] + (f" below {t.below}" if t.below else ""))
            for t in op.contract.tensors]
    result = "option `dtype`" if "dtype" in op.contract.options else "that of the floats above"
    rows.append(("the result", code(f"({', '.join(op.contract.result)})"), "an array", result))
    letters = {letter for t in op.contract.tensors for letter in t.letters}
    notes = ["The same letter is the same size everywhere"]
    notes += ["`...` is any number of axes"] if "..." in letters else []
    notes += [f"`{letter}` may be missing" for letter in sorted(letters) if letter.endswith("?")]
    return "\n".join(["## Shapes\n", table(("", "shape", "form", "dtype"), rows),
                      "; ".join(notes) + ".\n"])


def _options(op):
    def default(name):
        value = op.signature.parameters[name].default
        return "required" if value is inspect.Parameter.empty else code(repr(value))

    rows = [(code(name), default(name), escaped(option.words))
            for name, option in op.contract.options.items()]
    return "## Options\n\n" + table(("option", "default", "takes"), rows) if rows else ""


def _errors(op, described):
    rules = [(code(rule), escaped(sentence)) for rule, sentence in op.contract.rules.items()]
    if not rules and described is None:
        return ""
    parts = ["## Errors\n", "A call that does not fit is refused on every backend, with the same "
             "message, before anything is computed.\n"]
    if rules:
        parts.append(table(("must hold", "else"), rules))
    if described:
        messages = dict.fromkeys(refusal["message"] for refusal in described["refuses"])
        parts += ["Messages of wrong calls, one for each check:\n",
                  block("\n".join(messages), "text")]
    return "\n".join(parts)


def _side_by_side(op):
    panels = []
    for backend, function in _backends(op):
        source = source_of(function)
        on = "".join(f", {code(file)}" for file in source.beyond)
        title = "NumPy definition" if backend == "numpy" else f"{backend.capitalize()} kernel"
        panels.append(f"::::{{container}} panel\n**{title}**, {code(source.file)}"
                      f"{'; goes on in ' + on[2:] if on else ''}\n\n{block(source.text)}::::\n")
    return "\n".join(["## Definition and kernel\n", ":::::{container} side-by-side",
                      *panels, ":::::\n"])


def _backends(op):
    """The functions that compute it by backend, the definition first."""
    return sorted(kernels(op.name).items(), key=lambda item: item[0] != "numpy")


def _contract(op):
    declared = inspect.getsource(op.definition).partition("def ")[0].rstrip()
    contract = op.contract
    read = [t.name for t in contract.tensors] if contract.reads is None else [
        name for name in contract.reads if name != "result"]
    moved = ", ".join(map(code, read)) + " once" if read else "as much as is written"
    rows = []
    for call in calls(op):
        output = contract(**call.inputs, **call.options)
        rows.append((code(_written(op, call)), code(output.shape), f"{output.flops:,}",
                     f"{output.bytes:,}"))
    return "\n".join([
        "## Contract and cost\n", "The declaration on the definition:\n", block(declared),
        f"FLOPs: {code(contract.flops)}, where `size` is the number of results; a multiplication "
        f"and an addition are two. Bytes, the least traffic possible: {moved} to read, and the "
        "result to write.\n",
        table(("call", "result", "FLOPs", "bytes"), rows)])


def _written(op, call):
    """A call with shapes in the place of arrays."""

    def shown(value):
        if isinstance(value, list):
            return f"[{', '.join(map(shown, value))}]"
        return " x ".join(map(str, value.shape)) or "()" if isinstance(value, Spec) else repr(value)

    arguments = [shown(value) for value in call.inputs.values()]
    arguments += [f"{name}={shown(value)}" for name, value in call.options.items()]
    return f"{op.name}({', '.join(arguments)})"


def _bound(op):
    model = error_model(op.name)
    if model is None:
        return ""
    parts = ["## Error bound\n", "How far a result may lie from the exact one. "
             "[Tolerances](../docs/tolerances.md) has the notation and the derivations.\n",
             table(("", "\\|error\\| is at most", "why"), _rows_of(op, "## The bounds")),
             table(("", "a port may also", "so, in place of the above"),
                   _rows_of(op, "### Inside the op")),
             _example_bounds(op)]
    if not moves_data(op.name):
        worst = getattr(model.worst_of_ports, "func", model.worst_of_ports)
        parts += [f"The worst case as it is computed, in {code(source_of(worst).file)}:\n",
                  block(inspect.getsource(worst))]
    return "\n".join(parts)


@functools.cache
def _tolerance_rows(heading: str) -> list[tuple[str, str, str]]:
    """The rows of the first table below a heading of docs/tolerances.md, as they are written."""
    text = (ROOT / "docs" / "tolerances.md").read_text(encoding="utf-8")
    lines = text[text.index(f"{heading}\n"):].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2:])
    return [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]) for row in rows]


def _rows_of(op, heading):
    """Those that speak of an op."""
    for names, first, second in _tolerance_rows(heading):
        if op.name in re.findall(r"\w+", names) or (
                moves_data(op.name) and "Movement()" in names):
            first = first.replace("see below", "[derived there](../docs/tolerances.md)")
            yield names, first, second


def _example_bounds(op):
    call = with_values(op, calls(op)[0], seed=0)
    wide = {name: _wide(value) for name, value in call.inputs.items()}
    options = {**call.options, **({"dtype": "float64"} if "dtype" in call.options else {})}
    truth = op.definition(**wide, **options)
    rows = []
    for name in FORMATS:
        allowed = bound(op.name, call.inputs, call.options, truth, format=name)
        rows.append((name, f"{allowed.worst.max():.2g}", f"{allowed.likely.max():.2g}"))
    return (f"For {code(_written(op, calls(op)[0]))} on values drawn at random, results up to "
            f"{np.abs(truth).max():.3g}, a port that keeps tensors in these formats and adds up in "
            "float32 may be off by\n\n" + table(("format", "worst", "likely"), rows)
            + "\n*likely*: what random roundings stay below, at a confidence of 0.999999.\n")


def _wide(value):
    if isinstance(value, list):
        return [_wide(item) for item in value]
    return value.astype("float64") if getattr(value, "dtype", None) == np.float32 else value


def _algorithms(op):
    if op.name != "conv2d":
        return ""
    parts = ["## Algorithms\n", "Several algorithms compute a convolution. Each exists in NumPy "
             "and in Numba; the rule that picks one looks at shapes and options alone, and "
             "`algorithm=` forces one. `refsd ops why conv2d 2x320x64x64 320x320x3x3 --padding 1` "
             "asks it. [Convolution on the CPU](../docs/kernels-conv.md) has the measurements.\n"]
    for backend, _ in _backends(op):
        rows = []
        for x, weight, options in CONVOLUTIONS:
            found = algorithms.explain_conv2d(Spec(x, "float32"), Spec(weight, "float32"),
                                              backend=backend, **options)
            costs = {cost.algorithm: cost.multiplications for cost in found.costs}
            taken, im2col = costs[found.algorithm], costs["im2col"]
            named = ", ".join([" x ".join(map(str, x)), " x ".join(map(str, weight)),
                               *(f"{key} {value}" for key, value in options.items())])
            rows.append((named, code(found.algorithm), f"{taken / im2col:.2f}",
                         escaped(found.why)))
        parts += [f"On {backend}:\n", table(
            ("x, weight", "algorithm", "multiplications / im2col's", "why"), rows)]
    return "\n".join(parts)


@functools.cache
def _planned() -> dict[str, dict]:
    return {entry["name"]: entry for entry in plan("docs")["ops"]}


def _models(op):
    found = uses().get(op.name, [])
    inside = [other.name for other in ops().values() if other.name != op.name and re.search(
        rf"\b{op.name}\(", inspect.getsource(other.definition).partition('"""')[2])]
    entry = _planned().get(op.name)
    parts = ["## Where it is used\n"]
    if entry and entry["calls"]:
        parts.append(f"Two prompts, one guided step and one decoding of Stable Diffusion 1.5 call "
                     f"it {entry['calls']} times: {entry['flops'] / 1e9:,.3f} GFLOP, "
                     f"{entry['share']:.2%} of all; first for `{entry['first']}`.\n")
    else:
        parts.append("Stable Diffusion 1.5 draws without it.\n")
    if inside:
        parts.append("In the definitions of " + ", ".join(
            f"[{name}]({name}.md)" for name in inside) + ".\n")
    rows = [(code(use.file), code(use.function) if use.function else "", code(use.line))
            for use in found]
    return "\n".join([*parts, table(("file", "function", "line"), rows)])
