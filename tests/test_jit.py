"""The decorator and the cache of compiled kernels: what is kept, and what goes wrong around it."""

import os
import stat
import subprocess
import sys
import time

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


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_cache_is_made_anew(copied, ending, damage):
    folder, results = copied
    files = sorted(folder.rglob(f"*.{ending}"))
    assert len(files) == 2
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:len(whole) // 2] if damage is None else damage)
    count, again, said = call(folder)
    assert (count, again) == (2, results)
    assert said.count("was damaged") == 1 and "Traceback" not in said
    assert call(folder) == (0, results, "")


def test_a_full_disk_costs_a_warning(full, tmp_path):
    count, results, said = call(tmp_path / "new", limit=limit_file_size(4096))
    assert (count, results) == (2, full[1])
    assert "could not be kept" in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.parametrize("where", ["/proc/refsd", "/dev/null/refsd"])
def test_without_a_place_to_write_nothing_is_kept(full, where):
    count, results, said = call(where)
    assert (count, results) == (2, full[1])
    assert said.count("are not kept") == 1


def test_without_a_home_nothing_is_kept(full):
    count, results, said = call("", HOME="/proc/nobody")
    assert (count, results) == (2, full[1])
    assert said.count("are not kept") == 1


@pytest.mark.parametrize("part", ["", "kernels", "kernels/*"], ids=["root", "kernels", "folder"])
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_where_others_may_write_is_refused(copied, part, mode):
    folder, results = copied
    place = next(folder.glob(part)) if part else folder
    place.chmod(mode)
    count, again, said = call(folder)
    assert (count, again) == (2, results), "it loaded kernels that others may have planted"
    assert str(place) in said and "others may write" in said


def test_its_own_folders_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        call(tmp_path / "a" / "cache")
    finally:
        os.umask(before)
    for place in (tmp_path / "a" / "cache", *(tmp_path / "a" / "cache").rglob("*/")):
        if place.is_dir() and place.name != "strict":
            assert stat.S_IMODE(place.stat().st_mode) == 0o700, place


@pytest.mark.parametrize("changes", [
    {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_OPT": "1"}, {"NUMBA_LOOP_VECTORIZE": "0"},
    {"REFSD_SIMD_BYTES": "16"}, {"REFSD_BFLOAT16": "widen", "REFSD_SIMD_BYTES": "64"},
], ids=lambda changes: next(iter(changes)))
def test_what_decides_the_machine_code_decides_the_folder(changes, tmp_path):
    program = "from refsd.numba_ops.cache import cache_folder; print(cache_folder().name)"
    names = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                            check=True, env=environment(REFSD_CACHE=str(tmp_path), **more)).stdout
             for more in ({}, {"NUMBA_NUM_THREADS": "1"}, changes)]
    assert names[0] == names[1] != names[2]


def test_the_sources_decide_the_folder(tmp_path):
    """An edited helper in another file than the kernel's must not leave old code in use."""
    source = tmp_path / "refsd"
    subprocess.run(["cp", "-r", str(ROOT / "refsd"), str(source)], check=True)
    program = "from refsd.numba_ops.cache import cache_folder; print(cache_folder().name)"
    names = []
    for edit in ("", "# another line\n", ""):
        with open(source / "numba_ops" / "vecmath.py", "a") as file:
            file.write(edit)
        env = environment(REFSD_CACHE=str(tmp_path / "cache")) | {"PYTHONPATH": str(tmp_path)}
        names.append(subprocess.run([sys.executable, "-c", program], capture_output=True,
                                    text=True, check=True, env=env, cwd=tmp_path).stdout)
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


def test_two_processes_number_their_files_apart(tmp_path):
    """Four workers at once, cold: all right, and together they leave a whole cache."""
    env = environment(REFSD_CACHE=str(tmp_path / "cache"))
    workers = [subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    said = [worker.communicate(timeout=200) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, said
    assert len({tuple(out.split()[1:]) for out, _ in said}) == 1
    assert all(err == "" for _, err in said)
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


def test_kernels_that_python_calls_give_nothing_back():
    """Planning a call skips it: a kernel that returned a value could not be planned."""
    for kernel, kinds in warmup.plan("float32"):
        kernel.entry.compile(kinds)
        assert all(found.signature.return_type == numba.none
                   for found in kernel.entry.overloads.values()), kernel
