"""Faults in norms and softmax: bounds, barriers, lanes, merges, what is left of a rounded mean."""

from unittest import mock

import numpy as np
from cuda_agreement import agree
from faults import Fault
from op_table import normal

from refsd.numba_ops.cuda import norm, norm_groups


def rows(K, mean=0.0):
    """Five rows, so that a block's last warps have none."""
    agree("layer_norm", [normal((5, K), K, mean=mean), normal((K,), 2), normal((K,), 3)],
          {"eps": 1e-5})


def registers():
    """Two eights of some lanes, one of others."""
    rows(264)
    agree("rms_norm", [normal((5, 264), 1), normal((264,), 2)], {"eps": 1e-5})


def large_means():
    rows(264, 1e4)


def streams():
    rows(33, 1e4)


def of_groups(shape, groups, mean=0.0):
    C = shape[1]
    agree("group_norm", [normal(shape, 1, mean=mean), normal((C,), 2), normal((C,), 3)],
          {"groups": groups, "eps": 1e-6})


def a_block_a_group():
    """Channels that do not divide the threads of a block."""
    of_groups((2, 6, 13, 15), 2)


def pieces():
    """Pieces of four pixels and of one, three at a time; a mean far from 0."""
    with mock.patch.multiple(norm, SMALL=0), mock.patch.multiple(norm_groups, NUMBERS=4 * 648):
        of_groups((2, 648, 5, 1), 12, 1e3)


def of_softmax():
    """A warp a row, of which a block's last has none, and a block a row."""
    agree("softmax", [normal((5, 33), 1, 4.0)], {"axis": -1})
    agree("softmax", [normal((2, 264), 1, 4.0) + np.float32([[0], [100]])], {"axis": -1})


FAULTS = [
    Fault("a row too many", "norm", "        if row >= rows:\n            return\n"
          "        lane, first = t & uint32(31), row * K\n        part = kind(0)\n"
          "        for i in range(lane, K, uint32(32)):\n            part += read(x",
          "        if row > rows:\n            return\n"
          "        lane, first = t & uint32(31), row * K\n        part = kind(0)\n"
          "        for i in range(lane, K, uint32(32)):\n            part += read(x", streams),
    Fault("threads beyond the last phase count too", "norm", "phase if phase < phases else P",
          "phase", a_block_a_group),
    Fault("the next group's weights", "norm", "read(weight, uint32(c0 + uint32(c)))",
          "read(weight, uint32(c))", a_block_a_group),
    Fault("pixels of another image", "norm", "uint32(cuda.blockIdx.x) * P * C + c0", "c0",
          a_block_a_group),
    Fault("lanes without numbers are not 0", "norm_rows", "v[8 * e + j] = float32(0)",
          "v[8 * e + j] = float32(1)", registers),
    Fault("the mean's rest is left", "norm_rows", "v[8 * e + j] -= off", "pass", large_means),
    Fault("an eight too many", "norm_rows", "            if at < K:\n                eight(x",
          "            if at <= K:\n                eight(x", registers),
    Fault("the neighbour's eight", "norm_rows", "eight(x, first + at, v, 8 * e)",
          "eight(x, first + (at ^ uint32(8)), v, 8 * e)", registers),
    Fault("no barrier before a sum of all warps", "warp",
          "        cuda.syncthreads()\n        x = parts[0]\n", "        x = parts[0]\n",
          a_block_a_group),
    Fault("a sum's parts are written while they are read", "warp",
          "        cuda.syncthreads()  # the parts of another call may still be read\n", "",
          a_block_a_group),
    Fault("the barrier in a branch", "warp",
          "        cuda.syncthreads()  # the parts of another call may still be read\n",
          "        if t < uint32(32):\n            cuda.syncthreads()\n", a_block_a_group),
    Fault("a distance is missing", "warp", "(16, 8, 4, 2, 1)", "(16, 8, 4, 2)", registers),
    Fault("a maximum of half the warp", "warp", "other if other > x else x", "other",
          of_softmax),
    Fault("no barrier after the first sums", "norm_groups",
          "            put(sums, phase * C + c, s)\n        cuda.syncthreads()\n"
          "        for g in range(warp, groups, uint32(WARPS)):\n            mean",
          "            put(sums, phase * C + c, s)\n"
          "        for g in range(warp, groups, uint32(WARPS)):\n            mean", pieces),
    Fault("no barrier after the means", "norm_groups", "                means[uint32(g)] = mean\n"
          "        cuda.syncthreads()\n", "                means[uint32(g)] = mean\n", pieces),
    Fault("sums are not begun anew", "norm_groups", "s[j], q[j] = float32(0), float32(0)",
          "q[j] = float32(0)", pieces),
    Fault("pixels beyond the piece deviate", "norm_groups",
          "if uint32(p) + uint32(k) * phases < count:", "if True:", pieces),
    Fault("a pixel of the next piece", "norm_groups", "if pixel < count:\n                eight(",
          "if pixel <= count:\n                eight(", pieces),
    Fault("a thread too many", "norm_groups", "        if phase < phases:\n            planes",
          "        if phase <= phases:\n            planes", pieces),
    Fault("a channel of the next group", "norm_groups", "m[j] = means[(c + uint32(j)) // width]",
          "m[j] = means[c // width]", pieces),
    Fault("planes swapped", "norm_groups", "out[at + pieces] = d", "out[at + pieces] = square",
          pieces),
    Fault("the shorter piece counts as a whole one", "norm_groups",
          "last = float32(P - (pieces - uint32(1)) * tall) / float32(P)", "last = full", pieces),
    Fault("no variance between pieces", "norm_groups", "(own + between * between)", "own", pieces),
    Fault("the mean in one part", "norm_groups", "rest = mean - centre + off", "rest = float32(0)",
          pieces),
    Fault("another image's lines", "norm_groups", "line(lines, n * C + c, centre, 0)",
          "line(lines, c, centre, 0)", pieces),
    Fault("the whole row has no e^", "softmax", "v[i] = exp(v[i] - high)", "v[i] = exp(v[i])",
          of_softmax),
    Fault("numbers beyond the row", "softmax", "v[8 * e + j] = float32(lowest)",
          "v[8 * e + j] = float32(0)", of_softmax),
    Fault("the terms of one warp", "softmax", "terms = total(part, t)", "terms = part", of_softmax),
]
