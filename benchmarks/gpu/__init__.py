"""What only a GPU can tell, by one command that works on a bare machine: docs/cuda-gpu.md.

`python -m benchmarks.gpu prepare` makes a folder of compiled kernels and wheels where there is a
compiler, `python -m benchmarks.gpu run` measures where there is a GPU, and `run --rehearse` goes
through all of it on Python in lockstep.
"""

import sys

from benchmarks import ROOT

# The comparison with the reference, and what stands in for kernels, are those of the tests.
sys.path.append(str(ROOT / "tests" / "cuda"))
