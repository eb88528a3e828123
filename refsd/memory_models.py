"""What each backend holds while it computes: what estimates of memory begin with."""

from typing import NamedTuple


class MemoryModel(NamedTuple):
    """What a backend holds while it computes: bytes, and numbers of activations."""

    libraries: int  # a Python with all libraries and kernels loaded, and nothing done
    at_once: int  # activations of one block that are alive together
    enlarged: float  # the same where a block enlarges images, in enlarged ones
    feed_forward: int  # the same within the feed-forward, in widths of the transformer
    unrolled: float  # what a convolution works in, in activations, and at most in bytes
    workspace: int
    transformed: int  # at most so many bytes of transformed weights, four times the kernels'
    scores: int  # bytes of attention scores in memory, of which three arrays live at once
    gaps: float  # share of the peak that lies between results, where no other fits
    dense: bool  # whether a layer's small weights are made an array before they are multiplied


# What a weight takes beside its numbers: an array, its names and entries, pages not filled. A model
# of 1,130 weights takes 23 MB for them, one of 2,641 55 MB.
BESIDE = 20 << 10
BAND = 8 << 20  # bytes of a band of a VAE that is computed in bands (refsd.bands)
KEPT = 1 << 30  # bytes of results that it may keep between its passes
WINDOWS, SCORES = 16 << 20, 8 << 20  # slices: refsd.ops.conv and refsd.ops.attention.SLICE_BYTES
# A block: its input, normalised, two of the activation, the padded copy; 9 windows a pixel.
NUMPY_MEMORY = MemoryModel(80 << 20, 5, 3, 24, 1.5 * 9, 3 * WINDOWS // 2, 0, SCORES, 0, True)
# A block: its input, normalised, activated; 36 transformed values for 16 pixels, and gaps.
NUMBA_MEMORY = MemoryModel(208 << 20, 3, 2.25, 15, 1.5 * 36 / 16, 12 << 20, 4 << 20, 0, 0.06,
                           False)
# The same, padded in flight; parts of sums that are split; pieces an eighth too large at most. The
# first number is the host's, the others are what tests/cuda/test_device_memory.py counts.
CUDA_MEMORY = MemoryModel(176 << 20, 3, 1.6, 12, 1.3, 4 << 20, 0, 0, 0.125, False)
UNKNOWN_MEMORY = MemoryModel(*map(max, zip(NUMPY_MEMORY, NUMBA_MEMORY, CUDA_MEMORY)))
