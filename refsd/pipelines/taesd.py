"""A tiny autoencoder in the place of the VAE: the same calls, pictures at once, a little softer."""

from pathlib import Path
from typing import Any, NamedTuple

from refsd import functional as F
from refsd.backends import BACKENDS, find_backend
from refsd.errors import UsageError
from refsd.models import taesd
from refsd.models.taesd import TinyVAEConfig
from refsd.pipelines.autoencoder import VAE
from refsd.pipelines.from_diffusers import answer
from refsd.pipelines.tensors import shaped
from refsd.registry import use
from refsd.weights.checkpoint import load
from refsd.weights.folder import check_variants
from refsd.weights.taesd import NAME, is_taesd, plan_taesd


class TinyLatents(NamedTuple):
    """What it encodes to: the latents themselves, with the ways to ask a posterior for them."""

    latents: Any

    @property
    def latent_dist(self) -> "TinyLatents":
        """Itself, so that code for a VAE's posterior reads the same."""
        return self

    @property
    def mean(self) -> Any:
        """The latents; there is no variance."""
        return self.latents

    def mode(self) -> Any:
        """The latents."""
        return self.latents

    def sample(self, generator: Any = None) -> Any:
        """The latents; no noise is drawn."""
        return self.latents


class TinyVAE(VAE):
    """TAESD, diffusers' AutoencoderTiny. Its latents are the diffusion's, unscaled."""

    TILINGS = ("off", "auto")

    def __init__(self, tree: dict, config: TinyVAEConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        self.dtype = str(tree["decoder"]["layers"]["0"]["weight"].dtype)
        self.tiling = "off"

    @classmethod
    def open(cls, place: Path, *, backend: str, dtype: str, weights: str | None = None,
             variant: str | None = None, force: bool = False, exact: bool = False) -> "TinyVAE":
        """Load from a folder or a file. Raises ModelError, ResourceError, UsageError."""
        plan = plan_taesd(place, variant=variant)
        check_variants({NAME: plan.variant}, variant, str(place))
        if not any(name.startswith("decoder.") for name in plan.shapes):
            raise UsageError(f"{place}: the encoder alone; give the decoder, or a folder of both")
        part = load({NAME: plan}, dtype=dtype, weights=weights, force=force)[NAME]
        find_backend(backend).place(part.tensors)
        return cls(part.tree, TinyVAEConfig.from_json(part.config), backend, exact)

    def decoder_bytes(self, model: Any, plane: float) -> int:
        """The decoder's peak, for one picture whose latents have so many bytes a channel.

        All layers are as wide as the first one.
        """
        wide = self.tree["decoder"]["layers"]["0"]["bias"].shape[0]
        activation = plane * self.config.downscale**2 * wide
        work = min(model.workspace, model.unrolled * activation)
        return int((1 + model.gaps) * (model.at_once * activation + work))

    def enable_tiling(self) -> None:
        """UsageError: it works in little memory as it is."""
        raise UsageError("a tiny autoencoder works in one piece, in little memory; leave it out")

    def encode(self, image: Any, *, tiling: str | None = None, **others: Any) -> TinyLatents:
        """(N, 3, H, W) in [-1, 1], H and W multiples of the downscale -> (N, 4, h, w)"""
        answered, half = answer("vae.encode", others), self._half("encoder", tiling)
        image = shaped("vae.encode: image", image, ("N", 3, "H", "W"), self.dtype)
        if any(n % self.config.downscale for n in image.shape[2:]):
            raise UsageError(f"vae.encode: image has shape {tuple(image.shape)}; give H and W that "
                             f"are multiples of {self.config.downscale}")
        return answered(TinyLatents(self._each(taesd.encode, image, half)))

    def decode(self, latents: Any, *, tiling: str | None = None, **others: Any) -> Any:
        """(N, 4, h, w) -> (N, 3, H, W), about [-1, 1]; one picture at a time to bound the memory"""
        answered, half = answer("vae.decode", others), self._half("decoder", tiling)
        latents = shaped("vae.decode: latents", latents,
                         ("N", self.config.latent_channels, "h", "w"), self.dtype)
        return answered(self._each(taesd.decode, latents, half))

    def _half(self, name, tiling):
        if tiling not in (None, *self.TILINGS):
            self.enable_tiling()
        if name not in self.tree:
            raise UsageError(f"this tiny autoencoder has no {name}; give a file or a folder that "
                             "holds both halves")
        return self.tree[name]

    def _each(self, network, x, half):
        x = BACKENDS[self.backend].put(x)
        with use(self.backend, exact=self.exact):
            return F.concat([network(F.slice(x, axis=0, start=i, stop=i + 1), **half)
                             for i in range(x.shape[0])], axis=0)


def replace_vae(place: Path, replaced: dict[str, Path | None], objects: dict[str, Any],
                **options: Any) -> None:
    """Load a tiny autoencoder that is where a VAE is named: among the objects it then is.

    Where none replaces the VAE it is the folder's own.
    """
    where = replaced.get("vae", place / "vae")
    if "vae" not in replaced or is_taesd(where):
        objects["vae"], replaced["vae"] = TinyVAE.open(where, **options), None
