"""How much memory a request takes, estimated from the shapes of the weights.

    all = Python and its libraries + weights + the larger of (UNet's peak, VAE decoder's peak)

The two peaks follow from a backend's `MemoryModel`. At one resolution, with S the bytes of the
widest activation there (a residual block's input), a block holds a few such arrays at once, what
its convolutions work in, and in transformers the feed-forward's 8 C wide hidden layer and what is
made of it. Of weights smaller than float32 NumPy makes a layer's array: the largest of the level.
The skips of the UNet are held from the way down. `tests/test_memory.py` compares with what is
measured; docs/memory.md has the figures of Stable Diffusion 1.5.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from refsd.backends import MemoryModel, find_backend
from refsd.contracts import array_bytes, itemsize
from refsd.leaf import Away
from refsd.tree import flatten

TILED_FROM = 2**16  # pixels of a picture: of smaller ones the VAE takes little in any way
PICTURE = 6 * 3  # floats a pixel while pictures are joined, scaled and clipped


def estimate_bytes(pipe: Any, width: int, height: int, batch: int) -> int:
    """The most that the process will hold while `pipe` draws `batch` pictures of this size."""
    libraries = find_backend(pipe.denoiser.backend).memory.libraries
    return libraries + weight_bytes(pipe) + working_bytes(pipe, width, height, batch)


def weight_bytes(pipe: Any) -> int:
    """The bytes of all loaded weights, with what fills up their rows in memory.

    Of those that are away (refsd.weights.streaming), what is there at once.
    """
    away = {part: [leaf for leaf in flatten(network.tree).values() if isinstance(leaf, Away)]
            for part, network in pipe.networks.items()}
    mode = next((leaf.source.mode for leaves in away.values() for leaf in leaves), None)
    here = sum(_held(leaf) for network in pipe.networks.values()
               for leaf in flatten(network.tree).values() if not isinstance(leaf, Away))
    return here if mode is None else here + offloaded_bytes(away, mode)


def offloaded_bytes(leaves: Mapping[str, Iterable[Any]], mode: str) -> int:
    """The most of these leaves of each part that is there at once; bands need a whole VAE's."""
    from refsd.weights.streaming import most_bytes

    sizes = {part: [_held(leaf) for leaf in found] for part, found in leaves.items()}
    return max(most_bytes(mode, sizes.values()), sum(sizes.get("vae", ())))


def _held(leaf):
    if isinstance(leaf, Away):
        return leaf.loaded_bytes
    if hasattr(leaf, "nbytes"):
        return leaf.nbytes
    return array_bytes(leaf)  # a shape without memory


def _wide(leaf):
    """The bytes of the array that a leaf stands for, in what is computed with: at least float32."""
    return math.prod(leaf.shape) * max(4, itemsize(leaf.dtype))


def _made(leaf):
    """What NumPy makes of a leaf: dense() of a quantized one, and of halves float32."""
    dense = array_bytes(leaf) if _held(leaf) < array_bytes(leaf) else 0
    return dense + (_wide(leaf) if array_bytes(leaf) < _wide(leaf) else 0)


def working_bytes(pipe: Any, width: int, height: int, batch: int) -> int:
    """What drawing takes on top of the loaded weights; `batch` pictures at once, guided.

    Each is with the UNet twice then, in InstructPix2Pix three times (`pipe.copies`).
    """
    vae = pipe.coder("decoder")
    factor, size = vae.config.downscale, itemsize(vae.dtype)
    pixels = math.ceil(width / factor) * math.ceil(height / factor)  # of the latents
    pictures = PICTURE * batch * width * height * size
    decoder = decoder_bytes(vae, pixels, size)
    if width * height > TILED_FROM:
        from refsd.pipelines.vae_tiling import coding_bytes

        decoder = coding_bytes(vae, "decoder", math.ceil(height / factor),
                               math.ceil(width / factor), vae.tiling)
    return max(denoiser_bytes(pipe, width, height, batch), decoder + pictures)


def denoiser_bytes(pipe: Any, width: int, height: int, batch: int) -> int:
    """The denoiser's peak: of a UNet by its levels, of other networks by planning a call."""
    net, factor = pipe.denoiser, pipe.vae.config.downscale
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    if "down_blocks" in net.tree:
        return unet_bytes(net, rows * columns, batch * pipe.copies, itemsize(net.dtype))
    from refsd.pipelines.planned import calls, denoiser_of
    from refsd.planning import Asked

    networks = {part: found for part, found in pipe.networks.items() if part != "vae"}
    asked = Asked(batch, pipe.copies, rows, columns, factor)
    _, plan, _ = calls(networks, asked)[denoiser_of(networks)[0]]
    return plan.with_gaps(find_backend(net.backend).memory.gaps)


def unet_bytes(unet: Any, pixels: int, batch: int, size: int) -> int:
    """The UNet's peak for `batch` latents of so many pixels, in numbers of `size` bytes."""
    model = find_backend(unet.backend).memory
    planes = [pixels * batch * size / 4**i for i in range(len(unet.tree["down_blocks"]))]
    scores = [min(model.scores, heads * (pixels / 4**i) ** 2 * size)
              for i, heads in enumerate(unet.config.heads)]
    down = list(zip(unet.tree["down_blocks"], planes, scores))
    up = list(zip(unet.tree["up_blocks"], reversed(planes), reversed(scores)))
    skips = sum(plane * len(block["resnets"]) * widest(block["resnets"][:1], 0)
                for block, plane, _ in down)
    peak = skips + max(_block(*level, model) for level in down + up)
    return int((1 + model.gaps) * peak)


def decoder_bytes(vae: Any, pixels: int, size: int, part: str = "decoder") -> int:
    """The VAE decoder's peak, for one picture with latents of so many pixels; or the encoder's."""
    model, tree = find_backend(vae.backend).memory, vae.tree[part]
    if "layers" in tree:  # a tiny autoencoder's
        return vae.decoder_bytes(model, pixels * size)
    blocks = [tree["mid_block"], *(tree.get("up_blocks") or tree["down_blocks"][::-1])]
    planes = [pixels * size * 4 ** max(i - 1, 0) for i in range(len(blocks))]
    scores = min(model.scores, pixels**2 * size)
    peak = max(_block(block, plane, scores, model) for block, plane in zip(blocks, planes))
    return int((1 + model.gaps) * peak)


def _block(block: dict, plane: float, scores: float, model: MemoryModel) -> float:
    """The peak of one level's residual blocks and transformers; `plane` is one channel's bytes."""
    def convolving(activation, copies):
        return (copies * activation + min(model.workspace, model.unrolled * activation)
                + min(model.transformed, 4 * max(_wide(r["conv1"]["weight"]) for r in resnets)))

    resnets = block["resnets"]
    activation = plane * max(widest(resnets, 0), widest(resnets, 1))
    peak = convolving(activation, model.at_once)
    if "upsamplers" in block:  # works at twice the size, with the level's width
        peak = max(peak, convolving(4 * plane * widest(resnets, 0), model.enlarged))
    for attention in block.get("attentions", ()):
        if "transformer_blocks" in attention:
            channels = attention["proj_in"]["weight"].shape[0]
            peak = max(peak, model.feed_forward * channels * plane,
                       model.at_once * activation + 3 * scores)
    return peak + model.dense * max(map(_made, flatten(block).values()))


def widest(resnets: Iterable[dict], axis: int) -> int:
    """The most channels that a residual block gives (axis 0) or takes (axis 1)."""
    return max(resnet["conv1"]["weight"].shape[axis] for resnet in resnets)
