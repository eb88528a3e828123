"""Faults in matrix products and attention: loads, stages, pieces of K, the running softmax."""

from unittest import mock

from cuda_agreement import agree
from faults import Fault
from op_table import normal

from refsd.numba_ops.cuda import linear, linear_float32, linear_tiles
from refsd.numba_ops.cuda.plan import Choice


def product(M, N, K, dtype="float32", choice=None):
    """x W^T + bias by the kernel of the choice, or of linear's own."""
    with mock.patch.object(linear, "choose_linear", (lambda *_: choice) if choice
                           else linear.choose_linear):
        agree("linear", [normal((M, K), 1), normal((N, K), 2), normal((N,), 3)], {}, dtype)


def plain():
    """Two blocks across, the last stage not full."""
    product(5, 35, 19)


def registers():
    """Two ragged blocks down, three stages, the last half full."""
    product(68, 60, 20, choice=Choice(linear_float32.registers, ("float32", 64, 64), "", 1))


def in_pieces():
    """The same in two pieces, added up."""
    product(60, 60, 20, choice=Choice(linear_float32.registers, ("float32", 64, 64), "", 2))


def halves():
    """Two ragged blocks down, two pieces of two stages and one."""
    constants = "float16", 16, 64, 16, 16
    product(20, 56, 72, "float16", Choice(linear_tiles.ampere, constants, "", 2))


def attention():
    """Two blocks of keys, queries that do not fill a block, a mask, and wide values."""
    q, k, v = normal((1, 6, 6), 1), normal((1, 37, 6), 2), normal((1, 37, 70), 3)
    agree("attention", [q, k, v], {"heads": 2, "mask": normal((2, 6, 37), 4, 3.0)})
    agree("attention", [normal((1, 35, 3), i) for i in range(3)],
          {"heads": 1, "causal": True})


FAULTS = [
    Fault("row bound off by one", "linear", "row < rows and k < K", "row <= rows and k < K", plain),
    Fault("depth bound off by one", "linear", "row < rows and k < K", "row < rows and k <= K",
          plain),
    Fault("no barrier before the products", "linear", "b_row, uint32(k0), K, b_k, t)\n"
          "            cuda.syncthreads()\n", "b_row, uint32(k0), K, b_k, t)\n", plain),
    Fault("the next stage overwrites this one", "linear",
          "Bs[tx + uint32(d * PITCH + j * SIDE)]\n            cuda.syncthreads()\n",
          "Bs[tx + uint32(d * PITCH + j * SIDE)]\n", plain),
    Fault("rows that a thread has not multiplied", "linear", "r = row0 + ty + uint32(i * SIDE)",
          "r = row0 + ty + uint32(i)", plain),
    Fault("the bias of another column", "linear", "read(bias, q)", "read(bias, q - column0)",
          plain),
    Fault("a piece is left out", "linear", "range(uint32(0), pieces, uint32(1))",
          "range(uint32(1), pieces, uint32(1))", in_pieces),
    Fault("no barrier between two stages", "linear_float32",
          "next_b, late)\n            cuda.syncthreads()\n", "next_b, late)\n", registers),
    Fault("one buffer of stages", "linear_float32", "slot ^= uint32(1)", "slot ^= uint32(0)",
          registers),
    Fault("sums do not begin at 0", "linear_float32", "sums[i, j] = float32(0)", "pass", registers),
    Fault("a piece's end", "linear_float32", "k < end:\n            return load4",
          "k <= end:\n            return load4", in_pieces),
    Fault("a row of the next block", "linear_float32", "if r < M:", "if r <= M:", registers),
    Fault("rows that a thread has not multiplied", "linear_float32",
          "uint32(64 * (i // 4) + i % 4)", "uint32(64 * (i // 4) + i % 2)", registers),
    Fault("four not aligned", "linear_float32", "PAD = 4", "PAD = 2", registers),
    Fault("sums of a warp do not begin at 0", "linear_tiles", "sums[m, n, e] = float32(0)", "pass",
          halves),
    Fault("both pieces are the first", "linear_tiles", "first = piece * share",
          "first = uint32(0) * share", halves),
    Fault("pieces in one place", "linear_tiles", "store_sums(parts, z * M * N",
          "store_sums(parts, batch * M * N", halves),
    Fault("a key too many", "attention", "if key < S and", "if key <= S and", attention),
    Fault("the future is seen", "attention", "key <= row", "key <= row + uint32(1)", attention),
    Fault("sums are not scaled anew", "attention", "row_sum * rescale + total", "row_sum + total",
          attention),
    Fault("results are not scaled anew", "attention", "acc[a] *= rescale", "acc[a] *= kind(1)",
          attention),
    Fault("weights are read before they are there", "attention",
          "                cuda.syncwarp()\n                for a in", "                for a in",
          attention),
    Fault("weights are overwritten while they are read", "attention",
          "                cuda.syncwarp()\n            whole", "            whole", attention),
    Fault("another warp's weights", "attention", "weights[of_warp + uint32(i)]",
          "weights[uint32(i)]", attention),
    Fault("a maximum of one lane", "attention", "largest(row_max if", "(row_max if", attention),
    Fault("the scale of all heads", "attention", "1 / math.sqrt(d)", "1 / math.sqrt(C)", attention),
]
