"""The decorator and the cache of compiled kernels: what is kept, and what goes wrong around it."""

import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numba
import numpy as np
import pytest
from chaos import ROOT, environment, limit_file_size
from numba.core.caching import NullCache

from refsd.numba_ops import cache, warmup
from refsd.numba_ops.jit import Kernel, compilations, jit, planned

# One small kernel, and one that runs on threads. What is printed: kernels compiled, the results.
PROGRAM = """
import sys, warnings
import numpy as np, refsd
from refsd import F
from refsd.numba_ops import jit
warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
with refsd.use("numba"):
    y = F.timestep_embedding(np.arange(3), dim=8, flip_sin_to_cos=True, freq_shift=0,
                             dtype="float32")
    z = F.embedding(np.array([[1, 0]]), y)
print(jit.compilations.count, y.tobytes().hex(), z.tobytes().hex())
"""


def call(folder, *, limit=None, **changes):
    """PROGRAM's (kernels compiled, results), and what it said on stderr."""
    env = environment(REFSD_CACHE=str(folder), **changes)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True,
                          preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    count, *results = done.stdout.split()
    return int(count), results, done.stderr


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A cache that holds PROGRAM's kernels, and their results."""
    folder = tmp_path_factory.mktemp("cache")
    count, results, said = call(folder)
    assert (count, said) == (2, "")
    return folder, results


@pytest.fixture
def copied(full, tmp_path):
    """A copy of it to spoil."""
    folder = tmp_path / "cache"
    subprocess.run(["cp", "-r", str(full[0]), str(folder)], check=True)
    return folder, full[1]


@jit
def _twice(x):
    return 2 * x


@jit
def _calls_twice(x):
    return _twice(x) + 1


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The empty folder in which this process keeps kernels from now on."""
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    return tmp_path


def fresh(kernel):
    """A kernel as another process has it: nothing in memory."""
    return Kernel(kernel.py_func, kernel.parallel, kernel.flags)


def test_compiled_code_calls_another_part_than_python(monkeypatch):
    for kernel in (_twice, _calls_twice):  # an earlier run may have left them in the cache
        monkeypatch.setattr(kernel.entry, "_cache", NullCache())
    assert _calls_twice(2.5) == 6.0
    assert isinstance(_twice, Kernel) and _twice.__name__ == "_twice" and _twice.py_func(3) == 6
    assert _twice.inner.signatures == [(numba.float64,)]
    before = compilations.count
    assert _twice(2.5) == 5.0  # now with a bridge from Python
    assert compilations.count == before + 1


def test_planned_calls_are_collected_and_not_run():
    y = np.zeros(2)
    with planned() as found:
        assert _fill(y, 7) is None
    assert list(found) == [(_fill, (numba.float64[::1], numba.int64))]
    assert not y.any()
    _fill(y, 7)
    assert y.tolist() == [7, 7]


@jit(parallel=True)
def _fill(y, value):
    for i in numba.prange(y.size):
        y[i] = value


def test_flags_are_those_that_keep_nan_checks():
    with pytest.raises(ImportError, match="nnan"):
        jit(flags=("nnan",))(_twice.py_func)


def test_a_second_process_compiles_nothing(full):
    assert call(full[0]) == (0, full[1], "")


def test_a_damaged_file_in_the_cache_is_said_once(copied):
    folder, results = copied
    files = sorted(folder.rglob("*.nbc"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(b"garbage")
    count, again, said = call(folder)
    assert (count, again) == (2, results)
    assert said.count("was damaged") == 1 and "Traceback" not in said
    assert call(folder) == (0, results, "")


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_cache_is_made_anew(kept, ending, damage):
    assert fresh(_twice)(2.5) == 5.0
    file, = kept.rglob(f"*.{ending}")
    whole = file.read_bytes()
    file.write_bytes(whole[:len(whole) // 2] if damage is None else damage)
    before = compilations.count
    with pytest.warns(UserWarning, match="was damaged"):
        assert fresh(_twice)(2.5) == 5.0
    assert fresh(_twice)(2.5) == 5.0
    assert compilations.count == before + 1


def test_a_full_disk_costs_a_warning(full, tmp_path):
    count, results, said = call(tmp_path / "new", limit=limit_file_size(4096))
    assert (count, results) == (2, full[1])
    assert "could not be kept" in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.tmp*"))


def test_without_a_place_to_write_nothing_is_kept(full):
    count, results, said = call("/proc/refsd")
    assert (count, results) == (2, full[1])
    assert said.count("are not kept") == 1


@pytest.mark.parametrize("where, home", [("/proc/refsd", "/"), ("/dev/null/refsd", "/"),
                                         ("", "/proc/nobody")])
def test_without_a_place_to_write_or_a_home_there_is_no_folder(monkeypatch, where, home):
    monkeypatch.setenv("REFSD_CACHE", where)
    monkeypatch.setenv("HOME", home)
    with pytest.warns(UserWarning, match="are not kept"):
        assert cache.cache_folder.__wrapped__() is None


def test_kernels_that_others_may_have_planted_are_not_loaded(copied):
    folder, results = copied
    next(folder.glob("kernels/*")).chmod(0o777)
    count, again, said = call(folder)
    assert (count, again) == (2, results) and "others may write" in said


@pytest.mark.parametrize("part", ["", "kernels", "kernels/*"], ids=["root", "kernels", "folder"])
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_where_others_may_write_is_refused(tmp_path, monkeypatch, part, mode):
    monkeypatch.setenv("REFSD_CACHE", str(tmp_path))
    tmp_path.chmod(0o700)
    assert cache.cache_folder.__wrapped__() is not None
    place = next(tmp_path.glob(part)) if part else tmp_path
    place.chmod(mode)
    with pytest.warns(UserWarning, match=f"{place}: it belongs to another .* others may write"):
        assert cache.cache_folder.__wrapped__() is None


def test_its_own_folders_are_private_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSD_CACHE", str(tmp_path / "a" / "cache"))
    before = os.umask(0)
    try:
        folder = cache.cache_folder.__wrapped__()
    finally:
        os.umask(before)
    for place in (folder, folder.parent, tmp_path / "a" / "cache"):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700, place


def test_what_decides_the_machine_code_decides_the_folder():
    program = """
import os, numba
from refsd.numba_ops.cache import BFLOAT16, WIDTH, _fingerprint
print(f"{BFLOAT16},{WIDTH}")
for name, value in [("NUM_THREADS", "1"), ("BOUNDSCHECK", "1"), ("OPT", "1"),
                    ("LOOP_VECTORIZE", "0")]:
    print(_fingerprint())
    os.environ["NUMBA_" + name] = value
    numba.config.reload_config()
print(_fingerprint())
"""
    processors = {}  # not all have another level than "widen"
    for changes in ({}, {"REFSD_SIMD_BYTES": "16"},
                    {"REFSD_BFLOAT16": "widen", "REFSD_SIMD_BYTES": "64"}):
        processor, *names = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env=environment(**changes)).stdout.split()
        assert names[0] == names[1] and len(set(names)) == 4
        processors[processor] = set(names)
    assert len(set.union(*processors.values())) == 4 * len(processors) > 4


def test_the_sources_decide_the_folder(tmp_path, monkeypatch):
    """An edited helper in another file than the kernel's must not leave old code in use."""
    source = tmp_path / "numba_ops"
    shutil.copytree(ROOT / "refsd" / "numba_ops", source)
    monkeypatch.setattr(cache, "__file__", str(source / "cache.py"))
    names = []
    for edit in ("", "# another line\n", ""):
        with open(source / "vecmath.py", "a") as file:
            file.write(edit)
        names.append(cache._fingerprint())
    assert names[0] != names[1] == names[2]


def test_kernels_of_another_processor_are_not_taken(copied):
    folder, results = copied
    count, other, _ = call(folder, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="",
                           REFSD_SIMD_BYTES="64")
    assert count == 2
    assert call(folder) == (0, results, "")


def test_old_folders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSD_CACHE", str(tmp_path))
    kernels = tmp_path / "kernels"
    now = time.time()
    for number in range(8):
        folder = kernels / f"{number:016x}"
        folder.mkdir(parents=True, mode=0o700)
        (folder / ".used").write_bytes(b"")
        days = 40 if number == 1 else number
        os.utime(folder / ".used", (now - days * 86400,) * 2)
    kernels.chmod(0o700)
    tmp_path.chmod(0o700)
    (kernels / "notes").mkdir()

    found = cache.cache_folder.__wrapped__()
    left = {path.name for path in kernels.iterdir()}
    # The current one, the four used last, and what is not ours to judge.
    assert left == {found.name, "notes", *(f"{number:016x}" for number in (0, 2, 3, 4))}


def test_processes_that_start_at_once_share_the_work(tmp_path):
    """Four workers at once, cold: each kernel is compiled once, and the cache is whole."""
    env = environment(REFSD_CACHE=str(tmp_path / "cache"))
    workers = [subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    said = [worker.communicate(timeout=200) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, said
    assert len({tuple(out.split()[1:]) for out, _ in said}) == 1
    assert all(line.startswith("waiting for another process")  # on a busy machine
               for _, err in said for line in err.splitlines()), said
    assert sum(int(out.split()[0]) for out, _ in said) == 2
    assert call(tmp_path / "cache")[0] == 0


def test_the_lock_keeps_other_processes_out(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    program = f"""
import pathlib
from refsd.numba_ops import cache, warmup
cache.cache_folder = lambda: pathlib.Path({str(tmp_path)!r})
with cache.exclusive("test", on_wait=lambda: print("waits", flush=True)):
    print("in", flush=True)
"""
    with cache.exclusive("test"):
        child = subprocess.Popen([sys.executable, "-c", program], env=environment(), text=True,
                                 stdout=subprocess.PIPE)
        assert child.stdout.readline() == "waits\n"
        with cache.exclusive("another"):
            assert child.poll() is None
    assert child.communicate(timeout=60)[0] == "in\n"


@pytest.mark.parametrize("patience, said", [(0.05, ["waiting for another process, which compiles "
                                                     "the kernel same"]), (60, [])])
def test_a_long_wait_for_a_kernel_is_told(tmp_path, monkeypatch, caplog, patience, said):
    """Another process compiles it, and takes some seconds, or does not."""
    @jit
    def same(x):
        return x

    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr("refsd.numba_ops.jit.PATIENCE", patience)
    with ThreadPoolExecutor() as workers, ExitStack() as others:
        for number in range(64):  # whichever is its
            others.enter_context(cache.exclusive(f"compiling-{number}"))
        result = workers.submit(same, 7)
        time.sleep(0.3)
        assert not result.done()
        others.close()
        assert result.result(timeout=60) == 7
    assert [record.getMessage() for record in caplog.records
            if record.levelno >= logging.WARNING] == said


def test_a_forked_child_does_not_keep_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    reading, writing = os.pipe()
    with cache.exclusive("test"):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent lets go
            os._exit(0)
    waits = []
    try:
        with cache.exclusive("test", on_wait=lambda: waits.append(os.close(writing))):
            pass
    finally:
        if not waits:
            os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)
    assert not waits


def test_kernels_that_python_calls_give_nothing_back():
    """Planning a call skips it: a kernel that returned a value could not be planned."""
    for kernel, kinds in warmup.plan("float32"):
        kernel.entry.compile(kinds)
        assert all(found.signature.return_type == numba.none
                   for found in kernel.entry.overloads.values()), kernel
