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
    pixels = math.ceil(width / factor) * math.ceil(height / factor)  # of the latents
    pictures = PICTURE * batch * width * height * size
    decoder = decoder_bytes(pipe.vae.tree["decoder"], pixels, size)
    return max(unet_bytes(pipe.unet, pixels, 2 * batch, size), decoder + pictures)


def unet_bytes(unet: Any, pixels: int, batch: int, size: int) -> int:
    """The UNet's peak for `batch` latents of so many pixels, in numbers of `size` bytes."""
    planes = [pixels * batch * size / 4**i for i in range(len(unet.tree["down_blocks"]))]
    scores = [min(SCORES, heads * (pixels / 4**i) ** 2 * size)
              for i, heads in enumerate(unet.config.heads)]
    down = list(zip(unet.tree["down_blocks"], planes, scores))
    up = list(zip(unet.tree["up_blocks"], reversed(planes), reversed(scores)))
    skips = sum(plane * len(block["resnets"]) * _widest(block["resnets"][:1], 0)
                for block, plane, _ in down)
    return int(skips + max(_block(*level) for level in down + up))


def decoder_bytes(tree: dict, pixels: int, size: int) -> int:
    """The VAE decoder's peak, for one picture with latents of so many pixels."""
    blocks = [tree["mid_block"], *tree["up_blocks"]]
    planes = [pixels * size * 4 ** max(i - 1, 0) for i in range(len(blocks))]
    scores = min(SCORES, pixels**2 * size)
    return int(max(_block(block, plane, scores) for block, plane in zip(blocks, planes)))


def _block(block: dict, plane: float, scores: float) -> float:
    """The peak of one level's residual blocks and transformers; `plane` is one channel's bytes."""
    resnets = block["resnets"]
    activation = plane * max(_widest(resnets, 0), _widest(resnets, 1))
    peak = AT_ONCE * activation + 1.5 * min(WINDOWS, 9 * activation)
    if "upsamplers" in block:  # works at twice the size, with the level's width
        larger = 4 * plane * _widest(resnets, 0)
        peak = max(peak, 3 * larger + 1.5 * min(WINDOWS, 9 * larger))
    for attention in block.get("attentions", ()):
        if "transformer_blocks" in attention:
            channels = attention["proj_in"]["weight"].shape[0]
            peak = max(peak, FEED_FORWARD * channels * plane, AT_ONCE * activation + 3 * scores)
    return peak


def _widest(resnets: Iterable[dict], axis: int) -> int:
    """The most channels that a residual block gives (axis 0) or takes (axis 1)."""
    return max(resnet["conv1"]["weight"].shape[axis] for resnet in resnets)
