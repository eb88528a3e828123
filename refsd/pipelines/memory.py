"""How much memory a request takes, foretold from the shapes of the weights.

    all = Python and its libraries + weights + the larger of (UNet's peak, VAE decoder's peak)

The two peaks follow from how the NumPy backend works. At one resolution, with S the bytes of the
widest activation there (a residual block's input), a block holds about five such arrays at once
(input, normalised, two of the activation, the padded copy), the unrolled windows of one slice, and
in transformers the feed-forward's 8 C wide hidden layer with its temporaries, 24 C per token. The
skips of the UNet are held from the way down. `tests/test_memory.py` compares with what is measured.
"""

import math
from collections.abc import Iterable
from typing import Any

from refsd.contracts import itemsize
from refsd.weights.tree import flatten

LIBRARIES = 80 << 20  # a Python with NumPy, SciPy and tokenizers loaded, and nothing done
WINDOWS = 16 << 20  # the NumPy backend's slices: refsd.ops.conv.SLICE_BYTES
SCORES = 8 << 20  # and refsd.ops.attention.SLICE_BYTES
AT_ONCE = 5  # activations of one block that are alive together
FEED_FORWARD = 24  # the same within the feed-forward, in widths of the transformer
PICTURE = 6 * 3  # floats a pixel while pictures are joined, scaled and clipped


def estimate_bytes(pipe: Any, width: int, height: int, batch: int) -> int:
    """The most that the process will hold while `pipe` draws `batch` pictures of this size."""
    return LIBRARIES + weight_bytes(pipe) + working_bytes(pipe, width, height, batch)


def weight_bytes(pipe: Any) -> int:
    """The bytes of all loaded weights."""
    parts = (pipe.text_encoder, pipe.unet, pipe.vae)
    return sum(math.prod(leaf.shape) * itemsize(leaf.dtype)
               for part in parts for leaf in flatten(part.tree).values())


def working_bytes(pipe: Any, width: int, height: int, batch: int) -> int:
    """What drawing takes on top of the loaded weights; `batch` pictures at once, guided."""
    factor, size = pipe.vae.config.downscale, itemsize(pipe.unet.dtype)
    latent_pixels = math.ceil(width / factor) * math.ceil(height / factor)
    unet = _unet(pipe.unet.tree, 2 * batch * latent_pixels * size)
    decoder = _decoder(pipe.vae.tree["decoder"], latent_pixels * size)
    pictures = PICTURE * batch * width * height * size
    return max(unet, decoder + pictures)


def _unet(tree: dict, plane: int) -> int:
    """The UNet's peak. `plane` is the bytes of one channel of the batch at the first level."""
    down = tree["down_blocks"]
    levels = [(block, plane / 4**i) for i, block in enumerate(down)]
    up = list(zip(tree["up_blocks"], (p for _, p in reversed(levels))))
    peaks = [_block(block, plane) for block, plane in [*levels, *up]]
    skips = sum(p * len(block["resnets"]) * _widest([block["resnets"][0]], 0)
                for block, p in levels)
    return int(skips + max(peaks))


def _decoder(tree: dict, plane: int) -> int:
    """The VAE decoder's peak, for one picture."""
    blocks = [tree["mid_block"], *tree["up_blocks"]]
    planes = [plane * 4 ** max(i - 1, 0) for i in range(len(blocks))]
    return int(max(_block(block, p) for block, p in zip(blocks, planes)))


def _block(block: dict, plane: float) -> float:
    """The peak of one level's residual blocks and transformers."""
    resnets = block["resnets"]
    activation = plane * max(_widest(resnets, 0), _widest(resnets, 1))
    peak = AT_ONCE * activation + 1.5 * min(WINDOWS, 9 * activation)
    if "upsamplers" in block:  # works at twice the size, with the level's width
        larger = 4 * plane * _widest(resnets, 0)
        peak = max(peak, 3 * larger + 1.5 * min(WINDOWS, 9 * larger))
    for attention in block.get("attentions", ()):
        if "transformer_blocks" in attention:
            channels = attention["proj_in"]["weight"].shape[0]
            peak = max(peak, FEED_FORWARD * channels * plane + 3 * SCORES)
    return peak


def _widest(resnets: Iterable[dict], axis: int) -> int:
    """The most channels that a residual block gives (axis 0) or takes (axis 1)."""
    return max(resnet["conv1"]["weight"].shape[axis] for resnet in resnets)
