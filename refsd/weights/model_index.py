"""model_index.json: which class reads which part's folder, as in diffusers.

The name of the whole pipeline is a label: what the parts are decides whether refsd can draw with
them. A folder without this file is read by what each part says of itself.
"""

import logging
from pathlib import Path
from typing import Any

from refsd.errors import ModelError
from refsd.families import COMPONENTS
from refsd.weights.files import read_foreign_object

logger = logging.getLogger(__name__)

NAME = "model_index.json"
# What refsd draws from these five parts.
PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline",
             "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
             "StableDiffusionInstructPix2PixPipeline")
PARTS = ("tokenizer", "scheduler", *COMPONENTS)
# Parts that such a folder may hold and that its pictures do not come from.
OTHERS = ("safety_checker", "feature_extractor", "image_encoder")


def part_class(folder: Path, part: str) -> str | None:
    """The class that is to read a part's folder; None where the index does not say.

    Raises ModelError for a part that the pipeline was saved without, or no [library, class].
    """
    index = _index(folder)
    if part not in index:
        return None
    found = index[part]
    if found is None or (isinstance(found, list) and found[:1] == [None]):
        raise ModelError(f"{folder / NAME}: the pipeline was saved without its {part} ({part}: "
                         f"{_shown(found)}), which refsd needs to draw")
    if not isinstance(found, list) or len(found) != 2 or not isinstance(found[1], str):
        raise ModelError(f"{folder / NAME}: {part} is {_shown(found)}, expected [library, class]")
    return found[1]


def remark(folder: Path) -> None:
    """One line where the index names another pipeline than text to image, or further parts."""
    index = _index(folder)
    name = index.get("_class_name")
    if name is not None and name not in PIPELINES:
        logger.warning("%s: made for %s; refsd draws from text with its parts", folder / NAME,
                       _shown(name))
    unused = [part for part, value in index.items() if part not in PARTS + OTHERS
              and isinstance(value, list) and len(value) == 2 and value[0] is not None
              and not part.startswith("_")]
    if unused:
        logger.warning("%s: not used: %s", folder / NAME, ascii(", ".join(unused))[1:-1][:200])


def _index(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    return read_foreign_object(path) if path.is_file() else {}


def _shown(value: object) -> str:
    return ascii(value)[:80]
