"""The pages of the Python API: what each public module exports, with its docstrings."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from markup import block, escaped, from_docstring, table

# A public module and, where it exports more than these pages should teach or has no __all__, what.
MODULES = {
    "refsd": None,
    "refsd.pipelines.drawing": ("StableDiffusionOutput",),
    "refsd.pipelines.hires": ("StableDiffusionHiresPipeline",),
    "refsd.pipelines.resume": ("SaveState", "read_state", "State"),
    "refsd.notebook": ("playground",),
    "refsd.random": None,
    "refsd.random.variation": ("varied_noise",),
    "refsd.schedulers": None,
    "refsd.text": None,
    "refsd.weights": None,
    "refsd.registry": ("op", "kernel", "ops", "kernels"),
    "refsd.backends": ("Backend", "add_backend", "find_backend"),
    "refsd.contracts": ("Spec", "Output"),
    "refsd.algorithms": ("explain_conv2d", "Explanation", "Cost"),
    "refsd.golden.tolerances.bounds": ("bound", "Bound"),
    "refsd.profiling": None,
    "refsd.errors": ("RefsdError", "UsageError", "ModelError", "ResourceError"),
}


def exported(module: str) -> list[str]:
    """The names that the page of a module has; constants have no docstring and no place there."""
    home = importlib.import_module(module)
    names = MODULES[module] or home.__all__
    return [name for name in names if callable(getattr(home, name))]


def pages() -> dict[str, str]:
    """The page of each module by its name, and "index"."""
    found = {module: _module(module) for module in MODULES}
    rows = [(f"[`{module}`]({module}.md)", escaped(_summary(importlib.import_module(module))),
             ", ".join(f"`{name}`" for name in exported(module))) for module in MODULES]
    found["index"] = "\n".join([
        "# Python API\n", "What is meant to be imported. The ops, `refsd.F`, have "
        "[pages of their own](../ops/index.md).\n", table(("module", "what", "names"), rows),
        "```{toctree}\n:hidden:\n", *MODULES, "```\n"])
    return found


def _summary(thing: Any) -> str:
    return " ".join(re.split(r"\n\s*\n", inspect.getdoc(thing) or "")[0].split())


def _module(name):
    home = importlib.import_module(name)
    parts = [f"# {name}\n", from_docstring(home.__doc__)]
    for each in exported(name):
        thing = getattr(home, each)
        parts += [_class(name, thing) if inspect.isclass(thing)
                  else _described("function", f"{name}.{each}", thing)]
    return "\n".join(parts)


def _class(module, cls):
    parts = [_described("class", f"{module}.{cls.__name__}", cls)]
    if not issubclass(cls, Exception):
        parts += [_described(kind, f"{module}.{cls.__name__}.{name}", member)
                  for name, kind, member in _members(cls)]
    return "\n".join(parts)


def _members(cls: type) -> Iterator[tuple[str, str, Any]]:
    """What a class itself documents: public methods and properties, and how it is called."""
    for name, member in vars(cls).items():
        inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if (name.startswith("_") and name != "__call__") or not inspect.getdoc(inner):
            continue
        if isinstance(inner, property):
            yield name, "property", inner
        elif inspect.isfunction(inner) and inner.__name__ == name:
            yield name, {classmethod: "classmethod", staticmethod: "staticmethod"}.get(
                type(member), "method"), inner


def _described(kind: str, name: str, thing: Any) -> str:
    """A heading, the signature, the docstring."""
    short = name.rpartition(".")[2]
    if kind in ("method", "classmethod", "staticmethod", "property"):
        level, short = "###", ".".join(name.split(".")[-2:])
    else:
        level = "##"
    return "\n".join([f"{level} {escaped(short)}\n", block(_signature(kind, short, thing)),
                      from_docstring(inspect.getdoc(thing))])


def _signature(kind: str, name: str, thing: Any) -> str:
    """As it would be written; one parameter a line where it is long."""
    if kind == "property":
        return name
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"class {name}({', '.join(base.__name__ for base in thing.__bases__)})"
    signature = inspect.signature(thing)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    signature = signature.replace(parameters=parameters)
    text = _plain(f"{name}{signature}")
    if len(text) <= 90:
        return text
    lines, starred = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        lines.append(_plain(str(parameter)))
    gives = _plain(str(signature.replace(parameters=[])).removeprefix("()"))
    return f"{name}(\n    " + ",\n    ".join(lines) + f"\n){gives}"


def _plain(text: str) -> str:
    """Without the angle brackets and addresses of objects, and the long way to a class."""
    text = re.sub(r"<(?:class|function) '?([\w.]+)[^>]*>", r"\1", text)
    return re.sub(r"\b(?:typing|collections\.abc|pathlib|refsd(?:\.\w+)*)\.(?=[A-Z])", "", text)
