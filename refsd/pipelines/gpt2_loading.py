"""A GPT-2 on disk: its network, its tokenizer, and what ends a text."""

from importlib import resources
from pathlib import Path
from typing import Any

from refsd.arguments import shown
from refsd.errors import ModelError
from refsd.text.gpt2 import GPT2Tokenizer
from refsd.weights.checkpoint import Component, load
from refsd.weights.files import read_foreign_object
from refsd.weights.folder import check_variants
from refsd.weights.gpt2 import NAME, plan_gpt2
from refsd.weights.location import resolve

# What a hub's folder holds beside config.json and the weights.
BESIDE = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
          "merges.txt", "special_tokens_map.json", "added_tokens.json")


def bundled_gpt2() -> Path:
    """The folder of the small GPT-2 that ships with refsd: it completes prompts."""
    return Path(str(resources.files("refsd"))) / "data" / "gpt2"


def load_gpt2(path: Any, *, dtype: str, weights: str | None, download: bool, variant: str | None,
              force: bool, hub: dict[str, Any]) -> tuple[Component, GPT2Tokenizer, list[int]]:
    """The network, the tokenizer of the same folder, the ids that end a text."""
    place = bundled_gpt2() if path is None else resolve(
        path, download=download, variant=variant, parts=(NAME,), files=BESIDE, **hub)
    plan = plan_gpt2(place, variant=variant)
    check_variants({NAME: plan.variant}, variant, str(place))
    part = load({NAME: plan}, dtype=dtype, weights=weights, force=force)[NAME]
    folder = place if place.is_dir() else place.parent
    return part, GPT2Tokenizer.from_folder(folder), _ends(folder, part)


def _ends(folder: Path, part: Component) -> list[int]:
    """eos_token_id of generation_config.json where there is one, as in transformers, or of config.

    Of one id, a list of them, or none.
    """
    file, found = folder / "generation_config.json", part.config["eos_token_id"]
    if file.is_file():
        found = read_foreign_object(file).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for one in ids:
        if type(one) is not int or one < 0:
            raise ModelError(f"{file if file.is_file() else folder}: eos_token_id is {shown(one)}, "
                             "expected an integer from 0, or some")
    return ids
