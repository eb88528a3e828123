"""Faults in the products of Hopper's warpgroups, and in how sums are split into pieces."""

from cuda_agreement import agree
from faults import Fault
from faults_products import product
from op_table import normal

from refsd.numba_ops.cuda import linear, linear_float32, linear_tiles
from refsd.numba_ops.cuda.plan import Choice


def check(family, name, constants, pieces=1, M=60, N=72, K=392):
    """A function that multiplies by a variant, as its family has it then."""
    def multiply():
        choice = Choice(getattr(family, name), constants, "", pieces)
        product(M, N, K, constants[0], choice)
    return multiply


def batched():
    """A product of a batch, by the plain kernel."""
    agree("matmul", [normal((2, 5, 20), 1), normal((2, 20, 3), 2)], {}, images=None)


def pieces_of_batches():
    """Whatever the batch, a sum has as many."""
    for M, N, K in [(64, 1280, 1280), (1, 1280, 1280)]:
        alone, many = (linear.choose_linear((batch, M, K), (N, K), "float16", 80).pieces
                       for batch in (1, 16))
        assert alone == many > 1


hopper = check(linear_tiles, "hopper", ("float16", 64, 80))
warpgroups = check(linear_tiles, "hopper", ("float16", 128, 80), M=72, K=8)
ampere = check(linear_tiles, "ampere", ("float16", 16, 64, 16, 16), pieces=2, M=9, N=16, K=72)
split = check(linear_float32, "registers", ("float32", 64, 64), pieces=2, M=5, N=8, K=20)

FAULTS = [
    Fault("no barrier", "tile_hopper", "            cuda.syncthreads()\n", "", hopper),
    Fault("no wait for copies", "tile_hopper", "            wait()\n", "", hopper),
    Fault("waits for one stage too few", "tile_hopper", "gpu.commit, gpu.wait1",
          "gpu.commit, gpu.wait2", hopper),
    Fault("products may not see copies", "tile_hopper", "            fence_async()\n", "", hopper),
    Fault("no fence before products", "tile_hopper", "            fence()\n", "", hopper),
    Fault("a stage is filled while it is multiplied", "tile_hopper",
          "DEPTH, STAGES, AHEAD = 64, 4, 2", "DEPTH, STAGES, AHEAD = 64, 4, 3", hopper),
    Fault("products are not waited for", "tile_hopper", "            wait_products()\n", "",
          hopper),
    Fault("the last products are not waited for", "tile_hopper",
          "        wait_all_products()\n", "", hopper),
    Fault("pieces lie as they are", "tile_hopper", "piece ^ (row & uint32(7))", "piece", hopper),
    Fault("columns are not dealt out", "tile_hopper", "if dealt:", "if False:", hopper),
    Fault("all warpgroups have the first's rows", "tile_hopper", "(t >> uint32(7))",
          "(t >> uint32(8))", warpgroups),
    Fault("pieces are stored as results", "linear_tiles", "if pieces == uint32(1):", "if True:",
          ampere),
    Fault("a bias in each piece", "linear_float32", "bias, uint32(0), sums", "bias, biased, sums",
          split),
    Fault("every product is of the first matrix", "linear", "Bs, b, z * b_batch",
          "Bs, b, uint32(0)", batched),
    Fault("the batch decides the pieces", "tiling", "pieces(rows, N, K, by)", "pieces(M, N, K, by)",
          pieces_of_batches),
]
