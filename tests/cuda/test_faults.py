"""Every planted fault is seen: what the tests of the kernels are worth."""

import functools
import importlib
from pathlib import Path

import faults
import pytest

from refsd.numba_ops.cuda.plan import FACTORIES

TABLES = [importlib.import_module(path.stem)
          for path in sorted(Path(__file__).parent.glob("faults_*.py"))]
FAULTS = [fault for table in TABLES for fault in table.FAULTS]


@functools.cache
def passes(check):
    return faults.fails(check, 1) or faults.fails(check, -1)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.file}: {f.about}")
def test_a_fault_is_seen(fault):
    assert passes(fault.check) is None, "without the fault"
    assert faults.seen(fault), "with it the check passes"


def test_nothing_is_left_of_a_fault():
    fault = FAULTS[0]
    assert faults.seen(fault)
    assert faults.fails(fault.check, 1) is None


def test_names_tell_faults_apart():
    names = [(fault.file, fault.about) for fault in FAULTS]
    assert len(set(names)) == len(names)


def test_all_files_with_kernels_have_faults():
    files = {name.partition(".")[0] for name in FACTORIES}
    assert not files - {fault.file for fault in FAULTS}, "faults_*.py have none for these"
