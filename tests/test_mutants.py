"""Every planted mutant must be noticed; the package as it is must not be."""

import multiprocessing
from pathlib import Path

import pytest
from mutants import MUTANTS, PRELOAD, plant, run_tests

import refsd
from refsd.registry import ops

PACKAGE = Path(refsd.__file__).parent
KILLED, SURVIVED = 1, 0  # pytest's exit codes; 2 and more: the tests did not run


@pytest.fixture(scope="module")
def processes():
    """Children of a process that has imported NumPy and pytest, but nothing of refsd."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def run(processes, root, killers):
    """pytest's exit code and output."""
    log = root / "log.txt"
    process = processes.Process(target=run_tests, args=(root, killers, log))
    process.start()
    process.join()
    return process.exitcode, log.read_text()


def test_there_are_enough_and_none_twice():
    assert len(MUTANTS) >= 30
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_every_definition_has_a_mutant_that_a_truth_test_kills():
    """So there is a truth test, in the file of the op's family, and it looks at the definition."""
    planted = {(mutant.name.partition(":")[0], mutant.killer.partition("::")[0])
               for mutant in MUTANTS if mutant.file.startswith("ops/")}
    missing = [op.name for op in ops().values()
               if (op.name, f"test_ops_{op.family}.py") not in planted]
    assert not missing, (f"plant mutants of {', '.join(missing)} in mutants.txt that a test of "
                         "test_ops_FAMILY.py kills")


def test_the_package_as_it_is_passes(processes, tmp_path):
    plant(None, PACKAGE, tmp_path)
    code, log = run(processes, tmp_path, sorted({mutant.killer for mutant in MUTANTS}))
    assert code == SURVIVED, log


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant, processes, tmp_path):
    plant(mutant, PACKAGE, tmp_path)
    code, log = run(processes, tmp_path, [mutant.killer])
    outcome = {KILLED: "killed", SURVIVED: "survived"}.get(code, "did not run")
    assert outcome == "killed", f"{mutant.name} {outcome}\n{log}"
