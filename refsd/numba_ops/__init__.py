"""The ops as kernels that Numba compiles, with the same file names as refsd/ops/.

cpu/ has those for processors, as vectors, on what lies here; cuda/ those for GPUs, which imports
Numba only to compile one.
"""
