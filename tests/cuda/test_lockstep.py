"""Python in lockstep is strict where a GPU is silent, and has the names of the compiler's side."""

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest

from refsd.numba_ops.cuda import lockstep, meaning
from refsd.numba_ops.cuda.lockstep import cuda, float32, float64, uint16, uint32
from refsd.numba_ops.cuda.plan import Plan

pytestmark = pytest.mark.usefixtures("order")
FULL = 0xFFFFFFFF


def me():
    return uint32(cuda.threadIdx.x)


def run(kernel, *arrays, threads=32, grid=(1,)):
    """The arrays after the kernel ran on copies of them."""
    arrays = [np.array(a) for a in arrays]
    plan = Plan(kernel, tuple(a.dtype for a in arrays), threads)
    lockstep.run(plan, grid, arrays)
    return arrays


def zeros(count, dtype="float32"):
    return np.zeros(count, dtype)


def test_both_sides_have_the_same_names():
    front = pytest.importorskip("refsd.numba_ops.cuda.front", reason="numba-cuda is not installed",
                                exc_type=ImportError)
    ours = {"compile_ptx", "SimpleNamespace", "types", "numba", "intrinsic", "ir"}
    theirs = {"current", "order", "run", "greenlet", "tally", "Any"}
    names = {n for n in vars(front) if n.islower() and n[0] != "_"} - ours - theirs
    modules = {n for n in names if inspect.ismodule(getattr(front, n))} - {"cuda"}
    assert names - modules > {"load4", "fma", "uint32", "array", "device", "mma_f16"}
    for name in names - modules:
        there, here = getattr(front, name), getattr(lockstep, name)
        definition = getattr(there, "_defn", None)
        if definition is not None:
            wanted = [p for p in inspect.signature(definition).parameters if p != "typingctx"]
            assert list(inspect.signature(here).parameters) == wanted, name
    for name in vars(cuda):
        assert hasattr(front.cuda, name), name


def test_integers_are_64_bits_once_computed_with():
    # As Numba types them: https://numba.readthedocs.io/en/stable/proposals/integer-typing.html
    def kernel(x, y):
        y[0] = ((uint32(me()) - uint32(1)) << uint32(16)) >> uint32(16)
        y[1] = x[0] * x[0]
        y[2] = uint32(uint32(0) - uint32(1))

    def one(x, y):
        if me() == uint32(0):
            kernel(x, y)

    _, y = run(one, np.array([FULL], "uint32"), zeros(3, "uint64"))
    assert y.tolist() == [2**48 - 1, FULL * FULL, FULL]


def by_one(body):
    """A kernel whose first thread does this."""
    def kernel(*arrays):
        if me() == uint32(0):
            body(*arrays)
    return kernel


def refused(error, match, kernel, *arrays, **options):
    with pytest.raises(error, match=match):
        run(kernel, *arrays, **options)


@pytest.mark.parametrize("index", [-1, 8, 2**40])
def test_out_of_bounds(index):
    refused(IndexError, "outside", by_one(lambda x: x[index]), zeros(8))
    refused(IndexError, "outside", by_one(lambda x: x.__setitem__(index, float32(1))), zeros(8))

    def table(x):
        cuda.local.array((2, 8), float32)[0, index] = float32(1)

    refused(IndexError, "outside", by_one(table), zeros(8))


@pytest.mark.parametrize("value", [1.0, np.float64(1), np.float16(1)])
def test_no_number_changes_its_type_unseen(value):
    refused(TypeError, "is written", by_one(lambda x: x.__setitem__(0, value)), zeros(8))
    for use in (lambda: meaning.exp2(value), lambda: meaning.fma(value, float32(1), float32(1)),
                lambda: meaning.bits_of(value), lambda: meaning.pack_f16(value, value)):
        with pytest.raises(TypeError, match="is given a"):
            use()
    for use in (lambda: meaning.exp(1.0), lambda: meaning.sqrt(2)):
        with pytest.raises(TypeError, match="is given a"):
            use()


def test_arguments_are_what_the_signature_says():
    plan = Plan(lambda x, n: None, (np.dtype("float32"), uint32), 32)
    lockstep.run(plan, (1,), [zeros(4), FULL])
    for arguments in ([zeros(4, "float64"), 1], [zeros((4, 2)), 1], [zeros(8)[::2], 1]):
        with pytest.raises(TypeError, match="signature"):
            lockstep.run(plan, (1,), arguments)
    for number in (-1, 2**32, 1.5):
        with pytest.raises(OverflowError, match="signature"):
            lockstep.run(plan, (1,), [zeros(4), number])


def test_vectors_keep_their_alignment():
    def load(i):
        return by_one(lambda x: meaning.load4(x, uint32(i)))

    run(load(4), zeros(8))
    refused(IndexError, "multiple of 16", load(2), zeros(8))
    refused(IndexError, "out of bounds", load(8), zeros(8))
    refused(IndexError, "out of bounds", load(4), zeros(7))
    plan = Plan(load(0), (np.dtype("float32"),), 32)
    with pytest.raises(IndexError, match="aligned to 4 bytes"):
        lockstep.run(plan, (1,), [lockstep.memory(9, np.float32, 256)[1:]])

    def shared(alignment):
        def kernel(x):
            tile = cuda.shared.array(64, float32, alignment)
            meaning.store4(tile, uint32(0), (float32(0),) * 4)
        return by_one(kernel)

    run(shared(16), zeros(1))
    refused(IndexError, "aligned to 4 bytes", shared(None), zeros(1))  # the compiler may do so


def test_memory_begins_as_nan():
    def kernel(x):
        x[0] = cuda.local.array(3, float32)[1]

    assert math.isnan(run(by_one(kernel), zeros(1))[0][0])

    def untouched(x):
        x[0] = cuda.shared.array(3, float32)[1]

    refused(RuntimeError, "nothing was written", by_one(untouched), zeros(1))


def test_threads_that_diverge():
    def in_a_branch(x):
        if me() < uint32(16):
            cuda.syncthreads()

    def two_lines(x):
        if me() < uint32(16):
            cuda.syncthreads()
        else:
            cuda.syncthreads()

    def total(value):
        return cuda.shfl_xor_sync(FULL, value, 1)

    def two_calls(x):
        if me() < uint32(16):
            total(float32(1))
        else:
            total(float32(2))

    def two_kinds(x):
        if me() < uint32(16):
            cuda.syncwarp()
        else:
            cuda.syncthreads()

    def ended_lanes(x):
        if me() >= uint32(3):
            total(float32(1))

    for kernel in (in_a_branch, two_lines, two_calls, two_kinds, ended_lanes):
        refused(RuntimeError, "diverge", kernel, zeros(1), threads=64)

    def an_ended_warp(x):
        if me() >= uint32(32):
            cuda.syncthreads()

    refused(RuntimeError, "some have ended", an_ended_warp, zeros(1), threads=64)
    refused(RuntimeError, "a warp of 8", lambda x: total(float32(1)) and None, zeros(1), threads=40)
    refused(ValueError, "mask", lambda x: cuda.shfl_xor_sync(0xFFFF, float32(1), 1), zeros(1))


def reversal(barriers, stride=1):
    """x[i] = x[last - i], through shared memory, twice in one tile."""
    def kernel(x):
        tile = cuda.shared.array(128, float32)
        last = uint32(cuda.blockDim.x) - uint32(1)
        for _ in range(2):
            tile[me() * uint32(stride)] = x[me()]
            barriers[0]()
            x[me()] = tile[(last - me()) * uint32(stride)]
            barriers[1]()
    return kernel


def test_a_race_between_two_barriers():
    x, nothing = np.arange(64, dtype="float32"), meaning.nothing
    assert np.array_equal(run(reversal([cuda.syncthreads] * 2), x, threads=64)[0], x)
    assert np.array_equal(run(reversal([cuda.syncwarp] * 2), x[:32], threads=32)[0], x[:32])
    for threads, barriers in [(64, [cuda.syncthreads, nothing]), (64, [nothing, cuda.syncthreads]),
                              (64, [cuda.syncwarp, cuda.syncthreads]),
                              (64, [cuda.syncthreads, cuda.syncwarp]),
                              (32, [cuda.syncwarp, nothing]), (32, [nothing, cuda.syncwarp])]:
        refused(RuntimeError, "race|nothing was written", reversal(barriers), x, threads=threads)


def test_many_readers_and_a_writer():
    def kernel(x):
        tile = cuda.shared.array(1, float32)
        if me() == uint32(5):
            tile[0] = x[0]
        cuda.syncthreads()
        x[me()] = tile[0]
        if me() == uint32(5):
            tile[0] = float32(2)

    refused(RuntimeError, "a race", kernel, zeros(32))


def test_a_shuffle_does_not_order_memory():
    def kernel(x):
        tile = cuda.shared.array(32, float32)
        tile[me()] = float32(1)
        cuda.shfl_xor_sync(FULL, float32(1), 1)
        x[me()] = tile[me() ^ uint32(1)]

    refused(RuntimeError, "a race", kernel, zeros(32))


def test_views_of_the_dynamic_memory_are_one_memory():
    def kernel(x):
        floats, halves = cuda.shared.array(0, float32), cuda.shared.array(0, np.float16)
        if me() == uint32(0):
            floats[1] = float32(1)
        cuda.syncwarp()
        x[me()] = floats[1]
        if me() == uint32(3):
            halves[3] = np.float16(0)

    plan = Plan(kernel, (np.dtype("float32"),), 32, shared=64)
    with pytest.raises(RuntimeError, match="a race"):
        lockstep.run(plan, (1,), [zeros(32)])


def test_blocks_do_not_wait_for_each_other():
    def neighbours(x):
        i = uint32(cuda.blockIdx.x)
        x[i] = float32(1)
        x[uint32(2) + i] = x[uint32(1) - i]

    refused(RuntimeError, "another block", by_one(neighbours), zeros(4), grid=(2,))
    refused(RuntimeError, "another block", by_one(lambda x: x.__setitem__(0, float32(1))), zeros(1),
            grid=(1, 2))
    refused(RuntimeError, "a race", lambda x: x.__setitem__(0, float32(1)), zeros(1))


def staged(wait, commit=meaning.commit):
    """Two copies on the way, the first is read."""
    def kernel(x, y):
        tile = cuda.shared.array(256, float32, 16)
        for stage in range(2):
            meaning.copy16(tile, uint32(stage * 128) + me() * uint32(4), x,
                           uint32(stage * 128) + me() * uint32(4), me() < uint32(31))
            commit()
        wait()
        cuda.syncthreads()
        y[me()] = tile[me() * uint32(4) + uint32(3)]
    return kernel


def test_copies_arrive_when_they_are_waited_for():
    x = np.arange(256, dtype="float32")
    for wait in (meaning.wait0, meaning.wait1):
        y = run(staged(wait), x, zeros(32))[1]
        assert y.tolist() == [*range(3, 127, 4), 0]
    for wait in (meaning.wait2, meaning.nothing):
        refused(RuntimeError, "before the copy", staged(wait), x, zeros(32))
    refused(RuntimeError, "before the copy", staged(meaning.wait0, meaning.nothing), x, zeros(32))


def test_shuffles():
    x = np.random.default_rng(0).integers(0, 2**32, 32, "uint32").view("float32")
    for shuffle, source in [(cuda.shfl_sync, lambda i: 5), (cuda.shfl_xor_sync, lambda i: i ^ 5),
                            (cuda.shfl_down_sync, lambda i: i + 5 if i < 27 else i),
                            (cuda.shfl_up_sync, lambda i: i - 5 if i > 4 else i)]:
        def kernel(x, shuffle=shuffle):
            x[me()] = shuffle(FULL, x[me()], 5)

        y = run(kernel, x)[0].view("uint32").tolist()
        assert y == [x.view("uint32")[source(i)] for i in range(32)]


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    """Thread i gets of matrix m elements (i / 4, 2 (i % 4)) and the next, of its transpose."""
    load = meaning.ldmatrix_t if transposed else meaning.ldmatrix
    x = np.random.default_rng(1).integers(0, 2**16, 512, "uint16")

    def kernel(x, y):
        tile = cuda.shared.array(512, uint16, 16)
        for i in range(16):
            tile[me() + uint32(32 * i)] = x[me() + uint32(32 * i)]
        cuda.syncthreads()
        words = load(tile, me() * uint32(16))  # rows of 16: every other chunk
        for m in range(4):
            y[me() * uint32(4) + uint32(m)] = words[m]

    meaning.tally.update(ldmatrix=0, conflicts=0)
    y = run(kernel, x, zeros(128, "uint32"))[1].reshape(32, 4)
    assert meaning.tally == {"ldmatrix": 4, "conflicts": 16}  # rows 4 apart have the same banks
    rows = x.reshape(4, 8, 16)[:, :, :8]
    for lane, m in np.ndindex(32, 4):
        r, c = lane // 4, 2 * (lane % 4)
        pair = rows[m, c:c + 2, r] if transposed else rows[m, r, c:c + 2]
        assert y[lane, m] == int(pair[0]) | int(pair[1]) << 16


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mma(kind):
    """c + A B, each fragment spelt out by the tables of PTX ISA 9.7.14.5.8 (m16n8k16)."""
    g = np.random.default_rng(2)
    words = g.integers(0, 2**32, (32, 6), "uint32")
    words = words & 0xBFFFBFFF  # exponents below the middle: no sum overflows
    sums = g.standard_normal((32, 4), np.float32)

    def kernel(ab, c):
        a = tuple(ab[me() * uint32(6) + uint32(i)] for i in range(4))
        b = tuple(ab[me() * uint32(6) + uint32(4 + i)] for i in range(2))
        at = me() * uint32(4)
        d = getattr(meaning, f"mma_{kind}")(a, b, tuple(c[at + uint32(i)] for i in range(4)))
        for i in range(4):
            c[at + uint32(i)] = d[i]

    got = run(kernel, words.ravel(), sums.ravel())[1].reshape(32, 4)

    def half(word, i):
        bits = int(word) >> 16 * (i % 2) & 0xFFFF
        if kind == "bf16":
            return float(np.uint32(bits << 16).view("float32"))
        return float(np.uint16(bits).view("float16"))

    A, B, C = {}, {}, {}
    for lane in range(32):
        group, in_group = lane >> 2, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            A[row, in_group * 2 + (i & 1) + (8 if i >= 4 else 0)] = half(words[lane, i // 2], i)
        for i in range(4):
            B[in_group * 2 + (i & 1) + (8 if i >= 2 else 0), group] = half(words[lane, 4 + i // 2],
                                                                           i)
        for i in range(4):
            C[group + (8 if i >= 2 else 0), in_group * 2 + (i & 1)] = lane, i
    for (row, column), (lane, i) in C.items():
        terms = [float(sums[lane, i]), *(A[row, k] * B[k, column] for k in range(16))]
        exact = math.fsum(terms)  # the products are; float64 adds 17 terms, float32 rounds once
        roundings = 17 * 2**-53 * math.fsum(map(abs, terms))
        assert abs(got[lane, i] - exact) <= roundings + 2**-24 * (abs(exact) + roundings)


@np.errstate(all="ignore")
def test_functions_round_once():
    g = np.random.default_rng(3)
    for dtype in (float32, float64):
        for _ in range(50):
            a, b, c = (dtype(v) for v in g.standard_normal(3))
            c = -dtype(a * b) if g.random() < 0.5 else c  # the product's own rounding is left
            exact = dtype(float(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))))
            assert meaning.fma(a, b, c) == exact and type(meaning.fma(a, b, c)) is dtype
    assert math.isinf(meaning.exp(float32(1000))) and meaning.exp(float32(-1000)) == 0
    assert math.isnan(meaning.sqrt(float32(-1))) and meaning.sqrt(float32(4)) == 2
    assert meaning.exp2(float32(-140)) == 0 and meaning.exp2(float32(3)) == 8
    low, high = float32(1 / 3), float32(65520)
    assert meaning.pack_f16(low, high) == 0x3555 | 0x7C00 << 16
    assert meaning.pack_bf16(low, float32(math.nan)) == 0x3EAB | 0x7FFF << 16
