"""Every example in a docstring gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

import refsd
from refsd.golden.porting.contracts import describe
from refsd.registry import ops

ROOT = Path(refsd.__file__).parents[1]
FILES = [path.relative_to(ROOT) for path in sorted((ROOT / "refsd").rglob("*.py"))
         if "    >>> " in path.read_text(encoding="utf-8")]


def module(file):
    parts = file.with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_examples(file):
    failed, tried = doctest.testmod(module(file))
    assert tried > 0 and failed == 0


def test_every_family_of_ops_shows_an_example():
    with_examples = {file.stem for file in FILES if file.parent.name == "ops"}
    assert with_examples == {op.family for op in ops().values()}


def test_contracts_for_ports_have_no_examples_in_python():
    described = describe(ops()["conv2d"])["description"]
    assert described.endswith("sees group g of the inputs only.")
