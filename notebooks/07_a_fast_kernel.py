# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Writing a fast kernel
#
# Nearly all the time of Stable Diffusion goes into one sum. Linear layers are it, attention is it
# twice, and a convolution is it after a change of indices ([notebook 2](02_convolution.ipynb)):
#
# $$y_{ij} = \sum_{k=1}^{K} a_{ik}\, b_{kj}, \qquad a\,(M, K),\; b\,(K, N) \to y\,(M, N):
#   \quad 2MNK \text{ FLOPs}.$$
#
# Here it is written eight times, from a Python loop to what refsd runs. Two rules hold all the
# way up:
#
# 1. a kernel is **checked before it is timed**, against a bound that is derived, not chosen;
# 2. a time is compared with **what the machine can do**, not with the kernel before.

# %%
import math
import re
import time
from collections import Counter
from typing import NamedTuple

import matplotlib.pyplot as plt
import numba
import numpy as np
from numba import njit, prange
from pace import few

import refsd
from refsd import functional as F
from refsd.golden.tolerances.bounds import bound
from refsd.numba_ops.memory import aligned_empty
from refsd.numba_ops.simd import WIDTH, fma, lanes, load, splat, store
from refsd.numba_ops.tile import ROWS, VECTORS, tile
from refsd.numba_ops.weights import pack_weight
from refsd.registry import ops

plt.style.use("refsd.mplstyle")
CORES = numba.get_num_threads()


def on(threads):
    return "1 thread" if threads == 1 else f"{threads} threads"


def seconds(function):
    """The fastest of several runs: whatever disturbs a run makes it slower, never faster."""
    best, end = math.inf, time.perf_counter() + few(0.4, 0.0)
    while best == math.inf or time.perf_counter() < end:
        begun = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begun)
    return best


print(f"{on(CORES)}, vectors of {WIDTH} bytes: {WIDTH // 4} float32 numbers")

# %% [markdown]
# ## The roof
#
# A core has units that multiply a vector by a vector and add a third, in one instruction (FMA):
# two FLOPs for each lane. It has units that load a vector from the first-level cache. And there
# is the way to memory. Each of the three has a top speed, which no program exceeds.
#
# **Question.** What is your core's peak in GFLOP/s? Multiply: lanes, times 2, times FMA units (1
# or 2), times GHz.
#
# We measure all three. Twelve sums in registers, added to without a break, and a walk over an
# array that fits into the cache, or does not:

# %%
@njit(parallel=True)
def multiply_add(x, times, out):
    """On each of len(out) threads: 12 vectors of sums, so that none waits for its last addition."""
    n = lanes(x)
    for t in prange(len(out)):
        p, q = load(x, 0), load(x, n)
        a, b, c, d, e, f = load(x, 0), load(x, 1), load(x, 2), load(x, 3), load(x, 4), load(x, 5)
        g, h, i, j, k, m = load(x, 6), load(x, 7), load(x, 8), load(x, 9), load(x, 10), load(x, 11)
        for _ in range(times):
            a, b, c, d = fma(p, q, a), fma(p, q, b), fma(p, q, c), fma(p, q, d)
            e, f, g, h = fma(p, q, e), fma(p, q, f), fma(p, q, g), fma(p, q, h)
            i, j, k, m = fma(p, q, i), fma(p, q, j), fma(p, q, k), fma(p, q, m)
        store(out[t], 0, a + b + c + d + e + f + g + h + i + j + k + m)


@njit(parallel=True)
def read(x, times, out):
    """On each of len(out) threads: every vector of the row x[t], `times` over."""
    n = lanes(x)
    for t in prange(len(out)):
        row = x[t]
        a = b = c = d = e = f = g = h = splat(np.float32(0))
        for _ in range(times):
            for i in range(0, len(row), 8 * n):
                a, b = a + load(row, i), b + load(row, i + n)
                c, d = c + load(row, i + 2 * n), d + load(row, i + 3 * n)
                e, f = e + load(row, i + 4 * n), f + load(row, i + 5 * n)
                g, h = g + load(row, i + 6 * n), h + load(row, i + 7 * n)
        store(out[t], 0, a + b + c + d + e + f + g + h)


def roof(threads):
    """GFLOP/s, and GB/s from the first-level cache and from memory, of so many threads."""
    def ones(size):
        memory = aligned_empty(threads * size, "f4")
        memory[:] = 1
        return memory.reshape(threads, size)

    out, n, times = np.zeros((threads, 16), "f4"), WIDTH // 4, few(250_000, 1000)
    x, near, far = np.ones(64, "f4"), ones(4096), ones(few(2**25, 2**16) // threads)
    run = {"fma": (lambda: multiply_add(x, times, out), 24 * n * times * threads),
           "cache": (lambda: read(near, few(10_000, 10), out), few(10_000, 10) * near.nbytes),
           "memory": (lambda: read(far, 1, out), far.nbytes)}
    for function, _ in run.values():
        function()  # compiles
    return {what: 1e-9 * count / seconds(function) for what, (function, count) in run.items()}


roofs = {threads: roof(threads) for threads in sorted({1, CORES})}
for threads, top in roofs.items():
    print(f"{on(threads)}: {top['fma']:.0f} GFLOP/s; GB/s from the first-level cache "
          f"{top['cache']:.0f}, from memory {top['memory']:.1f}")

# %% [markdown]
# ## The check
#
# In float32 every product and every sum is rounded, by at most $u = 2^{-24}$ of its size. With
# $K$ products in any order (Higham 2002, section 3.1)
#
# $$|\hat y_{ij} - y_{ij}| \le \gamma_K \sum_k |a_{ik}||b_{kj}|,
#   \qquad \gamma_K = (1-u)^{-K} - 1 \approx K u.$$
#
# That is the *worst* case. Roundings point up and down, so the *likely* bound grows with
# $\sqrt K$ instead. refsd derives both ([tolerances](../docs/tolerances.md)); we hold every
# kernel to the smaller. Its result begins as NaN, so that what was never written shows.
#
# **Question.** A kernel forgets the last of 768 products. Does the check see it? Would you, in a
# picture?

# %%
# 756 = 54 * 14 = 126 * 6 = 189 * 4: no tile below leaves a rest, which real kernels must handle.
M, K, N = few((756, 768, 768), (84, 96, 96))
rng = np.random.default_rng(0)
a, b = rng.standard_normal((M, K), "f4"), rng.standard_normal((K, N), "f4")
truth = a.astype("f8") @ b.astype("f8")
allowed = bound("matmul", [a, b], {}, truth, given=True)


class Rung(NamedTuple):
    name: str
    gflops: float
    intensity: float  # FLOPs for each byte that the inner loop loads or stores
    threads: int


def check(multiply, *operands, rows=M, columns=N):
    """The result's memory, and the largest share of the likely bound that its errors use."""
    y = np.full((rows, columns), np.nan, "f4")
    multiply(*operands, y)
    share = np.max(abs(y - truth[:rows, :columns]) / allowed.likely[:rows, :columns])
    assert share <= 1, f"wrong: the largest error is {share:.3g} times the likely bound"
    return y, share


def climb(name, multiply, intensity, *operands, threads=1, **part):
    """Check, then time; the rung is kept for the pictures below."""
    y, share = check(multiply, *operands, **part)
    gflops = 2e-9 * y.size * K / seconds(lambda: multiply(*operands, y))
    peak = roofs[threads]["fma"]
    ladder.append(Rung(name, gflops, intensity, threads))
    print(f"{len(ladder)}. {name}: {gflops:.3g} GFLOP/s, {gflops / peak:.2%} of the peak of "
          f"{on(threads)}; largest error {share:.2f} of the likely bound")


def forgetful(a, b, y):
    y[:] = a[:, :-1] @ b[:-1]


ladder = []
print(f"largest bounds: worst {allowed.worst.max():.1e}, likely {allowed.likely.max():.1e}, "
      f"beside results of up to {abs(truth).max():.0f}")
try:
    check(forgetful, a, b)
except AssertionError as found:
    print("forgetful is", found)

# %% [markdown]
# ## 1 and 2. Python, and NumPy a row at a time
#
# The formula as three loops. Python looks up types and makes an object for every number. NumPy
# does that once for each row, and its inner loops are compiled; but it writes all products of a
# row to memory before it adds them up.
#
# **Question.** How many times faster is the second?

# %%
def loops(a, b, y):
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            total = np.float32(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            y[i, j] = total


def by_rows(a, b, y):
    for i in range(len(y)):
        y[i] = (a[i, :, None] * b).sum(axis=0)


climb("Python loops", loops, 2 / 8, a, b, rows=4, columns=few(16, 4))
climb("NumPy by rows", by_rows, 2 / 12, a, b, rows=few(64, 8))

# %% [markdown]
# ## 3. Compiled: `njit`
#
# The same source, compiled by Numba. Here is the inner loop in the processor's own language,
# found in the kernel's assembly as the loop with most arithmetic.
#
# **Question.** The same formula as machine code: is it faster than NumPy's rows? Look at the
# suffixes: `ss` is *scalar single* (one number), `ps` *packed single* (a vector); `xmm`, `ymm`
# and `zmm` are registers of 16, 32 and 64 bytes.

# %%
ARITHMETIC = re.compile(r"v?(fn?m(add|sub)\d+|mul|add)[ps][sd]$|f(mla|madd|mul|add)$")


REGISTER = re.compile(r"[xyz]mm|v\d+\.\ds")  # of x86, of ARM
LANES = {"xmm": 4, "ymm": 8, "zmm": 16}


def arithmetic(words):
    """(instruction, kind of register, numbers that it computes), or None for loads and jumps."""
    if not ARITHMETIC.match(words[0]):
        return None
    found = REGISTER.search(" ".join(words[1:]))
    kind = re.sub(r"\d+\.", ".", found[0]) if found else ""
    return words[0], kind, 1 if words[0].endswith("ss") else LANES.get(kind, 4 if kind else 1)


def inner_loop(kernel):
    """The instructions of the loop, of those that hold no other, that computes most numbers."""
    text = kernel.inspect_asm(kernel.signatures[0])
    lines = [re.split(r"#|//|;", line)[0].split() for line in text.splitlines()]
    lines = [words for words in lines if words and (words[0][0] != "." or words[0][-1] == ":")]
    labels = {words[0][:-1]: at for at, words in enumerate(lines) if words[0][-1] == ":"}
    loops = [(labels[words[-1]], at) for at, words in enumerate(lines)
             if labels.get(words[-1], at) < at]  # a jump back
    inner = [[words for words in lines[low:high + 1] if words[0][-1] != ":"] for low, high in loops
             if not any(low <= start and end < high for start, end in loops)]
    return max(inner, key=lambda loop: sum(found[2] for found in map(arithmetic, loop) if found))


def show_assembly(kernel, most=8):
    """How often which arithmetic occurs on which registers, and the loop's first instructions."""
    loop = inner_loop(kernel)
    counts = Counter(found[:2] for found in map(arithmetic, loop) if found)
    print(f"{len(loop)} instructions, among them", ", ".join(
        f"{count} {mnemonic} on {kind}" for (mnemonic, kind), count in counts.items()))
    print(*("    " + " ".join(words) for words in loop[:most]), "    ..." * (len(loop) > most),
          sep="\n")


compiled = njit(loops)
climb("njit", compiled, 2 / 8, a, b)
show_assembly(compiled)

# %% [markdown]
# Two things hold it back. Each addition waits for the one before: the sum is one chain, and
# without leave to add up in another order the compiler must keep it. And $b_{kj}$ and $b_{k+1,j}$
# lie a whole row apart, so they cannot be loaded as one vector.
#
# ## 4. Swap two loops
#
# With $k$ outside $j$ the inner loop runs along rows of $b$ and $y$, and its additions belong to
# different sums.
#
# **Question.** The multiplications are the same, so is their order within each sum. How much does
# it gain? What limits it now?

# %%
@njit(fastmath={"contract"})  # lets a product and a sum be one FMA, and nothing else
def one_row(a, b, y):
    y[:] = 0
    for k in range(len(a)):
        for j in range(len(y)):
            y[j] += a[k] * b[k, j]


@njit
def swapped(a, b, y):
    for i in range(len(y)):
        one_row(a[i], b, y[i])


climb("loops swapped", swapped, 2 / 12, a, b)
show_assembly(one_row)

# %% [markdown]
# Vectors, without a word about them in the source. But for each multiply-add the loop loads $b$,
# loads $y$ and stores $y$: twelve bytes for two FLOPs, and there are fewer units for loads and
# stores than that takes.
#
# ## 5. All cores: `prange`
#
# Rows of $y$ do not depend on each other. `prange` shares them out. Whoever computes a row adds
# it up in the same order, so the bits are the same for any number of threads; a sum shared by
# several threads would not have that.
#
# **Question.** By which factor can this be faster at most?

# %%
@njit(parallel=True)
def on_all_cores(a, b, y):
    for i in prange(len(y)):
        one_row(a[i], b, y[i])


climb("prange", on_all_cores, 2 / 12, a, b, threads=CORES)
alone, shared = np.zeros_like(truth, "f4"), np.zeros_like(truth, "f4")
swapped(a, b, alone)
on_all_cores(a, b, shared)
print("the same bits as alone:", np.array_equal(alone, shared))

# %% [markdown]
# ## 6. Sums in a register: the vector type
#
# $y$ need not go to memory and back $K$ times: hold one vector of it in a register, and let $k$
# run inside again. `refsd.numba_ops.simd` gives Numba a type for that: `load`, `store`, `fma`,
# `+`, `*` on one vector of the machine, each one instruction; `splat` puts a number into every
# lane.
#
# **Question.** The loop moves less than half as many bytes for each FLOP. Is it faster?

# %%
@njit
def one_vector(row, b, j, N, y, at):
    total = splat(np.float32(0))
    for k in range(len(row)):
        total = fma(splat(row[k]), load(b, k * N + j), total)
    store(y, at, total)


@njit(parallel=True)
def by_vectors(a, b, y):
    N, right, out = b.shape[1], b.reshape(-1), y.reshape(-1)
    for i in prange(len(y)):
        for j in range(0, N, lanes(y)):
            one_vector(a[i], right, j, N, out, i * N + j)


n = WIDTH // 4
climb("one vector", by_vectors, 2 * n / (4 * n + 4), a, b, threads=CORES)
show_assembly(one_vector)

# %% [markdown]
# The units could do far more with what is loaded. But an FMA takes about four cycles until its
# result can be used, and here each waits for the one before: **latency**, not throughput, is the
# limit. Latency times units, about eight sums that do not wait for each other, keep them busy.
#
# ## 7. A tile of sums
#
# A tile of 4 rows by 2 vectors has eight. It brings a second gain: a vector of $b$ that was
# loaded serves four rows, a number of $a$ two vectors. A tile of $r \times v$ vectors with $n$
# lanes each has, for every $k$, $2rvn$ FLOPs for $4(r + vn)$ bytes.
#
# **Question.** Which tile is best with 32 vector registers? One register holds a number of $a$,
# $v$ hold $b$, the rest are sums.

# %%
@njit
def small_tile(r0, r1, r2, r3, b, j, N, y, at):
    n, zero = lanes(y), splat(np.float32(0))
    s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero
    for k in range(len(r0)):
        left, right = load(b, k * N + j), load(b, k * N + j + n)
        x0, x1, x2, x3 = splat(r0[k]), splat(r1[k]), splat(r2[k]), splat(r3[k])
        s0, s1, s2, s3 = fma(x0, left, s0), fma(x1, left, s1), fma(x2, left, s2), fma(x3, left, s3)
        t0, t1 = fma(x0, right, t0), fma(x1, right, t1)
        t2, t3 = fma(x2, right, t2), fma(x3, right, t3)
    for i, s, t in ((0, s0, t0), (1, s1, t1), (2, s2, t2), (3, s3, t3)):
        store(y, at + i * N, s)
        store(y, at + i * N + n, t)


@njit(parallel=True)
def by_tiles(a, b, y):
    N, right, out = b.shape[1], b.reshape(-1), y.reshape(-1)
    for i in prange(len(y) // 4):
        rows = a[4 * i:4 * i + 4]
        for j in range(0, N, 2 * lanes(y)):
            small_tile(rows[0], rows[1], rows[2], rows[3], right, j, N, out, 4 * i * N + j)


climb("tile of 4 x 2", by_tiles, 16 * n / (4 * (4 + 2 * n)), a, b, threads=CORES)
show_assembly(small_tile)
for r, v in (1, 1), (4, 2), (28, 1), (14, 2), (9, 3), (5, 5):
    print(f"{r:2} x {v}: {r * v + v + 1:2} registers, {r * v / (r + v):.2f} FMAs a load, "
          f"{2 * r * v * n / (4 * (r + v * n)):.2f} FLOPs a byte")

# %% [markdown]
# ## 8. The largest tile, fed from the caches
#
# A core loads one or two vectors in the time of an FMA or two, so a tile with well over one FMA a
# load leaves the roof of the cache behind. refsd's `tile` (`numba_ops/tile.py`) has 14 x 2
# vectors where there are 32 registers, 6 x 2 where there are 16. It is the loop above, written as
# LLVM code because nobody wants to name 28 sums.
#
# Now the rows of $b$ matter, which lie far apart: each $k$ touches other lines of the cache, and
# they compete for the same places. So $b$ is **packed**: cut into panels as wide as a tile, each
# row after row without gaps. And $k$ is cut into **blocks**, so that the block of a panel in use
# stays in the first-level cache while all rows of $a$ pass by (Goto and van de Geijn 2008).
#
# **Question.** The errors become smaller. Why? (The bound for sums in blocks is smaller, too.)

# %%
WHOLE = np.zeros(1, "i8")  # where the pieces of a row begin: there is one


@njit
def one_panel(a, panels, p, depth, whole, y):
    (M, K), width, left = a.shape, VECTORS * lanes(y), a.reshape(-1)
    c = np.empty(ROWS * width, y.dtype)
    for k in range(0, K, depth):
        for i in range(0, M, ROWS):
            length = min(depth, K - k)
            tile(left, i * K + k, K, whole, length, panels, (p * K + k) * width, c)
            for r in range(ROWS):
                for j in range(width):
                    before = y[i + r, p * width + j] if k else np.float32(0)
                    y[i + r, p * width + j] = before + c[r * width + j]


@njit(parallel=True)
def blocked(a, panels, depth, whole, y):
    for p in prange(y.shape[1] // (VECTORS * lanes(y))):
        one_panel(a, panels, np.int64(p), depth, whole, y)


width = VECTORS * n
panels = aligned_empty(K * N, "f4")
panels[:] = b.reshape(K, N // width, width).transpose(1, 0, 2).reshape(-1)
climb(f"blocked tile of {ROWS} x {VECTORS}", blocked, 2 * ROWS * width / (4 * (ROWS + width)),
      a, panels, 128, WHOLE, threads=CORES)
show_assembly(one_panel)

# %% [markdown]
# ## What refsd runs, and what others do
#
# `F.linear` is the same tile with all that ours lacks: any sizes, the next rows and panels
# prefetched, threads that share small matrices as well, weights that stay packed. NumPy's `@`
# calls a BLAS library, often OpenBLAS, whose kernels are written in assembly.
#
# **Question.** Does every op gain from this? `F.add` has one FLOP for 12 bytes: two numbers in,
# one out. Where is its roof?
#
# In the picture open bars ran on one thread, hatched ones on all; the numbers below are ten times
# apart.

# %%
weight = pack_weight(np.ascontiguousarray(b.T))  # a linear layer's weight is (outputs, inputs)


def own(a, weight, y):
    with refsd.use("numba"):
        y[:] = F.linear(a, weight)


def blas(a, b, y):
    np.matmul(a, b, out=y)


intensity = ladder[-1].intensity
climb("refsd's linear", own, intensity, a, weight, threads=CORES)
climb("NumPy's @ (a BLAS)", blas, intensity, a, b, threads=CORES)

x, z = np.ones((2, few(2**24, 2**16)), "f4")
cost = ops()["add"].contract(x, z)  # what an op costs is part of its contract
with refsd.use("numba"):
    F.add(x, z)
    gflops = 1e-9 * cost.flops / seconds(lambda: F.add(x, z))
add = Rung("refsd's add", gflops, cost.flops / cost.bytes, CORES)
print(f"add: {gflops:.2f} GFLOP/s, so {gflops * cost.bytes / cost.flops:.1f} GB/s; "
      f"memory gives {roofs[CORES]['memory']:.1f} GB/s to those who only read")

figure, axis = plt.subplots(figsize=(7, 3.4))
names = [f"{number}. {rung.name}" for number, rung in enumerate(ladder, 1)]
axis.barh(names, [rung.gflops for rung in ladder], color="#cccccc", edgecolor="black", log=True,
          hatch=["" if rung.threads == 1 else "///" for rung in ladder])
for place, rung in enumerate(ladder):
    axis.text(rung.gflops * 1.1, place, f"{rung.gflops:.3g}", va="center", fontsize=8,
              backgroundcolor="white")
for (threads, top), line in zip(roofs.items(), ("--", "-")):
    axis.axvline(top["fma"], color="black", linestyle=line, linewidth=1,
                 label=f"peak of {on(threads)}")
axis.invert_yaxis()
axis.set(xlabel="GFLOP/s", xlim=(None, 5 * roofs[CORES]["fma"]))
axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
plt.show()

# %% [markdown]
# ## The roofline
#
# The same rungs beside what limits them (Williams, Waterman and Patterson 2009). Across: the
# FLOPs that the inner loop makes of each byte it moves, its *intensity*. Sloping lines are loads
# at full speed, level ones the peak. Follow the numbers: up, towards the roof, where time was
# wasted; to the right, where bytes were saved.

# %%
figure, axis = plt.subplots(figsize=(7, 4))
x = np.logspace(-1.3, 1.1, 200)
for threads, source, line in (1, "cache", "--"), (CORES, "cache", "-"), (CORES, "memory", ":"):
    top = roofs[threads]
    axis.loglog(x, np.minimum(top["fma"], top[source] * x), line, color="black", marker="",
                label=f"{'first-level ' * (source == 'cache')}{source}, {on(threads)}")
for number, rung in enumerate(ladder[1:], 2):
    axis.plot(rung.intensity, rung.gflops, "ko" if rung.threads == 1 else "ks", linestyle="")
    side = -14 if number == len(ladder) else 6
    axis.annotate(str(number), (rung.intensity, rung.gflops), (side, -3),
                  textcoords="offset points")
axis.plot(add.intensity, add.gflops, "k^", linestyle="")
axis.annotate("add", (add.intensity, add.gflops), (6, -3), textcoords="offset points")
axis.set(xlabel="intensity of the inner loop, FLOPs a byte", ylabel="GFLOP/s")
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Read next
#
# * `refsd/numba_ops/tile.py` and `cpu/blocked.py`: the tile, and the blocking around it; `simd.py`:
#   how Numba learns a vector type.
# * [Convolution on the CPU](../docs/kernels-conv.md): the same tile under a convolution, where
#   its rows come from a picture.
# * [Benchmarks](../docs/benchmarks.md): refsd beside PyTorch and OpenVINO.
# * Goto and van de Geijn, *Anatomy of High-Performance Matrix Multiplication*, 2008; Van Zee and
#   van de Geijn, *BLIS*, 2015.
# * Next: [8. Porting](08_porting.ipynb), where somebody else wrote the kernel and you have to
#   find what is wrong with it.
