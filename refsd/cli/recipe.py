"""The recipe of a picture: everything that decides its pixels, as JSON in the PNG."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from refsd.cli import (
    adapters,
    compat,
    control,
    embeddings,
    hires,
    pictures_in,
    sampler_names,
    tiling,
    variation,
)
from refsd.cli.infotext import format_infotext
from refsd.errors import ModelError, UsageError
from refsd.pipelines.request import NUMBERS
from refsd.rules import anything, boolean, check, check_schema, only, optional, table, that
from refsd.version import __version__

KEYWORD = "refsd"  # of the PNG's text chunk
SCHEMA = 1
RNGS = ("torch-cpu", "cuda", "numpy")
DTYPES = ("float32", "float64", "bfloat16", "float16", "int8")
FORMS = ("float32", "bfloat16", "float16", "int8", "as-is")  # as in refsd.weights, without NumPy
A1111_RNG = {"torch-cpu": {"RNG": "CPU"}, "cuda": {"RNG": "NV"}, "numpy": {"Noise": "NumPy"}}


@dataclass(frozen=True)
class Recipe:
    """The resolved request, the model, and the versions; `pixels` is the SHA-256 of the picture.

    Sizes in pixels; `clip_skip` as in diffusers; `scheduler` is the full resolved configuration;
    `model` holds the name and the SHA-256 of each file of weights; `weights` is the form in which
    they were held, if asked for; `compat` is the dialect; `variation`, `adapters`, `pictures`,
    `control`, `embeddings` and `vae_tiling` are those of refsd.cli.variation, .adapters,
    .pictures_in, .control, .embeddings and .tiling; `threads` are the backend's.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    cfg_scale: float
    guidance_rescale: float
    eta: float
    clip_skip: int | None
    seed: int
    rng: str
    scheduler: dict[str, Any]
    backend: str
    dtype: str
    threads: int
    allow_nonfinite: bool
    exact: bool = False
    tuned: dict[str, str] = field(default_factory=dict)
    weights: str | None = None
    compat: str = "diffusers"
    variation: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)
    adapters: list[dict[str, Any]] = field(default_factory=list)
    vae_tiling: str = "auto"
    control: dict[str, Any] = field(default_factory=dict)
    embeddings: list[dict[str, str]] = field(default_factory=list)
    hires: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    pixels: str = ""
    schema: int = SCHEMA

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture: of a second pass, or of that whose part was drawn."""
        last = self.hires or self.pictures.get("part") or {}
        return last.get("width", self.width), last.get("height", self.height)

    def to_json(self) -> str:
        """One line of plain ASCII."""
        return json.dumps(asdict(self), allow_nan=False)

    def texts(self) -> dict[str, str]:
        """What goes into the PNG: A1111's infotext, which others read, and the recipe itself."""
        prompt = self.prompt + adapters.tags(self.adapters)
        prompt = prompt if self.prompt else prompt.lstrip()
        infotext = format_infotext(prompt, self.negative_prompt, self.settings())
        return {"parameters": infotext, KEYWORD: self.to_json()}

    def settings(self) -> dict[str, Any]:
        """What A1111's line says of it, under A1111's names and with its meanings.

        A1111's "Eta" is that of ancestral samplers; its RNG has no word for NumPy's noise, and it
        does not say the precision.
        """
        sampler, schedule = sampler_names.label(self.scheduler)
        return {
            "Steps": self.steps,
            "Sampler": sampler,
            **({"Schedule type": schedule} if schedule else {}),
            "CFG scale": f"{self.cfg_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            **({"Model hash": self.model["hash"][:10]} if self.model.get("hash") else {}),
            **({"Model": self.model["name"]} if self.model.get("name") else {}),
            **variation.settings(self.variation),
            **hires.settings(self.hires),
            **pictures_in.settings(self.pictures),
            **adapters.settings(self.adapters),
            **embeddings.settings(self.embeddings),
            **control.settings(self.control),
            **compat.settings(self.compat),
            **({"Clip skip": self.clip_skip + 1} if self.clip_skip else {}),
            **({"Eta DDIM": f"{self.eta:g}"} if self.eta else {}),
            **A1111_RNG[self.rng],
            **({"Precision": self.dtype} if self.dtype != "float32" else {}),
            "Version": f"refsd {__version__}",
        }


TEXT = that(lambda value: isinstance(value, str), "a text")
STRINGS = table(TEXT, "an object of strings")
RULES = NUMBERS | {
    "prompt": TEXT, "negative_prompt": TEXT, "backend": TEXT, "pixels": TEXT,
    "clip_skip": optional(NUMBERS["clip_skip"]),
    "rng": only(*RNGS), "dtype": only(*DTYPES),
    "weights": optional(only(*FORMS)),
    "allow_nonfinite": boolean, "exact": boolean,
    "scheduler": table(anything, "an object"),
    "compat": compat.RULE, "variation": variation.RULE, "adapters": adapters.RULE,
    "pictures": pictures_in.RULE, "vae_tiling": only(*tiling.TILINGS),
    "control": control.RULE, "embeddings": embeddings.RULE,
    "hires": hires.RULE,
    "tuned": STRINGS, "versions": STRINGS,
    "model": table(TEXT, "an object of strings", files=STRINGS, variant=optional(TEXT)),
    "schema": only(SCHEMA),
}  # fmt: skip


def parse_recipe(text: str, where: str) -> Recipe:
    """The recipe in a PNG, which anyone may have written: keys, types and ranges are checked.

    Raises UsageError.
    """
    from refsd.weights.files import parse_json  # refsd.weights imports NumPy

    where = f"{where}: the recipe"
    try:
        found = parse_json(text, where)
    except ModelError as error:
        raise UsageError(str(error)) from None
    if not isinstance(found, dict):
        raise UsageError(f"{where} is a JSON {type(found).__name__}, expected an object")
    check_schema(found.get("schema"), SCHEMA, where, "the picture", error=UsageError)
    for key, value in (("exact", False), ("tuned", {}), ("weights", None), ("variation", {}),
                       ("adapters", []), ("pictures", {}), ("compat", "diffusers"),
                       ("vae_tiling", "auto"), ("control", {}), ("embeddings", []), ("hires", {})):
        found.setdefault(key, value)  # in no picture drawn before there was a choice
    check(found, RULES, where, error=UsageError)
    return Recipe(**found)
