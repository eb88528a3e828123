"""Every variant through compiler and assembler: no spill, no float64, what the table says."""

import json
from importlib.util import find_spec

import gate
import pytest

pytestmark = pytest.mark.skipif(
    not (find_spec("cuda") and find_spec("cuda.core")),
    reason="the compiler for GPUs is not installed: make cuda has it (extra cuda-compile)")
HELD = json.loads(gate.TABLE.read_text())
# What is counted as it is in the table. Others depend on how the assembler orders things.
EXACT = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "BAR", "SHFL")
MORE = 8  # registers that another version of the assembler may take


def test_the_table_has_every_variant():
    """python tests/cuda/gate.py --write"""
    assert {gate.key_of(*v): gate.targets_of(v[0]) for v in gate.variants()} == {
        key: list(rows) for key, rows in HELD.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(set(gate.FACTORIES) - set(gate.PRODUCTS)))
def test_a_factory(name):
    """Those of products, which take as long: test_gate_products.py, beside this one."""
    require_what_is_held(name)


def require_what_is_held(name):
    factory = gate.FACTORIES[name]
    for constants in factory.each:
        key = gate.key_of(factory, constants)
        for target in gate.targets_of(factory):
            report, held = gate.inspect(factory, constants, target), HELD[key][target]
            plan = gate.compiled(factory, constants, target)[0]
            bad = gate.faults(plan.threads, plan.blocks, target, report, "float64" in constants)
            assert not bad, f"{key} for {target}: {'; '.join(bad)}"
            assert report.registers <= held["registers"] + MORE, (key, target, report)
            assert report.shared == held["shared"], (key, target, report)
            assert {k: report.counts.get(k, 0) for k in EXACT} == {
                k: held.get(k, 0) for k in EXACT}, (key, target)
        gate.forget()


def test_a_fault_is_seen():
    """The gate rejects what it is for."""
    fair = gate.Report(64, 0, 1024, False, {"HMMA": 16})
    assert not gate.faults(256, 1, "80", fair, False)
    for changed, sentence in [({"spilled": 8}, "spills 8"), ({"counts": {"LDL": 1}}, "1 loads"),
                              ({"counts": {"STL": 1}}, "spills"),
                              ({"registers": 255}, "more than"), ({"shared": 1 << 20}, "are there"),
                              ({"float64": True}, "float64")]:
        found = gate.faults(512, 1, "80", fair._replace(**changed), False)
        assert len(found) == 1 and sentence in found[0], found
    assert not gate.faults(256, 1, "80", fair._replace(float64=True), True)


@pytest.mark.parametrize("log", ["", "Used 8 registers, Used 9 registers"])
def test_what_the_assembler_does_not_say_is_no_zero(log):
    with pytest.raises(ValueError, match="to unpack"):
        gate.said(r"Used (\d+) registers", log)
