"""The recipe of a picture: everything that decides its pixels, as JSON in the PNG."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from refsd.cli import samplers
from refsd.cli.infotext import format_infotext
from refsd.cli.report import one_line
from refsd.errors import ModelError, UsageError
from refsd.pipelines.request import MAX_SIDE, check_choice, check_integer, check_number
from refsd.version import __version__

KEYWORD = "refsd"  # of the PNG's text chunk
SCHEMA = 1
RNGS = ("torch-cpu", "cuda", "numpy")
DTYPES = ("float32", "float64")
A1111_RNG = {"torch-cpu": {"RNG": "CPU"}, "cuda": {"RNG": "NV"}, "numpy": {"Noise": "NumPy"}}


@dataclass(frozen=True)
class Recipe:
    """The resolved request, the model, and the versions; `pixels` is the SHA-256 of the picture.

    Sizes in pixels; `clip_skip` as in diffusers; `scheduler` is the full resolved configuration;
    `model` holds the name and the SHA-256 of each file of weights; `threads` are the backend's.
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
    model: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    pixels: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """One line of plain ASCII."""
        return json.dumps(asdict(self), allow_nan=False)

    def texts(self) -> dict[str, str]:
        """What goes into the PNG: A1111's infotext, which others read, and the recipe itself."""
        infotext = format_infotext(self.prompt, self.negative_prompt, self.settings())
        return {"parameters": infotext, KEYWORD: self.to_json()}

    def settings(self) -> dict[str, Any]:
        """What A1111's line says of it, under A1111's names and with its meanings.

        A1111's "Eta" is that of ancestral samplers; its RNG has no word for NumPy's noise.
        """
        sampler, schedule = samplers.label(self.scheduler)
        return {
            "Steps": self.steps,
            "Sampler": sampler,
            **({"Schedule type": schedule} if schedule else {}),
            "CFG scale": f"{self.cfg_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            **({"Model hash": self.model["hash"][:10]} if self.model.get("hash") else {}),
            **({"Model": self.model["name"]} if self.model.get("name") else {}),
            **({"Clip skip": self.clip_skip + 1} if self.clip_skip else {}),
            **({"Eta DDIM": f"{self.eta:g}"} if self.eta else {}),
            **A1111_RNG[self.rng],
            "Version": f"refsd {__version__}",
        }


NUMBERS = {
    "width": (check_integer, 1, MAX_SIDE),
    "height": (check_integer, 1, MAX_SIDE),
    "steps": (check_integer, 1, 1000),
    "cfg_scale": (check_number, -1000, 1000),
    "guidance_rescale": (check_number, 0, 1),
    "eta": (check_number, 0, 1),
    "clip_skip": (check_integer, 0, 63),
    "seed": (check_integer, 0, 2**64 - 1),
    "threads": (check_integer, 1, 1024),
}
WORDS = {"rng": RNGS, "dtype": DTYPES}


def check_numbers(values: Mapping[str, Any], name: Callable[[str], str]) -> None:
    """UsageError for the first number out of range; `name` says what the user calls a field.

    None passes where the model decides.
    """
    for key, (check, low, high) in NUMBERS.items():
        if values.get(key) is not None:
            check(name(key), values[key], low, high)


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
    schema = found.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise UsageError(f"{where} has schema {one_line(repr(schema), 40)}; this refsd reads "
                         f"{SCHEMA}" + (". Use a newer refsd" if newer else ""))
    for key, value in (("exact", False), ("tuned", {})):
        found.setdefault(key, value)  # in no picture drawn before there was a choice
    kinds = {part.name: part.type for part in fields(Recipe)}
    wrong = [key for key in kinds if key not in found] or [key for key in found if key not in kinds]
    if wrong:
        raise UsageError(f"{where} {'has an unknown' if wrong[0] in found else 'lacks the'} key "
                         f"{one_line(repr(wrong[0]), 80)}")
    for key, value in found.items():
        if not _fits(value, kinds[key]):
            raise UsageError(f"{where}: {key} is {one_line(repr(value), 80)}")
    for key, inner in (("model", found["model"]), ("model.files", found["model"].get("files", {})),
                       ("versions", found["versions"]), ("tuned", found["tuned"])):
        _check_strings(inner, f"{where}: {key}")
    check_numbers(found, f"{where}: {{}}".format)
    for key, allowed in WORDS.items():
        check_choice(f"{where}: {key}", found[key], allowed)
    return Recipe(**found)


def _check_strings(table: Any, where: str) -> None:
    """An object of strings, but for the model's `files` and a `variant` that may be null."""
    wrong = table if not isinstance(table, dict) else next(
        (value for key, value in table.items()
         if not isinstance(value, str) and key != "files" and (key, value) != ("variant", None)),
        "")
    if wrong != "":
        raise UsageError(f"{where} holds {one_line(repr(wrong), 80)}, expected strings")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type; a whole number serves as a float."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, getattr(kind, "__origin__", kind))
