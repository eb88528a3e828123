"""The pipeline that a model is drawn with, chosen by its family."""

from importlib import import_module
from pathlib import Path
from typing import Any

from refsd.errors import ModelError, UsageError
from refsd.families import DEFAULT, Family, of_parts
from refsd.pipelines import from_diffusers
from refsd.pipelines.pipeline import Pipeline
from refsd.weights import resolve
from refsd.weights.plan import family_at

FROM = {"text": "from a text", "image": "from an image", "mask": "with a mask"}


def family_of_model(path: str | Path | None, *, download: bool = False,
                    variant: str | None = None, **hub: Any) -> Family:
    """The family of a folder, a file or a hub id; of no path that of the model in refsd.

    Of an id that may be fetched no weights are: which of them are wanted is not known yet.
    """
    if path is None:
        return DEFAULT
    place = Path(resolve(path, download=download, variant=variant, parts=(), **hub))
    return family_at(place.parent if place.name == "model_index.json" else place)


def class_of(family: Family, task: str) -> type[Pipeline]:
    """The class that draws with models of a family from a "text", an "image" or with a "mask".

    Raises ModelError where refsd reads a family's models and does not draw with them.
    """
    name = family.pipeline(task)
    module = family.pipelines.get(task, "").rpartition(":")[0] or "refsd"
    found = getattr(import_module(module), name, None) if name else None
    if found is None:
        lacks = name or f"pipeline that draws {FROM[task]}"
        raise ModelError(f"the model is {family.name}, for which refsd has no {lacks}. Give one of "
                         "another family")
    return found


class AutoPipeline:
    """from_pretrained and from_pipe of the class that a model's family has for a task."""

    task: str

    def __init__(self, *args: Any, **options: Any):
        name = type(self).__name__
        raise UsageError(f"{name} chooses a class and makes none itself: write "
                         f"{name}.from_pretrained(PATH) or {name}.from_pipe(PIPE)")

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, *, download: bool = False,
                        variant: str | None = None, **options: Any) -> Any:
        """A pipeline of the model's own class, with the options of its from_pretrained."""
        hub = {key: value for key, value in options.items() if key in from_diffusers.HUB}
        fetched = from_diffusers.may_download(download, options.get("local_files_only"))
        family = family_of_model(path, download=fetched, variant=variant, **hub)
        return class_of(family, cls.task).from_pretrained(path, download=download, variant=variant,
                                                          **options)

    from_single_file = from_pretrained

    @classmethod
    def from_pipe(cls, pipe: Pipeline, **replaced: Any) -> Any:
        """One with the parts of a pipeline, which both share; nothing is copied."""
        if not isinstance(pipe, Pipeline):
            raise UsageError(f"from_pipe got a {type(pipe).__name__}; give a pipeline of refsd")
        return class_of(of_parts(pipe.parts), cls.task).from_pipe(pipe, **replaced)


class AutoPipelineForText2Image(AutoPipeline):
    """Of text to image.

    >>> AutoPipelineForText2Image.from_pretrained(backend="numpy").__class__.__name__
    'StableDiffusionPipeline'
    """

    task = "text"


class AutoPipelineForImage2Image(AutoPipeline):
    """Of image to image."""

    task = "image"


class AutoPipelineForInpainting(AutoPipeline):
    """Of inpainting."""

    task = "mask"
