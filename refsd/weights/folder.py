"""The weight files of one component of a diffusers folder: one file, or shards with an index."""

import re
from pathlib import Path

from refsd.errors import ModelError, UsageError
from refsd.weights.files import read_object
from refsd.weights.header import PICKLE_REFUSED, PICKLES, Header, read_header

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
FALLBACKS = ("", "fp16", "bf16")  # tried in this order when no variant is asked for
MAX_INDEX = 16 << 20
MAX_SHARDS = 1000
PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")


def check_pipeline(folder: Path) -> None:
    """ModelError when model_index.json says that this is no text-to-image SD 1.x pipeline."""
    path = folder / "model_index.json"
    if path.is_file():
        found = read_object(path).get("_class_name")
        if found not in PIPELINES:
            raise ModelError(
                f"{path}: the pipeline is {ascii(found)[:80]}, expected {' or '.join(PIPELINES)}"
            )


def component_headers(folder: Path, component: str, variant: str | None) -> list[Header]:
    """The headers of a component's weight files: one, or one a shard.

    Without a variant the plain files are taken, and where there are none those of fp16 or bf16.
    Raises ModelError when there are none, or the index is damaged or points out of the folder.
    """
    check_variant(variant)
    place, stem = folder / component, STEMS[component]
    for name in FALLBACKS if variant is None else (variant,):
        dotted = f".{name}" if name else ""
        file = place / f"{stem}{dotted}.safetensors"
        index = place / f"{stem}.safetensors.index{dotted}.json"
        if file.is_file():
            return [read_header(file)]
        if index.is_file():
            return _shards(index, folder)
    raise ModelError(f"{place}: {_why_nothing(place, stem, variant)}")


def check_variant(variant: str | None) -> None:
    """UsageError for what cannot be the middle of a file's name."""
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", variant):
        raise UsageError(f"variant: got {ascii(variant)[:80]}, expected a name such as 'fp16'")


def _why_nothing(place: Path, stem: str, variant: str | None) -> str:
    if not place.is_dir():
        return "no such folder. Is the model complete?"
    files = sorted(path.name for path in place.iterdir() if path.is_file())
    others = [name for name in files if name.endswith(".safetensors")]
    wanted = f"{stem}{f'.{variant}' if variant else ''}.safetensors"
    if others:
        return f"no {wanted}, but {', '.join(others[:3])}. Ask for it with variant="
    if any(name.endswith(PICKLES) for name in files):
        return PICKLE_REFUSED
    return f"no {wanted}. Is the download complete?"


def _shards(index: Path, model: Path) -> list[Header]:
    """The headers of all shards, each holding exactly the tensors that the index gives it."""
    weight_map = read_object(index, limit=MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: no weight_map of tensor: file")
    for name, file in weight_map.items():
        if not _plain_name(file):
            raise ModelError(
                f"{index}: tensor {ascii(name)[:100]} lies in {ascii(file)[:100]}, "
                "expected the name of a .safetensors file beside the index"
            )
    files = sorted(set(weight_map.values()))
    if len(files) > MAX_SHARDS:
        raise ModelError(f"{index}: {len(files)} shards, at most {MAX_SHARDS} are allowed")

    headers = []
    for file in files:
        _check_inside(index.parent / file, model)
        header = read_header(index.parent / file)
        listed = {name for name, place in weight_map.items() if place == file}
        differing = sorted(listed ^ header.tensors.keys())
        if differing:
            raise ModelError(
                f"{index}: {file} and the index differ in {len(differing)} tensors, "
                f"first {ascii(differing[0])[:100]}. Are the files of one download?"
            )
        headers.append(header)
    return headers


def _plain_name(file: object) -> bool:
    """A file name without any folder, drive or stream in it."""
    return (
        isinstance(file, str)
        and len(file) <= 200
        and re.fullmatch(r"[^/\\:\0]+\.safetensors", file) is not None
    )


def _check_inside(path: Path, model: Path) -> None:
    """ModelError when a link leads out of the model's folder.

    A snapshot in the hub's cache is made of links into the `blobs` folder beside `snapshots`.
    """
    try:
        real, root = path.resolve(), model.resolve()
    except (OSError, RuntimeError):
        raise ModelError(f"{path}: a link that leads nowhere") from None
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise ModelError(f"{path}: a link out of the model's folder is not followed")
