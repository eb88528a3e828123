"""The device of a GPU on a driver that pretends: test_driver.py runs it where there is one."""

import gc
import threading
import time
from types import SimpleNamespace

import driver_standin
import numpy as np
import pytest

from refsd import functional as F
from refsd import registry
from refsd.errors import ResourceError
from refsd.numba_ops.cuda import array, device
from refsd.numba_ops.cuda.array import CHANNELS_LAST, empty, to_device
from refsd.numba_ops.cuda.driver import Driver
from refsd.numba_ops.cuda.exchange import from_dlpack
from refsd.numba_ops.cuda.layout import copy
from refsd.numba_ops.cuda.plan import Factory, Plan
from refsd.numba_ops.cuda.simulated import Simulated

standin = driver_standin.attach()
counts = driver_standin.counts


@pytest.fixture(autouse=True)
def gpu():
    """The current device. The driver is not asked for what it would refuse."""
    with device.on(Driver()) as gpu, registry.use("cuda"):
        yield gpu
        gpu.synchronize()
    assert standin.faults == [] and counts()["refused"] == 0


def test_a_device_gives_everything_back():
    """When nobody has it or its arrays any more."""
    before = counts()
    gpu = Driver()
    with device.on(gpu):
        x = to_device(numbers(300))
    assert counts()["pinned"] == before["pinned"] + 2
    del gpu
    gc.collect()
    assert counts()["pinned"] == before["pinned"] + 2  # x is on it
    del x
    gc.collect()
    after = counts()
    assert (after["pinned"], after["held"]) == (before["pinned"], before["held"])


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def silu(x):
    """On a device without a driver, which changes no bit."""
    with device.on(Simulated(capability=90)), registry.use("cuda"):
        return F.silu(to_device(x)).numpy()


@pytest.mark.parametrize("shape", [(0,), (), (5,), (2, 3, 4, 5), (16 << 18,), ((16 << 18) + 1,),
                                   (3, (16 << 18) // 3 * 2 + 5)])
def test_there_and_back(shape):
    """Through buffers of 16 MiB, whole and not whole, and none."""
    x, before, copied = numbers(*shape), counts(), dict(array.copies)
    there = to_device(x)
    x_before = x.copy()
    x += 1  # what was uploaded does not depend on it any more
    np.testing.assert_array_equal(there.numpy(), x_before)
    after = counts()
    assert after["to_device"] - before["to_device"] == -(-x.nbytes // (16 << 20))
    assert {k: n - copied[k] for k, n in array.copies.items()} == {"to_device": 1, "to_host": 1}


def test_views_and_orders():
    x = numbers(2, 3, 4, 5)
    there = to_device(x, CHANNELS_LAST)
    assert there.strides == (60, 1, 15, 3)
    np.testing.assert_array_equal(there.numpy(), x)
    np.testing.assert_array_equal(there[1:].numpy(), x[1:])
    np.testing.assert_array_equal(F.silu(there[1:]).numpy(), F.silu(to_device(x[1:])).numpy())
    gaps = there.part(1, 1, 3)  # a kernel is given memory up to its last element
    np.testing.assert_array_equal(F.silu(gaps).numpy(), F.silu(to_device(x[:, 1:3])).numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_an_op_has_the_bits_of_lockstep(dtype):
    x = numbers(3, 700, dtype=dtype)
    y = F.silu(to_device(x)).numpy()
    with device.on(Simulated()):
        np.testing.assert_array_equal(F.silu(to_device(x)).numpy(), y)


def line(gpu):
    """y = a x + b + c, of numbers of every kind."""
    uint32, cuda = gpu.uint32, gpu.cuda
    float32 = gpu.float32

    def kernel(x, y, n, a, b, c):
        i = uint32(cuda.blockIdx.x) * uint32(32) + uint32(cuda.threadIdx.x)
        if i < n:
            y[i] = a * x[i] + float32(b) + float32(c)

    return Plan(kernel, (gpu.array("float32"), gpu.array("float32"), uint32, float32, gpu.float64,
                         gpu.int32), 32, shared=64 << 10)


LINE = Factory(line, ((),), 75, "")


@pytest.mark.parametrize("a, b, c", [
    (0.5, 0.25, -3), (np.float64(0.5), np.float32(0.25), np.int64(-3)),
    (np.float32(0.5), 0.25, np.int32(-3)), (2, 1, 0)])
def test_numbers_reach_a_kernel(gpu, a, b, c):
    """Whatever Python calls them, they have the type that the kernel's signature says."""
    x = to_device(numbers(70))
    y = empty((70,), "float32")
    gpu.launch(LINE, (), (3,), (x, y, 70, a, b, c))
    expected = np.float32(a) * x.numpy() + np.float32(b) + np.float32(c)
    np.testing.assert_array_equal(y.numpy(), expected)
    assert counts()["largest_shared"] == 64 << 10  # leave was asked for it


def test_a_wrong_number_of_arguments(gpu):
    x = to_device(numbers(5))
    with pytest.raises(ValueError, match="argument"):
        gpu.launch(LINE, (), (1,), (x, x, 5))


def test_a_kernel_is_loaded_once_and_its_grids_are_kept(gpu):
    x = to_device(numbers(2400))  # four to a thread
    plans = len(standin.plans)
    for length in (40, 2400, 80, 1200):
        F.silu(x[:length])
    (kernel,) = gpu._kernels.values()
    assert sorted(kernel._grids) == [(1,), (2,), (3,)] and len(standin.plans) == plans + 1


def test_memory_is_used_again(gpu):
    x, before = to_device(numbers(1000)), counts()["allocated"]
    for _ in range(10):
        F.silu(F.silu(x))
    assert counts()["allocated"] - before == 2
    held = gpu.pool.held
    gpu.trim()
    assert gpu.pool.held == gpu.pool.used == 4096 and held == 3 * 4096
    np.testing.assert_array_equal(x.numpy(), numbers(1000))


def test_a_graph_reads_memory_of_others(gpu):
    """And holds it as long as it lives."""
    x = to_device(numbers(300))
    borrowed = [from_dlpack(x)]
    graph = gpu.capture(lambda: F.silu(*borrowed))
    borrowed.clear()
    del x
    gc.collect()
    to_device(numbers(300, seed=1))
    graph.replay()
    np.testing.assert_array_equal(graph.result.numpy(), silu(numbers(300)))


def test_another_thread_may_ask(gpu):
    x, results = to_device(numbers(30)), []

    def work():
        results.append(gpu.available())
        with registry.use("cuda"):
            results.append(F.silu(x).numpy())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(results[1], F.silu(x).numpy())


def test_a_graph_computes_when_it_is_replayed(gpu):
    """What it reads may be written anew, by a copy or an upload; its results are its own."""
    first, other = numbers(300), numbers(300, seed=1)
    x = to_device(first)
    before = counts()
    graph = gpu.capture(lambda: [F.silu(F.silu(x)), F.silu(x)])
    after = counts()
    assert graph.launches == 3 and after["launches"] == before["launches"]
    twice, once = graph.result
    assert np.isnan(once.numpy()).all()
    graph.replay()
    np.testing.assert_array_equal(once.numpy(), silu(first))
    np.testing.assert_array_equal(twice.numpy(), silu(silu(first)))
    copy(to_device(other), x)
    graph.replay()
    np.testing.assert_array_equal(twice.numpy(), silu(silu(other)))
    gpu.upload(first, x.block, 0)
    graph.replay()
    np.testing.assert_array_equal(once.numpy(), silu(first))
    assert counts()["replays"] - after["replays"] == 3


def test_the_memory_of_a_graph_is_its_own_until_it_dies(gpu):
    x = to_device(numbers(300))
    F.silu(F.silu(F.silu(x)))
    used = gpu.pool.used
    graph = gpu.capture(lambda: F.silu(F.silu(x)))
    assert graph.arena.held == gpu.pool.used - used > 0
    own = {graph.result.block.address, *(a for free in graph.arena._free.values() for a in free)}
    others = [F.silu(x) for _ in range(8)]
    assert not own & {y.block.address for y in others}
    graph.replay()
    result, expected = graph.result, graph.result.numpy()
    del graph
    more = [F.silu(x) for _ in range(8)]
    assert result.block.address not in {y.block.address for y in more}
    np.testing.assert_array_equal(result.numpy(), expected)
    del result, others, more
    assert gpu.pool.used == used


def test_what_a_graph_reads_lives_as_long(gpu):
    x = to_device(numbers(300))
    F.silu(F.silu(x))
    graph, address = gpu.capture(lambda x=x: F.silu(x)), x.block.address
    del x
    assert address not in {to_device(numbers(300, seed=2)).block.address for _ in range(3)}
    graph.replay()
    np.testing.assert_array_equal(graph.result.numpy(), silu(numbers(300)))
    graph.close()
    assert to_device(numbers(300)).block.address


def test_other_threads_wait_while_a_graph_is_captured(gpu):
    """What they ask for is no part of it, and not lost."""
    x, results = to_device(numbers(300)), []
    F.silu(x)

    def work():
        with registry.use("cuda"):
            results.append(F.silu(x).numpy())

    thread = threading.Thread(target=work)

    def step():
        thread.start()
        time.sleep(0.2)
        assert not results
        return F.silu(x)

    graph = gpu.capture(step)
    thread.join()
    np.testing.assert_array_equal(results[0], silu(numbers(300)))
    assert graph.launches == 1


def test_no_garbage_is_collected_while_a_graph_is_captured(gpu):
    """That of others may be memory of the driver, which takes none back then."""
    assert gc.isenabled() and gpu.capture(gc.isenabled).result is False and gc.isenabled()


def test_a_function_that_never_ran_can_be_captured(gpu):
    """Kernels are loaded and memory is found between attempts: while capturing there is none."""
    x = to_device(numbers(300))
    assert not gpu._kernels
    graph = gpu.capture(lambda: F.silu(F.silu(F.silu(x))))
    assert graph.launches == 3 and gpu._kernels
    graph.replay()
    np.testing.assert_array_equal(graph.result.numpy(), silu(silu(silu(numbers(300)))))


@pytest.mark.parametrize("what, said", [
    (lambda gpu, x: to_device(numbers(3)), "a copy from the host"),
    (lambda gpu, x: x.numpy(), "a copy to the host"),
    (lambda gpu, x: gpu.synchronize(), "waiting for the GPU"),
    (lambda gpu, x: gpu.capture(lambda: None), "a graph"),
    (lambda gpu, x: 1 / 0, None)])
def test_what_cannot_be_captured(gpu, what, said):
    """An error; after it the device is as before."""
    x = to_device(numbers(300))
    F.silu(x)
    used = gpu.pool.used
    with pytest.raises(RuntimeError if said else ZeroDivisionError,
                       match=f"^{said} within a graph: make it before" if said else "zero"):
        gpu.capture(lambda: [F.silu(x), what(gpu, x)])
    assert gpu.pool.used == used
    np.testing.assert_array_equal(F.silu(x).numpy(), silu(numbers(300)))


def test_a_step_that_never_settles(gpu):
    sizes = iter(range(10_000, 10**7, 100_000))
    with pytest.raises(ResourceError, match="captured 3 times.* other kernels or memory"):
        gpu.capture(lambda: empty((next(sizes),), "float32"))


def test_arrays_are_given_to_other_libraries_and_taken_from_them(gpu):
    """What is taken is theirs: the pool has no part in it."""
    x, used = to_device(numbers(300)), gpu.pool.used
    assert x.__cuda_array_interface__["stream"] == int(gpu.stream.handle)
    theirs = SimpleNamespace(__dlpack__=x.__dlpack__, __dlpack_device__=x.__dlpack_device__)
    y = to_device(theirs)
    assert y.block.address == x.block.address and gpu.pool.used == used
    np.testing.assert_array_equal(y.numpy(), x.numpy())
