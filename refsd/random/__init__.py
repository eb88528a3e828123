"""Noise that equals torch's, number by number: torch's CPU generator and CUDA's Philox stream.

`docs/noise.md` says what is equal to the bit, on which processors, and how it was established.
"""

from refsd.random.batch import draw_noise
from refsd.random.philox import PhiloxGenerator
from refsd.random.torch_cpu import TorchGenerator

__all__ = ["PhiloxGenerator", "TorchGenerator", "draw_noise"]
