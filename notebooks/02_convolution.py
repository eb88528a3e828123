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
# # 2. Convolution
#
# A U-Net is mostly this sum. Output channel $o$ at pixel $(i, j)$ adds up a window of all input
# channels, weighted:
#
# $$y_{o,i,j} = \sum_{c=1}^{C} \sum_{u=1}^{k} \sum_{v=1}^{k} w_{o,c,u,v}\; x_{c,\,i+u,\,j+v},
#   \qquad x\,(C, H, W),\; w\,(O, C, k, k) \to y\,(O, H', W').$$
#
# There are several ways to compute it. They give the same numbers, up to rounding, at very
# different speeds. This notebook takes four of them apart, loops, im2col, FFT and Winograd, each
# in Python or NumPy and compiled by Numba, measures when each wins, and what each costs in error.

# %%
import inspect
import math
import time
from fractions import Fraction
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view
from pace import few
from pictures import show

import refsd
from refsd import functional as F
from refsd.algorithms import explain_conv2d
from refsd.contracts import Spec
from refsd.golden.tolerances.bounds import CONFIDENCE, bound
from refsd.golden.tolerances.bounds.conv import winograd_size, winograd_variance
from refsd.golden.tolerances.precision import PRECISIONS, gamma, quantile
from refsd.numba_ops.cpu import winograd_transforms, winograd_weights
from refsd.numba_ops.weights import pack_weight
from refsd.ops import conv, conv_tiled
from refsd.weights import Weight

plt.style.use("refsd.mplstyle")
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape, "float32")


def seconds(function):
    """The fastest of several runs: whatever disturbs a run makes it slower, never faster."""
    function()
    best, end = math.inf, time.perf_counter() + few(0.25, 0.0)
    while best == math.inf or time.perf_counter() < end:
        begun = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begun)
    return best


# %% [markdown]
# ## Loops
#
# The formula as it stands: six loops. Three say which output, three add up its window. Here they
# look for edges: one kernel weighs the left neighbours against the right ones, one the upper
# against the lower.
#
# **Question.** One convolution of Stable Diffusion's U-Net takes 320 channels to 320, at 64 x 64
# pixels, with $k = 3$. How many multiplications are that? How long do you give these loops?

# %%
def loops(x, weight, y):
    for o in range(y.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                total = np.float32(0)
                for c in range(weight.shape[1]):
                    for u in range(weight.shape[2]):
                        for v in range(weight.shape[3]):
                            total += weight[o, c, u, v] * x[c, i + u, j + v]
                y[o, i, j] = total


size = few(32, 12)
row, column = np.mgrid[:size, :size] / size
ball = np.maximum(0, 1 - 9 * ((row - 0.4) ** 2 + (column - 0.35) ** 2)) ** 0.5
picture = np.where((row > 0.55) & (column > 0.5), 0.9, ball)[None].astype("f4")
across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "f4")
edges = np.stack([across, across.T])[:, None]  # (2, 1, 3, 3)

y = np.empty((2, size - 2, size - 2), "f4")
each = seconds(lambda: loops(picture, edges, y)) / (y.size * 9)
truth = F.conv2d(picture[None].astype("f8"), edges.astype("f8"))
allowed = bound("conv2d", [picture[None], edges], {}, truth).worst  # derived: see below
assert (abs(y - truth) <= allowed).all()
show([picture[0], *y], ["picture", "left to right", "up to down"], side=1.6)
products = 320 * 320 * 64 * 64 * 9
print(f"{1e9 * each:.0f} ns a product. 320 -> 320 at 64 x 64: {products / 1e9:.2f} billion "
      f"products, {products * each / 60:.0f} minutes")

# %% [markdown]
# ## im2col
#
# Write the window of each output as the **column** of a matrix: $C k^2$ rows, one for each
# weight, and $H'W'$ columns. Then convolution is one matrix product,
#
# $$y\,(O,\, H'W') = w\,(O,\, C k^2)\;\cdot\; \mathrm{columns}\,(C k^2,\, H'W'),$$
#
# and few algorithms are as well tuned as that ([notebook 7](07_a_fast_kernel.ipynb)). refsd's
# definition of `conv2d` works like that; `in_runs` is the product, in pieces of 128.
#
# **Question.** Each pixel now stands in the matrix nine times. How can that be faster?

# %%
x = np.arange(25).reshape(5, 5)
columns = sliding_window_view(x, (3, 3)).transpose(2, 3, 0, 1).reshape(9, 9)
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3), width_ratios=[5, 9])
titles = ("picture, 5 x 5", "columns, 9 weights x 9 outputs")
for axis, matrix, title in zip(axes, (x, columns), titles):
    axis.imshow(matrix, cmap="gray", vmin=-12)
    for (i, j), number in np.ndenumerate(matrix):
        axis.text(j, i, number, ha="center", va="center", fontsize=7)
    axis.set(title=title, xticks=[], yticks=[])
axes[0].add_patch(plt.Rectangle((0.5, 0.5), 3, 3, fill=False, linewidth=2.5))
axes[1].add_patch(plt.Rectangle((3.5, -0.5), 1, 9, fill=False, linewidth=2.5))
plt.show()
print(inspect.getsource(conv.im2col))
x, weight = normal(1, 64, 32, 32), normal(64, 64, 3, 3)
took = seconds(lambda: F.conv2d(x, weight, padding=1, algorithm="im2col"))
print(f"{1e9 * took / (64 * 64 * 9 * 32 * 32):.2g} ns a product, the loops {1e9 * each:.0f} ns")

# %% [markdown]
# Writing the matrix costs $C k^2$ copies an output, the product $O$ times as many
# multiplications; and a product of matrices uses each number that it has loaded many times.
#
# ## FFT
#
# Convolution becomes multiplication when both are taken to frequencies (a correlation, as here,
# with one of them conjugate):
#
# $$y_o = \mathcal F^{-1}\left[\sum_c \overline{\mathcal F[w_{o,c}]} \cdot \mathcal F[x_c]\right].$$
#
# Each frequency costs one complex product for a pair of channels, **whatever the size of the
# kernel**. A periodic convolution would wrap around at the border, so the picture is cut into
# overlapping tiles and the spoilt edge of each is dropped.

# %%
print(inspect.getsource(conv_tiled.fft))

# %% [markdown]
# ## Winograd
#
# Two neighbouring outputs of a kernel with three taps, $y_1 = d_1 g_1 + d_2 g_2 + d_3 g_3$ and
# $y_2 = d_2 g_1 + d_3 g_2 + d_4 g_3$, take six multiplications. Winograd's $F(2, 3)$ takes four:
#
# $$y = A^T\left[(G g) \odot (B^T d)\right].$$
#
# Applied to rows and columns, $y = A^T[(G g G^T) \odot (B^T d\, B)]A$: 16 products for 2 x 2
# outputs instead of 36; $F(4 \times 4, 3 \times 3)$ takes 36 instead of 144. $G g G^T$ is made
# once for all tiles, and what is left for $B$ and $A$ are mostly additions.
#
# **Question.** $F(2, 3)$ has a half in $G$. Why is that harmless, and a third would not be?

# %%
B, G, A = ([[Fraction(n) for n in line] for line in matrix.tolist()] for matrix in conv_tiled.F2)
B, G, A = np.array(B), np.array(G), np.array(A)
d, g = np.array([3, -1, 4, 1]), np.array([2, 7, -1])
print("B^T d =", [str(n) for n in B @ d], "  G g =", [str(n) for n in G @ g])
print("four products:", [str(n) for n in (G @ g) * (B @ d)])
print("y =", [str(n) for n in A @ ((G @ g) * (B @ d))],
      "  directly:", [str(d[:3] @ g), str(d[1:] @ g)])
for name, (B, _, A) in {"F(2x2)": conv_tiled.F2, "F(4x4)": conv_tiled.F4}.items():
    outputs = len(A) ** 2
    print(f"{name}: {len(B) ** 2} products for {outputs} outputs, "
          f"{len(B) ** 2 / outputs:g} each instead of 9")

# %% [markdown]
# Halves are exact in binary, thirds are rounded. $F(4 \times 4)$ cannot do without; we come back
# to that.
#
# ## Which kernel size?
#
# `explain_conv2d` counts the multiplications of each algorithm without computing anything. (The
# transforms' own come on top.)
#
# **Question.** By that count, from which kernel size on should the FFT win? Then look at the
# clock: from which size on *does* it?
#
# We time NumPy's definitions, and refsd's Numba kernels for the same algorithms. (Those never
# write the columns down: the product reads them where they lie in the picture. That is called
# *implicit* GEMM. And the FFT's keeps the weights' spectra, which the definition makes in every
# call.)

# %%
def channels_last(x):
    """The same numbers with the channels of a pixel side by side, as the kernels like them."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def time_of(x, weight, algorithm, backend):
    """Milliseconds of a convolution that keeps the picture's size."""
    weight = Weight(pack_weight(weight), "weight")  # as in a loaded model: its spectra are kept
    how = {"padding": weight.shape[2] // 2, "algorithm": algorithm}
    with refsd.use(backend):
        return 1e3 * seconds(lambda: F.conv2d(x, weight, **how))


CHANNELS, PIXELS = few(32, 8), few(48, 16)
KERNELS = few((1, 3, 5, 7, 9, 11, 15, 21), (1, 3, 5))
x = channels_last(normal(1, CHANNELS, PIXELS, PIXELS))
times = {(backend, name, k): time_of(x, normal(CHANNELS, CHANNELS, k, k), name, backend)
         for k in KERNELS for backend in ("numpy", "numba") for name in conv.ALGORITHMS
         if k == 3 or "winograd" not in name}

compiled = njit(loops)
for k in KERNELS[:3]:
    padded = np.pad(x[0], ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    args = padded, normal(CHANNELS, CHANNELS, k, k), np.empty((CHANNELS, PIXELS, PIXELS), "f4")
    times["njit", "loops", k] = 1e3 * seconds(partial(compiled, *args))

counts = {(cost.algorithm, k): cost.multiplications / (CHANNELS**2 * PIXELS**2)
          for k in KERNELS for cost in explain_conv2d(
              x, Spec((CHANNELS, CHANNELS, k, k), "float32"), backend="numba", padding=k // 2).costs
          if cost.multiplications is not None}

# %%
LOOK = {"im2col": "o-", "fft": "s--", "winograd2": "D-.", "winograd4": "^-.", "loops": "x:"}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
for name in conv.ALGORITHMS:
    sizes = [k for k in KERNELS if (name, k) in counts]
    left.loglog(sizes, [counts[name, k] for k in sizes], LOOK[name], color="black", label=name,
                fillstyle="none" if name == "fft" else "full")
for backend, colour in (("numpy", "#999999"), ("numba", "black"), ("njit", "black")):
    for name, look in LOOK.items():
        sizes = [k for k in KERNELS if (backend, name, k) in times]
        if sizes:
            right.loglog(sizes, [times[backend, name, k] for k in sizes], look, color=colour,
                         label=f"{backend} {name}")
every = [CHANNELS**2 * PIXELS**2 * k**2 * each * 1e3 for k in KERNELS]
right.loglog(KERNELS, every, "x:", color="#999999", label="Python loops (extrapolated)")
for axis in (left, right):
    axis.set(xlabel="kernel size k, pixels", xticks=KERNELS, xticklabels=KERNELS)
    axis.minorticks_off()
left.set(title="counted", ylabel="multiplications an output\nand pair of channels")
right.set(title="measured", ylabel="time, ms")
figure.suptitle(f"{CHANNELS} -> {CHANNELS} channels, {PIXELS} x {PIXELS} pixels")
left.legend()
right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
for backend in "numpy", "numba":
    wins = [k for k in KERNELS if times[backend, "fft", k] < times[backend, "im2col", k]]
    print(f"{backend}: FFT faster than im2col at k =", *wins or ["none of these"])

# %% [markdown]
# A multiplication is not the unit of time. im2col's are one large matrix product, at the speed of
# the machine. The FFT's are a small product for each frequency, and its transforms, which the
# count leaves out, move every number through memory several times.
#
# ## How many channels?
#
# Winograd's transforms cost $C + O$ for each tile, its products $C \cdot O$. With few channels
# the transforms dominate, with many the products. We plot the definition's FLOPs by the time
# taken: an algorithm with fewer multiplications may exceed what the machine can multiply.
#
# **Question.** $F(4 \times 4)$ multiplies a quarter as much as im2col. Does it become four times
# as fast? And can you see where refsd stops choosing im2col?

# %%
SEVERAL = few((4, 8, 16, 32, 64, 128, 256), (4, 16))
speeds = {name: [] for name in ("im2col", "winograd2", "winograd4", "fft")}
for C in SEVERAL:
    x, weight = channels_last(normal(1, C, PIXELS, PIXELS)), normal(C, C, 3, 3)
    for name in speeds:
        if name != "fft" or C <= 64:  # its weights would take hundreds of MB
            speeds[name].append(2e-6 * C * C * 9 * PIXELS**2 / time_of(x, weight, name, "numba"))

figure, axis = plt.subplots(figsize=(6.4, 3.4))
for name, line in speeds.items():
    axis.loglog(SEVERAL[:len(line)], line, LOOK[name], color="black", label=name)
axis.set(xlabel=f"channels in and out (3 x 3 kernel, {PIXELS} x {PIXELS} pixels, Numba)",
         ylabel="GFLOP/s of the definition", xticks=SEVERAL, xticklabels=SEVERAL)
axis.minorticks_off()
axis.legend()
plt.show()
for C in SEVERAL:
    x, weight = Spec((1, C, PIXELS, PIXELS), "float32"), Spec((C, C, 3, 3), "float32")
    print(f"{C:4} channels:", explain_conv2d(x, weight, backend="numba", padding=1).algorithm)

# %% [markdown]
# ## What refsd chooses
#
# The choice is a function of shapes and options alone, made before anything runs, so the same
# picture has the same bits today and tomorrow, alone and in a batch. `exact=True` keeps to sums
# of products.

# %%
for (shape, kernel, exact) in (
        ((2, 320, 64, 64), (320, 320, 3, 3), False), ((2, 320, 64, 64), (320, 320, 3, 3), True),
        ((2, 1280, 16, 16), (1280, 1280, 3, 3), False),
        ((2, 1280, 4, 4), (1280, 1280, 3, 3), False),
        ((2, 4, 64, 64), (320, 4, 3, 3), False), ((1, 64, 64, 64), (64, 64, 21, 21), False)):
    found = explain_conv2d(Spec(shape, "float32"), Spec(kernel, "float32"), backend="numba",
                           exact=exact, padding=kernel[2] // 2)
    print(f"x {shape}, weight {kernel}{', exact' * exact}\n    {found.algorithm}: {found.why}")
    print("    weights, MB:", ", ".join(
        f"{cost.algorithm} {cost.weight_bytes / 1e6:.3g}" for cost in found.costs
        if cost.weight_bytes is not None))

# %% [markdown]
# ## What it costs in error
#
# Every float32 operation rounds, by a relative $u = 2^{-24}$ at most. Following one product on
# its way gives bounds (derived in [tolerances](../docs/tolerances.md)): for sums of products, and
# for Winograd,
#
# $$|\hat y - y| \le \gamma_{Ck^2+1}\; |w| * |x|, \qquad
#   |\hat y - y| \le \gamma_{8+4n+C}\; |A|^T\left[(|G||g||G|^T) \odot (|B|^T|d||B|)\right]|A|,
#   \qquad \gamma_m \approx m u,$$
#
# with $n = 4$ or $6$ pixels along a tile's side. The *likely* bounds let roundings average out,
# so that they grow with $\sqrt m$.
#
# **Question.** Winograd multiplies less, and rounds less often. Does it err less?
#
# Weights have the variance $1/9C$, so that $y$ has the variance 1, whatever $C$.

# %%
def numba_matrices():
    """B^T, G and A^T of Numba's F(4x4), from the very functions that its kernels are made of."""
    functions = ((winograd_transforms.into_6, 6), (winograd_weights.kernel_6, 3),
                 (winograd_transforms.out_of_6, 6))
    return [np.array([f.py_func(*unit) for unit in np.eye(n)]).T for f, n in functions]


POINTS = {"winograd2": {"numpy": conv_tiled.F2, "numba": conv_tiled.F2},
          "winograd4": {"numpy": conv_tiled.F4, "numba": numba_matrices()}}


def limits(x, weight, truth, name, backend):
    """The worst and the likely bound of each element."""
    options = {"padding": 1}
    if name not in POINTS:
        return bound("conv2d", [x, weight], options, truth, algorithm=name)[:2]
    p, matrices = PRECISIONS["float32"], POINTS[name][backend]
    m = 8 + 4 * len(matrices[0]) + weight.shape[1]
    x, weight = x.astype("f8"), weight.astype("f8")
    worst = gamma(m, p) * winograd_size(x, weight, options, truth, matrices)
    deviation = np.sqrt(winograd_variance(x, weight, options, truth, p, matrices))
    return worst, np.minimum(worst, quantile(truth.size, CONFIDENCE) * deviation)


errors = {}
for C in few((4, 16, 64, 256), (4, 16)):
    x, weight = normal(1, C, 24, 24), normal(16, C, 3, 3) / np.float32(math.sqrt(9 * C))
    truth = F.conv2d(x.astype("f8"), weight.astype("f8"), padding=1, algorithm="im2col")
    for name in conv.ALGORITHMS:
        for backend in "numpy", "numba":
            with refsd.use(backend):
                error = abs(F.conv2d(x, weight, padding=1, algorithm=name) - truth)
            worst, likely = limits(x, weight, truth, name, backend)
            assert (error <= likely).all(), (name, backend, C)
            errors[name, backend, C] = error.max(), likely.max(), worst.max()

# %%
figure, axes = plt.subplots(1, 4, figsize=(8, 3), sharey=True)
for axis, name in zip(axes, ("im2col", "fft", "winograd2", "winograd4")):
    for backend, colour, marker in (("numpy", "#999999", "s"), ("numba", "black", "o")):
        sizes = sorted(C for n, b, C in errors if (n, b) == (name, backend))
        for kind, line, mark in (0, "-", marker), (1, "--", ""), (2, ":", ""):
            axis.loglog(sizes, [errors[name, backend, C][kind] for C in sizes], color=colour,
                        linestyle=line, marker=mark,
                        label=f"{backend}, {('largest error', 'likely bound', 'worst case')[kind]}")
    axis.set(title=name, xlabel="channels C", xticks=sizes, xticklabels=sizes)
    axis.minorticks_off()
axes[0].set_ylabel("absolute error (y has variance 1)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# Winograd's sums are shorter, but their terms are larger: $B^T d B$ mixes pixels with
# coefficients that $A$ has to cancel again, and their roundings stay. What the bound multiplies,
# the transforms on absolute values, says how much. Numba's $F(4 \times 4)$ has other
# interpolation points (5/8 and 3/2 instead of 1 and 2), chosen because they make that smaller.
#
# ## Where the error is
#
# **Question.** Are all pixels of a picture equally exact?
#
# Above the errors that were measured; below the deviation that the derivation allows, which is an
# upper limit, as it takes every sum for a running one.

# %%
C = few(64, 16)
x, weight = normal(1, C, 48, 48), normal(C, C, 3, 3) / np.float32(math.sqrt(9 * C))
truth = F.conv2d(x.astype("f8"), weight.astype("f8"), padding=1, algorithm="im2col")


def modulo_8(squares):
    """The root of the mean over channels, and over all pixels that are alike modulo 8."""
    return np.sqrt(squares.reshape(C, 6, 8, 6, 8).mean(axis=(0, 1, 3)))


def variance(name):
    """What the derivation allows random roundings to make."""
    if name == "im2col":
        return bound("conv2d", [x, weight], {"padding": 1}, truth).deviation ** 2
    args = x.astype("f8"), weight.astype("f8"), {"padding": 1}, truth, PRECISIONS["float32"]
    return winograd_variance(*args, POINTS[name]["numba"])


names = "im2col", "winograd2", "winograd4"
with refsd.use("numba"):
    squares = [(F.conv2d(x, weight, padding=1, algorithm=name) - truth) ** 2 for name in names]
maps = {"measured": list(map(modulo_8, squares)),
        "derived": [modulo_8(variance(name)) for name in names]}
figure, axes = plt.subplots(2, 3, figsize=(6.4, 4), sharex=True, sharey=True)
for line, (kind, values) in zip(axes, maps.items()):
    for axis, name, map_ in zip(line, names, values):
        image = axis.imshow(1e7 * map_, cmap="gray_r", vmin=0, vmax=1e7 * np.max(values))
        axis.set(title=f"{name}, {kind}", xticks=[0, 4], yticks=[0, 4])
    figure.colorbar(image, ax=line, label="rms error, 1e-7")
figure.supxlabel("column modulo 8, pixels")
figure.supylabel("row modulo 8, pixels")
plt.show()
for name, map_ in zip(names, maps["measured"]):
    low, high = map_.min(), map_.max()
    print(f"{name:10} {low:.2e} to {high:.2e}, a factor of {high / low:.1f}")

# %% [markdown]
# A tile of $F(4 \times 4)$ has rows of $A^T$ with the powers $1, p, p^2, p^3$ of its points: its
# outputs are not alike, and neither are their errors. It is a pattern that no picture shows, and
# that the difference of two tensors does ([notebook 8](08_porting.ipynb)).
#
# ## Read next
#
# * `refsd/ops/conv.py` and `conv_tiled.py`: the whole definition, 250 lines.
# * [Convolution on the CPU](../docs/kernels-conv.md): how the Numba kernels do it, and the
#   derivation of Winograd's error.
# * [Tolerances](../docs/tolerances.md): every bound, and what of it is used.
# * Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, 2015,
#   [arXiv:1509.09308](https://arxiv.org/abs/1509.09308).
# * Next: [3. Norms](03_norms.ipynb).
