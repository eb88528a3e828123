"""What a family of models is: plain data, and the rules of its single files' names.

A layout's rules are a function of the tree of what refsd.models takes apart (refsd.networks makes
it of a config), so blocks are counted by walking it, never by a formula of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from refsd.arguments import shown
from refsd.errors import UsageError

PIPELINES = {"text": "StableDiffusionPipeline", "image": "StableDiffusionImg2ImgPipeline",
             "mask": "StableDiffusionInpaintPipeline"}
# Of a file's metadata, what says which model it is: "stable-diffusion-xl-turbo-v1".
NAMING = ("modelspec.architecture", "modelspec.title")


class Location(NamedTuple):
    """Where a tensor lies in a file: part `part` of `parts` equal ones of a tensor's first axis.

    transposed, or with its halves along the first axis exchanged: either undoes itself.
    """

    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False
    exchanged: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what lies here, from that of the file's tensor."""
        if self.parts > 1 and stored and stored[0] % self.parts == 0:
            stored = (stored[0] // self.parts, *stored[1:])
        return stored[::-1] if self.transposed else stored

    def take(self, stored: Any) -> Any:
        """What lies here of the file's tensor, an array; a view where it lies there as here."""
        if self.parts > 1:
            rows = stored.shape[0] // self.parts
            stored = stored[self.part * rows:(self.part + 1) * rows]
        return self.turned(stored)

    def turned(self, array: Any) -> Any:
        """An array as it lies here, of as it lies there; the other way round it is the same."""
        if self.transposed:
            return array.T.copy()
        if not self.exchanged:
            return array
        turned, half = array.copy(), array.shape[0] // 2
        turned[:half], turned[half:] = array[half:], array[:half]
        return turned


@dataclass(frozen=True)
class Layout:
    """One network in a family's single files: `prefix` stands before all its names.

    locate(tree): name here -> Location there; None is the names of diffusers. landmark is a tensor
    that the network always has. unused(tree): how the names begin that such files hold besides.
    adapt(config, tensors): the config with what a file's tensors, by their names there, say.
    """

    prefix: str
    landmark: str | None = None
    locate: Callable[[Mapping[str, Any]], dict[str, Location]] | None = None
    unused: Callable[[Mapping[str, Any]], str] | None = None
    adapt: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Family:
    """A family of models, as its single files have it; folders say most of this themselves.

    configs: config.json a network, under the names of a folder's parts; models may lack the
    `optional` ones. scheduler: scheduler_config.json. A file is of the family that has a tensor
    with one of `marks` in its name, or whose cross-attention reads `text_width`. predictions: what
    is predicted after so many steps of training, where that is known to differ from the
    scheduler's. distilled: the scheduler of such models, by a word that their metadata have.
    pads: the token that fills up the prompts of a tokenizer, where that is not the end of text.
    pipelines: the class that draws from a "text", an "image", or a picture and its "mask", of
    refsd or as "module:class".
    settings: what model_index.json of a folder says besides the parts.
    """

    name: str
    configs: Mapping[str, Mapping[str, Any]]
    layouts: Mapping[str, Layout]
    scheduler: Mapping[str, Any]
    text_width: int
    marks: tuple[str, ...] = ()
    predictions: Mapping[int, str] = field(default_factory=dict)
    distilled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pads: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    pipelines: Mapping[str, str] = field(default_factory=lambda: PIPELINES)
    published: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts that have weights."""
        return tuple(self.configs)

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts."""
        return ("scheduler", *self.tokenizers, *self.networks)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The part that reads each text encoder's texts: tokenizer_2 those of text_encoder_2."""
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.networks
                     if part.startswith("text_encoder"))

    def pipeline(self, task: str) -> str:
        """The name of the class that draws from a "text", an "image" or with a "mask"; or empty."""
        return self.pipelines.get(task, "").rpartition(":")[2]

    def leaving_out(self, part: str | None) -> dict[str, None]:
        """The argument of from_pretrained that leaves a part out; none for None.

        Raises UsageError for a part that models of the family may not lack.
        """
        if part is None:
            return {}
        if part not in self.optional:
            raise UsageError(f"without: got {shown(part)}, but {self.name} may lack "
                             f"{', '.join(self.optional) or 'none of its parts'}; leave it out")
        return {part: None}

    def scheduler_for(self, metadata: Mapping[str, str]) -> Mapping[str, Any]:
        """That of a single file, which is a distilled model's where its metadata name one."""
        said = " ".join(metadata.get(key, "") for key in NAMING).lower()
        return next((config for word, config in self.distilled.items() if word in said),
                    self.scheduler)
