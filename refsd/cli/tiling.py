"""--vae-tiling: whether the VAE works in one piece, in bands of the same bits, or in tiles."""

from typing import Any

from refsd.cli.arguments import Parser, choice
from refsd.errors import UsageError

TILINGS = ("auto", "off", "exact", "blend")  # as in refsd.pipelines.components, without NumPy


def add_options(parser: Parser) -> None:
    """The option of tiling."""
    parser.add_argument_group("how the VAE works").add_argument(
        "--vae-tiling", nargs="?", type=choice(*TILINGS), const="exact", default="auto",
        metavar="NAME", help="off: in one piece; exact, or nothing: in bands of rows, with the "
        "same bits, less memory and more time; auto: whichever the memory allows (default); "
        "blend: in tiles as diffusers has them, another picture. Stands after the prompt")


def require(pipe: Any, name: str) -> None:
    """UsageError where the pipeline's VAE does not work so."""
    if name not in pipe.vae.TILINGS:
        raise UsageError(f"--vae-tiling {name}: a tiny autoencoder works in one piece, in little "
                         "memory; leave it out")
