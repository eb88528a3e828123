"""The models and LoRAs that a server was started with: a request names them, never a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refsd import schedulers
from refsd.cli import adapters
from refsd.errors import UsageError
from refsd.families.inputs import input_of
from refsd.pipelines.auto import class_of
from refsd.pipelines.gpt2_loading import bundled_gpt2
from refsd.pipelines.outline import BUNDLED, outline
from refsd.pipelines.planned import denoiser_of, planned_networks, sized

BUNDLED_WRITER = "bundled-gpt2"  # which completes prompts for the model that draws


class Model(NamedTuple):
    """A model by its id; `path` is what `refsd draw -m` takes, None for the one in refsd.

    `name` is its family's. Width and height are its own, in pixels; sides are multiples of
    `multiple`. `takes` is what it reads beside the prompt: "latents" alone, an "image" with them,
    or a "mask" and an image. `lacks`: what its pipeline does not have. `flows`: it is one of flow
    matching.
    """

    id: str
    path: str | None
    name: str
    width: int
    height: int
    multiple: int
    takes: str = "latents"
    lacks: frozenset[str] = frozenset()
    flows: bool = False


class TextModel(NamedTuple):
    """A model that writes, by its id; `path` is what `refsd text -m` takes, None for refsd's own.

    `name` is its family's.
    """

    id: str
    path: str | None
    name: str


def find_models(paths: Sequence[str] = (), **hub: Any) -> dict[str, Model]:
    """The models at these places that draw, as `find_all` finds them."""
    return find_all(paths, **hub)[0]


def find_all(paths: Sequence[str] = (), **hub: Any
             ) -> tuple[dict[str, Model], dict[str, TextModel]]:
    """The models at these places by their ids: those that draw, and those that write.

    The first of each is its default; where there is none it is refsd's own. An id is the last part
    of a path, or a hub id. Of the files only configs and headers are read. hub: as for
    refsd.weights.resolve. Raises as refsd.pipelines.outline does.
    """
    models: dict[str, Model] = {}
    writers: dict[str, TextModel] = {}
    for path in paths:
        _add(path, models, writers, hub)
    if not models:
        _add(BUNDLED, models, writers, hub)
    if not writers:
        id = _unique(BUNDLED_WRITER, models)
        writers[id] = TextModel(id, None, outline(str(bundled_gpt2())).family.name)
    return models, writers


def _add(path, models, writers, hub):
    """Put the model of a path to those that draw, or to those that write."""
    own = path == BUNDLED and not Path(path).exists()
    about = outline(path, **hub)
    if about.plans is None:
        raise UsageError(f"--model {path}: refsd knows this model and has no file of it; give "
                         "the path of one")
    networks = planned_networks(about.configs)
    size = sized(networks)
    id = _unique(BUNDLED if own else _named(path), {**models, **writers})
    if size is None:
        writers[id] = TextModel(id, path, about.family.name)
        return
    part, denoiser = denoiser_of(networks)
    models[id] = Model(
        id, None if own else path, about.family.name, size.width * size.downscale,
        size.height * size.downscale, size.downscale * denoiser.patch_size,
        input_of(about.configs[part]["in_channels"], about.configs["vae"]["latent_channels"])
        or "latents",
        frozenset(class_of(about.family, "text").lacks),
        schedulers.predicts_flow(about.scheduler.config))


def _named(path: str) -> str:
    place = Path(path)
    if not place.exists():
        return path
    place = place.resolve()
    return place.stem if place.is_file() else place.name


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    names = (name if count == 1 else f"{name}-{count}" for count in range(1, len(taken) + 2))
    return next(each for each in names if each not in taken)


def find_loras(folder: str | None) -> dict[str, str]:
    """The files of a folder and below it by their names, those of one name by the way to them.

    UsageError where there is no such folder.
    """
    if folder is None:
        return {}
    files = adapters.files_in(folder)
    stems = [path.stem for path in files]
    return {path.stem if stems.count(path.stem) == 1 else
            path.relative_to(folder).with_suffix("").as_posix(): str(path) for path in files}
