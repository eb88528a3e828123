"""What belongs to a function: itself and what its file holds for it, read with ast."""

import ast
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MODELS = sorted((ROOT / "refsd" / "models").glob("*.py"))


class Source(NamedTuple):
    """A function's source with all that it uses of its file; where what it imports goes on."""

    file: str
    text: str
    beyond: tuple[str, ...]


class Use(NamedTuple):
    """A line of a model that calls an op."""

    file: str
    function: str
    line: str


def source_of(function: Callable) -> Source:
    """`function` and, in the order of the file, the functions and constants of it that it needs.

    `beyond` names the files of the same package that the rest is imported from.
    """
    path = Path(inspect.getsourcefile(inspect.unwrap(function)))
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    homes = {name: node for node in tree.body for name in _defined(node)}
    needed, todo = set(), [function.__name__]
    while todo:
        name = todo.pop()
        if name in homes and name not in needed:
            needed.add(name)
            todo += _used(homes[name], name)
    nodes = sorted({homes[name] for name in needed}, key=lambda node: node.lineno)
    used = {name for node in nodes for name in _names(node)}
    return Source(_relative(path), _joined(nodes, text), tuple(_beyond(tree, used, path)))


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [leaf.id for target in node.targets for leaf in ast.walk(target)
                if isinstance(leaf, ast.Name)]
    return []


def _used(node: ast.stmt, name: str) -> set[str]:
    """The names that a definition uses; of `a, b = f, g` those of its own part."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
        for target in node.targets:
            if isinstance(target, ast.Tuple):
                mine = [leaf.id for leaf in target.elts].index(name)
                return _names(node.value.elts[mine])
    return _names(node)


def _names(node: ast.AST) -> set[str]:
    """The names in a statement; what declares an op is no part of its definition."""
    declaration = {leaf for decorator in _declaration(node) for leaf in ast.walk(decorator)}
    return {leaf.id for leaf in ast.walk(node)
            if isinstance(leaf, ast.Name) and leaf not in declaration}


def _declaration(node: ast.AST) -> list[ast.expr]:
    return [decorator for decorator in getattr(node, "decorator_list", [])
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "op"]


def _joined(nodes: list[ast.stmt], text: str) -> str:
    """The source of statements, functions two lines apart."""
    lines, joined, constants = text.splitlines(), "", False
    for node in nodes:
        constant = isinstance(node, ast.Assign)
        between = "\n" if constant and constants else "\n\n\n"
        source = "\n".join(lines[_first_line(node, lines):node.end_lineno])
        joined, constants = joined + (between if joined else "") + source, constant
    return joined


def _first_line(node, lines) -> int:
    """With decorators, and comments right above; without what declares an op."""
    if _declaration(node):
        return node.lineno - 1
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return first


def _beyond(tree: ast.Module, used: set[str], path: Path) -> Iterator[str]:
    """The files beside this one that names in use come from."""
    folder = ".".join(path.relative_to(ROOT).parent.parts)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(folder + ".") and (
                used & {alias.asname or alias.name for alias in node.names}):
            yield node.module.replace(".", "/") + ".py"


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def uses() -> dict[str, list[Use]]:
    """Where the models name each op: `F.silu` in a function of refsd/models."""
    found: dict[str, list[Use]] = {}
    for path in MODELS:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        for node in sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0)):
            if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                    and node.value.id == "F"):
                line = text.splitlines()[node.lineno - 1].strip()
                use = Use(_relative(path), _around(tree, node.lineno), line)
                if use not in found.setdefault(node.attr, []):
                    found[node.attr].append(use)
    return found


def _around(tree: ast.Module, line: int) -> str:
    """The innermost function that a line is in, or ""."""
    return next((node.name for node in reversed(list(ast.walk(tree)))
                 if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno),
                "")
