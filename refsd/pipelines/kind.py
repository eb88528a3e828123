"""What a class of pipelines says of itself: its parts, what it reads, and what it does not do."""

from collections.abc import Mapping
from typing import Any, ClassVar

from refsd.errors import UsageError


class Kind:
    """Class attributes of a pipeline; the defaults are those of StableDiffusionPipeline.

    `inputs` are what the UNet may read (refsd.families.inputs), `denoises` is the part that
    predicts, `optional` are parts that may be None. `settings` are entries of model_index.json
    besides the parts, with diffusers' defaults; they become attributes. `lacks` has, of what other
    pipelines do and this one does not, the reason or what to do instead.
    """

    parts: tuple[str, ...] = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    optional: tuple[str, ...] = ()
    denoises = "unet"
    inputs: tuple[str, ...] = ("latents",)
    copies = 2  # of each picture in a step's batch, where it is guided
    resizes = False  # a picture to draw from is made to the size that is asked for
    rounds_up = False  # from a picture it makes n - int(n - n strength) steps, not int(n strength)
    settings: ClassVar[Mapping[str, Any]] = {}
    upgrades_scheduler = True  # options of old scheduler configs are replaced, as in diffusers
    # A name for callbacks -> the network's further input, and whether its negative texts' rows.
    further: ClassVar[Mapping[str, tuple[str, bool]]] = {}
    lacks: ClassVar[Mapping[str, str]] = {}

    def require(self, feature: str) -> None:
        """UsageError for what these pipelines do not do."""
        if feature in self.lacks:
            raise UsageError(f"{feature}: not with {type(self).__name__}, {self.lacks[feature]}; "
                             "leave it out")

    @property
    def graph(self) -> bool | None:
        """Whether its networks run as graphs (refsd.pipelines.graph_mode); None: where faster.

        All pipelines that share the networks share it.
        """
        return self.denoiser.graph

    @graph.setter
    def graph(self, value: bool | None) -> None:
        for network in self.networks.values():
            if hasattr(network, "graph"):
                network.graph = value

    @classmethod
    def left_out(cls, given: dict[str, Any]) -> list[str]:
        """Taken from a call's keywords, the parts that a model may lack, as None: its networks."""
        found = [part for part in cls.optional if part in given and given[part] is None]
        for part in found:
            del given[part]
        return [part for part in found if part.startswith("text_encoder")]

    def mu(self, height: int, width: int, given: Any) -> float | None:
        """How the sigmas of a run are to be shifted for pictures of a size; None: not by that."""
        return given

    @property
    def own_mu(self) -> float | None:
        """That of the model's own size: a schedule has as many steps with any."""
        return self.mu(self.default_size, self.default_size, None)

    @property
    def multiple(self) -> int:
        """Pixels of which a side has a whole number: of a transformer those of a patch."""
        return self.vae_scale_factor * self.denoiser.patch_size

    def upcasts(self, part: str) -> bool:
        """Whether the VAE's "encoder" or "decoder" computes in float32, whatever its dtype is."""
        return False

    def coder(self, part: str) -> Any:
        """The VAE as it is to encode or decode."""
        return self.vae.in_float32() if self.upcasts(part) else self.vae
