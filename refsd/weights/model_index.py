"""model_index.json: which class reads which part's folder, as in diffusers.

The name of the whole pipeline is a label: what the parts are decides whether refsd can draw with
them. A folder without this file is read by what each part says of itself.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from refsd.errors import ModelError, ResourceError
from refsd.families import FAMILIES, PARTS, Family
from refsd.weights.files import read_foreign_object

logger = logging.getLogger(__name__)

NAME = "model_index.json"
# Whose parts refsd draws with.
PIPELINES = ("LatentConsistencyModelPipeline", "StableDiffusionInstructPix2PixPipeline",
             *(family.pipeline(task) for family in FAMILIES for task in family.pipelines))
# Parts that such a folder may hold and that its pictures do not come from.
OTHERS = ("safety_checker", "feature_extractor", "image_encoder")


def family_of(folder: Path, inside: Collection[str] | None = None) -> Family:
    """The family whose networks a folder has most of.

    Of several that whose text is as wide as the UNet reads it, else that which lacks the fewest,
    else the first. inside: the folders in it, where they are not fetched yet.
    """
    return _likeliest(folder, parts_of(folder, inside))


def _likeliest(folder: Path, here: set[str]) -> Family:
    width = _text_width(folder / "unet" / "config.json")
    return max(FAMILIES, key=lambda family: (len(here.intersection(family.networks)),
                                             family.text_width == width,
                                             -len({*family.networks} - here)))


def _text_width(file: Path) -> Any:
    """What a UNet's config says of it; None where it cannot be read, which its reader will say."""
    try:
        return read_foreign_object(file).get("cross_attention_dim")
    except (ModelError, ResourceError):
        return None


def networks_of(folder: Path, inside: Collection[str] | None = None) -> tuple[str, ...]:
    """The networks that a folder's model is to have: all of its family, but what it may lack."""
    here = parts_of(folder, inside)
    family = _likeliest(folder, here)
    return tuple(part for part in family.networks if part not in family.optional or part in here)


def parts_of(folder: Path, inside: Collection[str] | None = None) -> set[str]:
    """The parts that a folder has, and its index does not call null."""
    index = index_of(folder)
    return {part for part in PARTS if not _is_null(index.get(part, ""))
            and ((folder / part).is_dir() if inside is None else part in inside)}


def part_class(folder: Path, part: str) -> str | None:
    """The class that is to read a part's folder; None where the index does not say.

    Raises ModelError for a part that the pipeline was saved without, or no [library, class].
    """
    index = index_of(folder)
    if part not in index:
        return None
    found = index[part]
    if _is_null(found):
        raise ModelError(f"{folder / NAME}: the pipeline was saved without its {part} ({part}: "
                         f"{_shown(found)}), which refsd needs to draw")
    if not isinstance(found, list) or len(found) != 2 or not isinstance(found[1], str):
        raise ModelError(f"{folder / NAME}: {part} is {_shown(found)}, expected [library, class]")
    return found[1]


def remark(folder: Path) -> None:
    """One line where the index names another pipeline than text to image, or further parts."""
    index = index_of(folder)
    name = index.get("_class_name")
    if name is not None and name not in PIPELINES:
        logger.warning("%s: made for %s; refsd draws from text with its parts", folder / NAME,
                       _shown(name))
    unused = [part for part, value in index.items() if part not in PARTS + OTHERS
              and isinstance(value, list) and len(value) == 2 and value[0] is not None
              and not part.startswith("_")]
    if unused:
        logger.warning("%s: not used: %s", folder / NAME, ascii(", ".join(unused))[1:-1][:200])


def _is_null(found: Any) -> bool:
    return found is None or (isinstance(found, list) and found[:1] == [None])


def index_of(folder: Path) -> dict[str, Any]:
    """The file's entries; none where there is no file."""
    path = folder / NAME
    return read_foreign_object(path) if path.is_file() else {}


def _shown(value: object) -> str:
    return ascii(value)[:80]
