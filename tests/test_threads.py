"""How many threads compute, two callers at once, and processes that fork or spawn."""

import contextlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import tiny
from chaos import environment, run

import refsd
from refsd import parallel
from refsd.cli import threads as cli_threads
from refsd.errors import UsageError
from refsd.numba_ops import threads

# Two Python threads draw at once, then the same one after the other. Prints whether all is equal.
TWICE = """
import sys, threading
import numpy as np, refsd
from refsd.numba_ops import threads

def draw(seed, found):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(sys.argv[1], backend="numba")
    found[seed] = pipe("a red cat", num_inference_steps=4, height=64, width=64, generator=seed,
                       output_type="np").images

alone, together = {}, {}
for seed in (1, 2):
    draw(seed, alone)
for _ in range(3):
    workers = [threading.Thread(target=draw, args=(seed, together)) for seed in (1, 2)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    assert all(np.array_equal(alone[seed], together[seed]) for seed in (1, 2))
assert not np.array_equal(alone[1], alone[2])
print("equal", threads.layer())
"""

# Children by fork or spawn, before or after kernels have run in this process.
CHILDREN = """
import multiprocessing, sys
import numpy as np, refsd
from refsd import F

def work(say):
    try:
        with refsd.use("numba"):
            say(float(F.silu(np.zeros((64, 64), "float32")).sum()))
    except Exception as error:
        say(f"{type(error).__name__}: {error}")

def child(pipe):
    work(pipe.send)

if __name__ == "__main__":
    before, *methods = sys.argv[1:]
    if before == "after":
        work(lambda found: None)
    for method in methods:
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context(method)
        process = context.Process(target=child, args=(there,))
        process.start()
        print(method, here.recv() if here.poll(60) else "silent", flush=True)
        process.join(60)
        print(process.exitcode)
    work(print)
"""


def python(program, *args, **changes):
    """A process that runs the program."""
    return subprocess.run([sys.executable, *program, *map(str, args)], capture_output=True,
                          text=True, env=environment(**changes), timeout=240)


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_two_python_threads_draw_at_once(layer, tmp_path):
    """On workqueue two callers at once end the process, so they must not come at once."""
    tiny.write_model(tmp_path / "model")
    done = python(["-c", TWICE], tmp_path / "model", NUMBA_THREADING_LAYER=layer)
    assert (done.returncode, done.stdout) == (0, f"equal {layer}\n"), done.stderr


def test_a_forked_child_is_told_and_a_spawned_one_works(tmp_path):
    (tmp_path / "program.py").write_text(CHILDREN)
    done = python([str(tmp_path / "program.py"), "after", "fork", "spawn"],
                  NUMBA_THREADING_LAYER="omp")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("fork UsageError: this process was forked from one"), done.stderr
    assert "spawn" in lines[0]
    assert lines[1:] == ["0", "spawn 0.0", "0", "0.0"], done.stderr


def test_a_fork_before_any_kernel_works(tmp_path):
    (tmp_path / "program.py").write_text(CHILDREN)
    done = python([str(tmp_path / "program.py"), "before", "fork"], NUMBA_THREADING_LAYER="omp")
    assert done.stdout.splitlines() == ["fork 0.0", "0", "0.0"], done.stderr


@pytest.mark.parametrize("count", [0, -1, parallel.cores() + 1, 1.5, True, "2", None])
def test_a_number_of_threads_that_cannot_be_is_refused(count):
    wanted = f"give an integer from 1 to {parallel.cores()}"
    with pytest.raises(UsageError, match=wanted), refsd.threads(count):
        pytest.fail("entered")


@pytest.mark.parametrize("count", [1, np.int8(1), np.array(1), 1.0])
def test_a_number_of_threads_in_every_kind(count):
    assert type(parallel.check_threads("threads", count)) is int


def test_one_setting_holds_for_kernels_and_for_blas():
    before = threads.count(), cli_threads.in_use()
    with refsd.threads(1):
        assert (threads.count(), cli_threads.in_use()) == (1, 1)
        assert cli_threads.in_use("numba") == 1
        with parallel.limited(1000):  # of a recipe from a larger machine
            assert threads.count() == numba.config.NUMBA_NUM_THREADS
        assert threads.count() == 1
    assert (threads.count(), cli_threads.in_use()) == before


def test_a_limit_holds_for_what_is_loaded_within_it():
    """SciPy brings a BLAS of its own: a recipe said that all threads had drawn with -t 1."""
    code = ("from refsd import parallel\nwith parallel.limited(1):\n"
            "    import refsd.functional, refsd.numba_ops.cpu\n"
            "    print(*{pool['num_threads'] for pool in parallel.blas_pools()})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment(), check=True)
    assert done.stdout.split() == ["1"]


def test_the_setting_ends_with_an_error():
    before = threads.count()
    with pytest.raises(KeyError), refsd.threads(1):
        raise KeyError
    assert threads.count() == before


@pytest.mark.parametrize("order", ["abAB", "abBA", "aAbB", "abcACB", "abcBAC", "abAcBC"])
def test_blocks_of_several_python_threads_may_end_in_any_order(order):
    """A small letter enters a thread's block, the large one leaves it; BLAS is as it was before.

    Of the blocks that are open the one entered last decides.
    """
    counts = {"a": 1, "b": 2, "c": 1}
    before, kernels = cli_threads.in_use(), threads.count()
    with contextlib.ExitStack() as pools:
        workers = {name: pools.enter_context(ThreadPoolExecutor(1)) for name in counts}
        blocks = {name: parallel.limited(count) for name, count in counts.items()}
        opened = []
        for letter in order:
            worker, block = workers[letter.lower()], blocks[letter.lower()]
            if letter.islower():
                worker.submit(block.__enter__).result()
                opened.append(letter)
            else:
                worker.submit(block.__exit__, None, None, None).result()
                opened.remove(letter.lower())
            assert cli_threads.in_use() == (counts[opened[-1]] if opened else before)
            assert threads.count() == kernels  # of this thread, which is in no block
            for name, executor in workers.items():
                wanted = min(counts[name], kernels) if name in opened else kernels
                assert executor.submit(threads.count).result() == wanted


def test_a_blas_with_a_number_for_each_python_thread(monkeypatch):
    """As OpenBLAS on OpenMP: a block elsewhere is not this thread's concern."""
    numbers = {}  # by Python thread

    class Library:
        filepath, threading_layer = "/lib/libopenblas.so", "openmp"
        num_threads = property(lambda self: numbers.get(threading.get_ident(), 8))

        def set_num_threads(self, count):
            numbers[threading.get_ident()] = count

    controller = SimpleNamespace(lib_controllers=[Library()], select=lambda **_: controller)
    monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: controller)
    monkeypatch.setattr(parallel, "_pools", {})
    with ThreadPoolExecutor(1) as other:
        block = parallel.limited(2)
        other.submit(block.__enter__).result()
        with parallel.limited(1):
            other.submit(block.__exit__, None, None, None).result()
            assert sorted(numbers.values()) == [1, 8]
    assert list(numbers.values()) == [8, 8] and parallel._blas == {}


def test_a_pool_that_comes_later_is_limited_in_the_thread_of_the_block(monkeypatch):
    monkeypatch.setattr(parallel, "_pools", {})
    asked = []
    with ThreadPoolExecutor(1) as other, parallel.limited(1):
        other.submit(parallel.add_pool, "new", lambda count: asked.append(count)).result()
        assert asked == []
        parallel.add_pool("new", lambda count: asked.append(count) or 7)
        assert asked == [1]
    assert asked == [1, 7]


def test_kernels_that_are_imported_within_the_block_are_limited_too():
    program = """
import sys, refsd
with refsd.threads(1):
    assert "numba" not in sys.modules
    from refsd.numba_ops import threads
    print(threads.count())
import numba
print(threads.count() == numba.config.NUMBA_NUM_THREADS)
"""
    assert python(["-c", program]).stdout == "1\nTrue\n"


@pytest.mark.parametrize("name, value", [
    ("NUMBA_NUM_THREADS", "0"), ("NUMBA_NUM_THREADS", "-2"), ("NUMBA_NUM_THREADS", "many"),
    ("NUMBA_THREADING_LAYER", "silk"),
])
def test_settings_that_numba_cannot_meet_are_errors_of_one_line(name, value, tmp_path):
    tiny.write_model(tmp_path / "model")
    code, out, err = run("a cat", "-m", tmp_path / "model", "-s", 1, "-o", tmp_path / "a.png",
                         env=environment(**{name: value}))
    assert (code, out) == (2, b"")
    last = err.decode().splitlines()[-1]
    assert last.startswith("refsd: error: ") and name in last and value in last
    assert b"Traceback" not in err


def test_numbas_own_setting_is_an_upper_limit():
    program = """
from refsd import parallel
from refsd.numba_ops import threads
with parallel.limited(2):
    print(threads.count())
"""
    assert python(["-c", program], NUMBA_NUM_THREADS="1").stdout == "1\n"


@pytest.mark.parametrize("setting", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_the_environment_is_left_as_it_was(setting):
    """The setting for OpenMP is ours alone, and another program's child must not inherit it."""
    program = """
import os
before = dict(os.environ)
from refsd.numba_ops import threads
threads.layer()
print(dict(os.environ) == before)
"""
    assert python(["-c", program], **setting).stdout == "True\n"


def test_results_are_the_same_on_one_thread_and_on_all():
    x = np.random.default_rng(0).standard_normal((2, 16, 24, 24)).astype("float32")
    weight = np.random.default_rng(1).standard_normal((32, 16, 3, 3)).astype("float32")

    def result():
        with refsd.use("numba"):
            return refsd.F.silu(refsd.F.conv2d(x, weight, padding=1))

    with refsd.threads(1):
        one = result()
    assert np.array_equal(one, result())
