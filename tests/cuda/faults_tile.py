"""Faults in the tensor-core tile: barriers, waits, bounds, fragments, banks."""

from unittest import mock

import test_tile
from faults import Fault

from refsd.numba_ops.cuda import meaning, tile


def product():
    """A ragged product of four stages, without bank conflicts."""
    meaning.tally.update(ldmatrix=0, conflicts=0)
    with mock.patch.object(test_tile, "core", tile.core):
        error, bound = test_tile.multiply(test_tile.product_kernel, 40, 24, 104)
    assert (error <= bound).all()
    assert not meaning.tally["conflicts"]


FAULTS = [
    Fault("no barrier", "tile", "            cuda.syncthreads()\n", "", product),
    Fault("the barrier orders one warp only", "tile", "cuda.syncthreads()", "cuda.syncwarp()",
          product),
    Fault("a barrier in a branch", "tile", "            cuda.syncthreads()\n",
          "            if t < uint32(32):\n                cuda.syncthreads()\n", product),
    Fault("no wait", "tile", "            wait()\n", "", product),
    Fault("waits for one stage too few", "tile", "gpu.commit, gpu.wait1", "gpu.commit, gpu.wait2",
          product),
    Fault("a stage is filled while it is read", "tile", "fill = uint32(0), uint32(ahead)",
          "fill = uint32(0), uint32(ahead - 1)", product),
    Fault("row bound off by one", "tile", "uint32(row0 + row) < count",
          "uint32(row0 + row) <= count", product),
    Fault("depth bound off by one", "tile", "and k < K", "and k <= K", product),
    Fault("the wrong lanes of A", "tile", "piece + (lane >> uint32(4))",
          "piece + (lane >> uint32(3))", product),
    Fault("fragments of A swapped", "tile",
          "fa[m, 1], fa[m, 2], fa[m, 3] = x[0], x[1], x[2], x[3]",
          "fa[m, 1], fa[m, 2], fa[m, 3] = x[0], x[2], x[1], x[3]", product),
    Fault("fragments of B swapped", "tile", "(fb[n, 0], fb[n, 1])", "(fb[n, 1], fb[n, 0])",
          product),
    Fault("rows of A meet the same banks", "tile", "gpu, 0, tile.rows, 1)", "gpu, 0, tile.rows, 3)",
          product),
    Fault("the wrong row of the result", "tile", "+ (lane >> uint32(2)),", "+ (lane >> uint32(3)),",
          product),
    Fault("sums are not added to", "tile", "sums[m, n, e] = d[e]", "sums[m, n, e] = d[e] - "
          "sums[m, n, e]", product),
]
