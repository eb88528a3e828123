"""A driver without a GPU (standin/libcuda.c): built, and given to a process.

Tests call `run`; the programs that it runs call `attach`.
"""

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
COUNTS = ("launches", "captured", "replays", "to_device", "to_host", "allocated", "freed", "held",
          "pinned", "largest_shared", "refused")
LAUNCHED = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint),
                            ctypes.POINTER(ctypes.c_void_p), ctypes.c_long)
REPLAYED = ctypes.CFUNCTYPE(None, ctypes.c_long)


@functools.cache
def built():
    """The folder of libcuda.so.1; it is removed when this process ends."""
    folder = tempfile.TemporaryDirectory()
    source = Path(__file__).with_name("standin") / "libcuda.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-w", "-o", f"{folder.name}/libcuda.so.1",
                    str(source), "-ldl"], check=True)
    return folder


def environment(**changes):
    """Of a process that finds the stand-in, or, driver=False, no driver at all."""
    env = {k: v for k, v in os.environ.items() if k not in ("REFSD_CUDA", "CUDA_LAUNCH_BLOCKING")}
    folder = built().name if changes.pop("driver", True) else None
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return {**env, **({"LD_LIBRARY_PATH": folder} if folder else {}), **changes}


def run(program, *, code=0, timeout=120, **changes):
    """What a Python program prints, by lines; where another exit code is wanted, its errors."""
    command = program if isinstance(program, list) else [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**changes),
                          timeout=timeout)
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stdout if code == 0 else done.stderr).splitlines()


def counts():
    """What the stand-in has counted."""
    library = ctypes.CDLL("libcuda.so.1")
    library.standin_count.restype = ctypes.c_long
    return {name: library.standin_count(i) for i, name in enumerate(COUNTS)}


class attach:
    """Kernels need no compiler, and run in lockstep on the stand-in's memory when it launches them.

    What goes wrong there is in `faults`, for nothing can be raised through C. idle=True: they do
    nothing, in no time.
    """

    def __init__(self, idle=False):
        from refsd.numba_ops.cuda import lockstep, store
        from refsd.numba_ops.cuda.compiler import Cubin, target_of

        self.run = (lambda *_: None) if idle else lockstep.run
        self.plans, self.graphs, self.faults = {}, {}, []

        def cubin(factory, constants, capability):
            plan, entry = factory(lockstep, *constants), f"{factory.name}_{len(self.plans)}"
            self.plans[entry] = plan
            kinds = tuple("array" if isinstance(kind, np.dtype) else kind.__name__
                          for kind in plan.signature)
            return Cubin(entry, kinds, plan.threads, plan.shared, 0, 32, 0,
                         target_of(factory, capability), b"\x7fELF")

        store.cubin = cubin
        self.keep = LAUNCHED(self.launched), REPLAYED(self.replayed)
        ctypes.CDLL("libcuda.so.1").standin_kernels(*self.keep)

    def launched(self, name, shape, arguments, graph):
        try:
            plan = self.plans[name.decode()]
            grid, block, shared = tuple(shape[:3]), tuple(shape[3:6]), shape[6]
            assert (block, shared) == ((plan.threads, 1, 1), plan.shared), (block, shared)
            call = functools.partial(self.run, plan, grid, self.values(plan, arguments))
            if graph:
                self.graphs.setdefault(graph, []).append(call)
            else:
                call()
        except BaseException as problem:
            self.faults.append(repr(problem))

    def replayed(self, graph):
        try:
            for call in self.graphs[graph]:
                call()
        except BaseException as problem:
            self.faults.append(repr(problem))

    def values(self, plan, pointers):
        """Arguments as a kernel of Numba reads them from its parameters."""
        values, place = [], 0
        for kind in plan.signature:
            if isinstance(kind, np.dtype):
                words = [ctypes.c_uint64.from_address(pointers[place + i]).value for i in range(7)]
                assert words[:2] == [0, 0] and words[2] == words[5], words
                assert words[3] == words[6] == kind.itemsize, words
                memory = (ctypes.c_uint8 * (words[2] * kind.itemsize)).from_address(words[4])
                values.append(np.frombuffer(memory, kind))
                place += 7
            else:
                number = np.dtype(kind)
                memory = (ctypes.c_uint8 * number.itemsize).from_address(pointers[place])
                values.append(kind(np.frombuffer(memory, number)[0]))
                place += 1
        return values
