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

    def coder(self, part: str) -> Any:
        """The VAE as it is to decode ("decoder") or encode ("encoder")."""
        return self.vae
