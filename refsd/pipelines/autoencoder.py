"""The VAE of a pipeline as a callable that works alone: weights, configuration, backend."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import numpy as np

from refsd import functional as F
from refsd.arguments import as_array
from refsd.backends import BACKENDS, find_backend
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.models import vae
from refsd.models.config import VAEConfig
from refsd.pipelines.from_diffusers import answer
from refsd.pipelines.generators import as_generators
from refsd.pipelines.graph_mode import GraphMode
from refsd.pipelines.memory import TILED_FROM
from refsd.pipelines.request import check_choice
from refsd.pipelines.tensors import shaped
from refsd.places import beside, on_host
from refsd.random import TorchGenerator, draw_noise
from refsd.registry import use
from refsd.tree import flatten, to_tree
from refsd.weights.checkpoint import Component
from refsd.weights.forms import widened


class DiagonalGaussian:
    """The VAE's posterior: independent normal latents with `mean` and `logvar`, (N, 4, h, w)."""

    def __init__(self, mean: Any, logvar: Any, backend: str):
        self.mean, self.logvar, self.backend = mean, logvar, backend

    @property
    def latent_dist(self) -> "DiagonalGaussian":
        """Itself, so that code written for diffusers reads the same here."""
        return self

    def mode(self) -> Any:
        """The most likely latents: the mean."""
        return self.mean

    def sample(self, generator: Any = None) -> Any:
        """mean + e^(logvar / 2) noise, from a seed, a generator or a list, one a picture."""
        if generator is not None:
            generator = as_generators(generator, TorchGenerator, self.mean.shape[0])
        noise = beside(self.mean, draw_noise(self.mean.shape, str(self.mean.dtype), generator))
        with use(self.backend):
            return vae.sample_posterior(self.mean, self.logvar, noise)


class VAE(GraphMode):
    """Pictures to latents and back; latents here are neither shifted nor scaled as config says.

    `tiling` is how both work where a call does not say: "off", in one piece; "exact", in bands of
    rows, with the same bits, less memory and more time; "auto", whichever the memory allows; or
    "blend", in overlapping tiles of the sizes below, as after diffusers' enable_tiling().
    """

    TILINGS: tuple[str, ...] = ("off", "auto", "exact", "blend")
    room: int | None = None  # bytes that "auto" may take, of a memory_budget

    def __init__(self, tree: dict, config: VAEConfig, backend: str, exact: bool = False):
        self.tree, self.config, self.backend, self.exact = tree, config, backend, exact
        self.dtype = str(tree["decoder"]["conv_in"]["weight"].dtype)
        self._wide: tuple[list, VAE] | None = None
        self.tiling, self.tile_overlap_factor = "auto", 0.25
        self.tile_sample_min_size = config.sample_size
        self.tile_latent_min_size = config.sample_size // config.downscale

    @classmethod
    def of(cls, part: Component, backend: str, exact: bool) -> Self:
        """That of a loaded checkpoint."""
        return cls(part.tree, VAEConfig.from_json(part.config), backend, exact)

    def calls(self, part: str, asked: Any, texts: Mapping[str, Any]) -> dict[str, partial]:
        """What a drawing (refsd.planning.Asked) computes of it: a picture decoded, or encoded."""
        channels = self.tree["encoder"]["conv_in"]["weight"].shape[1]
        latents = Spec((1, self.config.latent_channels, asked.height, asked.width), self.dtype)
        picture = Spec((1, channels, asked.height * asked.downscale,
                        asked.width * asked.downscale), self.dtype)
        return {"decode": partial(vae.decode, latents, **self._with("decoder")),
                "encode": partial(vae.encode, picture, **self._with("encoder"))}

    def _with(self, part):
        beside = {"decoder": "post_quant_conv", "encoder": "quant_conv"}[part]
        return {part: self.tree[part], beside: self.tree.get(beside), "config": self.config}

    def in_float32(self) -> "VAE":
        """The same in float32, of the weights as they are held here; made once for them."""
        leaves = flatten(self.tree)
        if self._wide is None or any(a is not b for a, b in zip(self._wide[0], leaves.values())):
            wide = {name: widened(np.asarray(on_host(leaf)), getattr(leaf, "name", None))
                    for name, leaf in leaves.items()}
            find_backend(self.backend).place(wide)
            self._wide = [*leaves.values()], type(self)(to_tree(wide), self.config, self.backend,
                                                        self.exact)
        found = self._wide[1]
        for name in ("tiling", "tile_overlap_factor", "tile_sample_min_size",
                     "tile_latent_min_size", "graph", "room"):
            setattr(found, name, getattr(self, name))
        return found

    def enable_tiling(self) -> None:
        """Work in overlapping tiles from now on, as diffusers does."""
        self.tiling = "blend"

    def disable_tiling(self) -> None:
        """In one piece again, or in bands that give the same bits."""
        self.tiling = "auto"

    @property
    def tiling(self) -> str:
        """One of TILINGS; UsageError for others."""
        return self._tiling

    @tiling.setter
    def tiling(self, name: str) -> None:
        self._tiling = check_choice("vae.tiling", name, self.TILINGS)

    @property
    def use_tiling(self) -> bool:
        """Whether tiles are blended, as diffusers has it."""
        return self.tiling == "blend"

    def encode(self, image: Any, *, tiling: str | None = None, **others: Any) -> DiagonalGaussian:
        """(N, 3, H, W) in [-1, 1], H and W multiples of the downscale -> posterior (N, 4, h, w)

        One picture at a time, to bound the memory.
        """
        factor, channels = self.config.downscale, self.tree["encoder"]["conv_in"]["weight"].shape[1]
        answered = answer("vae.encode", others)
        image = as_array("vae.encode: image", image)
        if "int" in str(image.dtype):
            raise UsageError(f"vae.encode: image holds {image.dtype}, {tuple(image.shape)}; give "
                             "floats in [-1, 1], channels first: pixels / 127.5 - 1")
        image = BACKENDS[self.backend].put(as_array("vae.encode: image", image, self.dtype))
        good = len(image.shape) == 4 and image.shape[0] >= 1 and image.shape[1] == channels
        if not good or any(n < 1 or n % factor for n in image.shape[2:]):
            raise UsageError(f"vae.encode: image has shape {tuple(image.shape)}; give "
                             f"(N, {channels}, H, W) with H and W multiples of {factor}")
        with use(self.backend, exact=self.exact):
            mean, logvar = vae.posterior(self._one_by_one("encoder", image, tiling))
        return answered(DiagonalGaussian(mean, logvar, self.backend))

    def decode(self, latents: Any, *, tiling: str | None = None, **others: Any) -> Any:
        """(N, 4, h, w) -> (N, 3, H, W), about [-1, 1]; one picture at a time to bound the memory"""
        answered = answer("vae.decode", others)
        latents = BACKENDS[self.backend].put(shaped(
            "vae.decode: latents", latents, ("N", self.config.latent_channels, "h", "w"),
            self.dtype))
        find_backend(self.backend).release()  # small memory that the UNet's steps left
        with use(self.backend, exact=self.exact):
            return answered(self._one_by_one("decoder", latents, tiling))

    def _whole(self, part, _, x):
        """A half in one piece; a graph would put the text in the place of _"""
        half = vae.decode if part == "decoder" else vae.moments
        return half(x, **self._with(part))

    def _one_by_one(self, part, x, tiling):
        """The half of x, one picture after the other, each as `tiling` says"""
        whole = network = partial(self._whole, part, None)
        tiling, side = tiling or self.tiling, self.config.downscale if part == "decoder" else 1
        if tiling != "auto" or x.shape[2] * x.shape[3] * side**2 > TILED_FROM:
            from refsd.pipelines.vae_tiling import tiled

            network = tiled(self, network, part, x, tiling)
        if network is whole:
            network = partial(self.as_graph(partial(self._whole, part), part), None)
        return F.concat([network(F.slice(x, axis=0, start=i, stop=i + 1))
                         for i in range(x.shape[0])], axis=0)
