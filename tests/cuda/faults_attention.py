"""Faults in attention by tiles and on tensor cores: barriers, waits, fragments, bounds, sums."""

import test_attention
import test_attention_flash
import test_attention_tiles
from cuda_agreement import agree
from faults import Fault
from test_attention import qkv


def plain():
    """Two blocks of keys, the second ragged, and a query that sees none."""
    agree("attention", qkv(1, 5, 37, 6, 6), {"heads": 2})
    test_attention.test_a_query_that_sees_nothing_gives_zeros("float32")


def flash():
    """Two heads and three blocks of keys, two warps."""
    test_attention_flash.attend(("float16", 24, False, 2, 1, 16), (2, 20, 37, 24, 24, False))


def flash_with_a_mask():
    test_attention_flash.test_hidden_keys_and_the_lowest_number("bfloat16")


def tiles():
    test_attention_tiles.test_masks((5, 37))


def rising():
    """The largest score rises from block to block."""
    test_attention_tiles.test_scores_that_differ_by_hundreds()


P, F, R, T = "attention", "attention_flash", "attention_products", "attention_tiles"
FAULTS = [
    Fault("no shift where nothing is seen", P, "kind(0) if new_max == lowest else new_max",
          "new_max", plain),
    Fault("results of another head", P, "* heads + head) * e + column", "* heads) * e + column",
          plain),
    Fault("no barrier before the values", F, "            wait()\n            cuda.syncthreads()\n"
          "            if later", "            wait()\n            if later", flash),
    Fault("keys are not waited for", F, "            wait()\n            cuda.syncthreads()\n"
          "            fetch", "            cuda.syncthreads()\n            fetch", flash),
    Fault("the queries are overwritten", F, "        load_queries(memory, queries, warp, lane)\n"
          "        cuda.syncthreads()\n", "        load_queries(memory, queries, warp, lane)\n",
          flash),
    Fault("ragged keys are seen", F, "later > S:", "key > S:", flash),
    Fault("the maximum of two lanes of four", F, "for lanes in (1, 2):", "for lanes in (1,):",
          flash),
    Fault("a hidden row has no sum", F, "(whole if whole > float32(0) else float32(1))", "whole",
          flash_with_a_mask),
    Fault("the lowest number times log2 e", F, "exp2((score - row_max) * powers)",
          "exp2(score * powers - row_max * powers)", flash_with_a_mask),
    Fault("rows meet in the banks", F, "pitch=padded + 8", "pitch=padded + 64", flash),
    Fault("lanes of the keys swapped", R, "(lane >> uint32(4)) * uint32(8) + (lane & uint32(7))",
          "(lane >> uint32(3) & uint32(1)) * uint32(8) + (lane & uint32(7))", flash),
    Fault("the other two weights", R, "e % 2 * 2],", "e // 2 * 2],", flash),
    Fault("the sum of other ones", R, "gpu.pack_f16_ampere, 0x3C003C00",
          "gpu.pack_f16_ampere, 0x3C004000", flash),
    Fault("rows behind the last", R, "< left\n", "<= left\n", flash),
    Fault("no barrier before the next pieces", T, "uint32(DEPTH)):\n                "
          "cuda.syncthreads()\n", "uint32(DEPTH)):\n", tiles),
    Fault("no barrier after the pieces", T, "d, t)\n                cuda.syncthreads()\n",
          "d, t)\n", tiles),
    Fault("a mask of one key for four", T, "at + ahead * key_step", "at", tiles),
    Fault("what was summed is not rescaled", T, "acc[r, c] *= rescale", "acc[r, c] *= float32(1)",
          rising),
    Fault("the sum of four lanes of eight", T, "for lanes in (1, 2, 4):\n                whole",
          "for lanes in (1, 2):\n                whole", tiles),
]
