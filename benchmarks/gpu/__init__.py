"""What only a GPU can tell, by one command that works on a bare machine: docs/cuda-gpu.md.

`python -m benchmarks.gpu prepare` makes a folder of compiled kernels and wheels where there is a
compiler, `python -m benchmarks.gpu run` measures where there is a GPU, and `run --rehearse` goes
through all of it on Python in lockstep.
"""
