"""refsd next to PyTorch and OpenVINO on this machine: `python -m benchmarks run`, or `make bench`.

docs/benchmarks.md says how it is measured. Nothing here is part of the installed package.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The derived bounds and the planning backend live beside the tests that hold them to account.
sys.path.append(str(ROOT / "tests"))
