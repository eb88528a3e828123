"""A tiny autoencoder's options, and the shapes of its tensors (diffusers' AutoencoderTiny)."""

from collections.abc import Mapping
from typing import Any

from refsd.errors import ModelError
from refsd.networks.blocks import conv
from refsd.networks.network import Network, Shape, count, each, only, width
from refsd.rules import anything, boolean, number, optional

OPTIONS = {
    "in_channels": (3, only(3)),
    "out_channels": (3, only(3)),
    "encoder_block_out_channels": ((64, 64, 64, 64), each(width)),
    "decoder_block_out_channels": ((64, 64, 64, 64), each(width)),
    "act_fn": ("relu", only("relu")),
    "upsample_fn": ("nearest", only("nearest")),
    "latent_channels": (4, count),
    "upsampling_scaling_factor": (2, only(2)),
    "num_encoder_blocks": ((1, 3, 3, 3), each(count)),
    "num_decoder_blocks": ((3, 3, 3, 1), each(count)),
    "latent_magnitude": (3, anything),  # of bytes that hold latents, which nobody asks for here
    "latent_shift": (0.5, anything),
    "force_upcast": (False, boolean),
    "scaling_factor": (1.0, number(1e-6, 1e6)),
    "shift_factor": (0.0, optional(number(-1e6, 1e6))),
    "block_out_channels": (None, anything),
}


def shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of an AutoencoderTiny."""
    found = {half: config[f"{half}_block_out_channels"] for half in ("encoder", "decoder")}
    blocks = {half: config[f"num_{half}_blocks"] for half in found}
    for half, widths in found.items():
        if len(widths) != len(blocks[half]) or len(set(widths)) > 1:
            raise ModelError(f"the config of a tiny autoencoder: {half}_block_out_channels is "
                             f"{list(widths)} for num_{half}_blocks {list(blocks[half])}, expected "
                             "one width, as often as there are levels")
    latent, wide = config["latent_channels"], found["encoder"][0]
    encoder: list[Any] = []
    for level, many in enumerate(blocks["encoder"]):
        encoder += [conv(wide, 3) if level == 0 else _bare(wide)] + [_block(wide)] * many
    encoder.append(conv(latent, wide))

    wide = found["decoder"][0]
    decoder: list[Any] = [conv(wide, latent), None]  # a ReLU
    for level, many in enumerate(blocks["decoder"]):
        last = level == len(blocks["decoder"]) - 1
        decoder += [_block(wide)] * many + ([conv(3, wide)] if last else [None, _bare(wide)])
    layers = {str(i): layer for i, layer in enumerate(decoder) if layer is not None}
    return {"encoder": {"layers": encoder}, "decoder": {"layers": layers}}


def _bare(wide: int) -> dict[str, Shape]:
    """A convolution without a bias: it halves, or follows an upsampling."""
    return {"weight": (wide, wide, 3, 3)}


def _block(wide: int) -> dict[str, Any]:
    return {"conv": {key: conv(wide, wide) for key in ("0", "2", "4")}}


TAESD = Network("tiny autoencoder", ("AutoencoderTiny",), ("diffusion_pytorch_model",),
                ("decoder.layers.0.weight",), OPTIONS, shapes, "refsd.pipelines.taesd:TinyVAE")
PARTS = {"taesd": TAESD}
