"""Which of a component's files hold its weights, from their names: for loading and for downloads.

The names are those that diffusers, transformers and huggingface_hub have written. A variant is
taken where it exists and the plain weights elsewhere, as diffusers 0.42.1 does.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from refsd.errors import ModelError, UsageError
from refsd.networks import NETWORKS
from refsd.weights.header import PICKLES

FALLBACKS = ("fp16", "bf16", "fp32")  # tried in this order where there are no plain weights
_NAME = re.compile(
    r"(?P<stem>[^.]+)(?:\.(?P<before>[\w-]+))?\.safetensors"
    r"(?:(?:\.(?P<between>[\w-]+))?\.index(?:\.(?P<after>[\w-]+))?\.json)?"
)
_SHARD = re.compile(r".*-\d{5}-of-\d{5}(\.[\w-]+)?\.safetensors")


class Choice(NamedTuple):
    """The files to read, the index that lists them if they are shards, and their variant."""

    files: tuple[str, ...]
    index: str | None
    variant: str | None


# The weight_map of an index, by the index's name: tensor -> file.
ReadIndex = Callable[[str], Mapping[str, str]]


def check_variant(variant: str | None) -> None:
    """UsageError for what cannot be the middle of a file's name."""
    if variant is not None and (
        not isinstance(variant, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", variant)
    ):
        raise UsageError(f"variant: got {ascii(variant)[:80]}, expected a name such as 'fp16'")


def choose(
    component: str, names: Collection[str], variant: str | None, read_index: ReadIndex, where: str
) -> Choice:
    """The weights among the names of a component's folder: of the variant, or else the plain ones.

    Without a variant: the plain ones, else fp16, bf16, fp32, else the only variant there is. An
    index counts only when its shards are there. Raises ModelError when there is nothing to read.
    """
    check_variant(variant)
    sets = weight_sets(component, names)
    order = [variant, None] if variant else [None, *FALLBACKS]
    others = [name for name in sets if name not in order]
    if not variant and len(others) == 1:
        order += others
    incomplete = ""
    for one in order:
        for file in sets.get(one, ()):
            if file.endswith(".safetensors"):
                return Choice((file,), None, one)
            shards = tuple(sorted(set(read_index(file).values())))
            missing = [shard for shard in shards if shard not in names]
            if not missing:
                return Choice(shards, file, one)
            incomplete = incomplete or (
                f"{file} lists {missing[0][:200]}, and there is no such file. "
                "Is the download complete? Fetch it again"
            )
    raise ModelError(f"{where}: {incomplete or _why_nothing(component, names, others)}")


def weight_sets(component: str, names: Collection[str]) -> dict[str | None, list[str]]:
    """variant (None: plain) -> its whole file or index, the one that comes first first.

    diffusers looks for an index before a whole file, transformers for a whole file first.
    """
    network, sets = NETWORKS[component], {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match and match["stem"] in network.stems and not _SHARD.fullmatch(name):
            variants = [match[part] for part in ("before", "between", "after") if match[part]]
            if len(variants) < 2:
                sets.setdefault(variants[0] if variants else None, []).append(name)

    def rank(name: str) -> tuple:
        whole = name.endswith(".safetensors")
        return (network.stems.index(name.split(".")[0]), whole != network.whole_first, name)

    return {variant: sorted(files, key=rank) for variant, files in sets.items()}


def _why_nothing(component: str, names: Collection[str], others: list) -> str:
    wanted = f"{NETWORKS[component].stems[0]}.safetensors"
    there = sorted(name for name in names if name.endswith(".safetensors"))
    if others:
        return (f"no {wanted}, but the variants {', '.join(map(str, sorted(others)))[:200]}. "
                "Ask for one with variant= (--variant)")  # fmt: skip
    if there:
        return f"no {wanted}, but {', '.join(there[:3])[:200]}. Rename the right one"
    pickles = sorted(name for name in names if name.lower().endswith(PICKLES))
    if pickles:
        option = f"{component}= (--{component.replace('_', '-')})"
        part = "" if component == "unet" else f", or name another with {option}"
        return (
            f"the weights of the {component} are there only as {pickles[0][:100]}; pickle "
            "checkpoints are refused because loading one can run any code. Convert it to "
            f".safetensors (docs/checkpoints.md says how){part}"
        )
    return f"no {wanted}. Is the download complete? Fetch it again"
