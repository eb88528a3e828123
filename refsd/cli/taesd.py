"""--taesd: a tiny autoencoder for pictures and previews, or for previews alone."""

import argparse
from typing import Any

from refsd.cli.arguments import Parser
from refsd.errors import UsageError


def add_options(parser: Parser) -> None:
    """The options of tiny autoencoders."""
    add = parser.add_argument_group("with a tiny autoencoder").add_argument
    add("--taesd", metavar="PATH",
        help="TAESD in the place of the VAE, for --preview too: at once, a little softer; a folder "
        "or a .safetensors file (--vae takes one as well)")
    add("--taesd-preview-only", action="store_true", help="for --preview alone")


def check(options: argparse.Namespace) -> None:
    """Let it be the VAE, and decode the previews; UsageError for what does not go together."""
    place, only = options.taesd, options.taesd_preview_only
    if only and (place is None or options.preview is None):
        raise UsageError("--taesd-preview-only says what --preview decodes with; give --preview N "
                         "and --taesd PATH too")
    if place is None:
        return
    if not only and options.vae is not None:
        raise UsageError("--taesd and --vae both replace the VAE; give one of them, or "
                         "--taesd-preview-only")
    if not only:
        options.vae = place
    if options.preview is not None:
        options.preview_vae = True


def put_on(pipe: Any, options: argparse.Namespace) -> None:
    """Have the previews of a pipeline decoded by it, if by it alone."""
    if not options.taesd_preview_only:
        return
    from refsd.pipelines.taesd import TinyVAE
    from refsd.weights import resolve

    pipe.preview_vae = TinyVAE.open(
        resolve(options.taesd, download=options.download, parts=("vae",)), backend=pipe.backend,
        dtype=options.dtype, exact=options.exact)
    if pipe.preview_vae.config.latent_channels != pipe.vae.config.latent_channels:
        raise UsageError(f"{options.taesd}: latents of {pipe.preview_vae.config.latent_channels} "
                         f"channels, the model has {pipe.vae.config.latent_channels}; give one "
                         "that was made for it")
