"""What of a recipe decides the picture, and the name that is made of it."""

import hashlib
import json
from dataclasses import MISSING, asdict, fields
from typing import Any

from refsd.cli.recipe import Recipe

# Where and by what it is computed, not what; the bits of these may differ, the picture does not.
NOT_THE_PICTURE = ("backend", "threads", "tuned", "versions", "pixels", "allow_nonfinite", "schema")
# Of the model; its files say it.
PLACES = ("name", "variant", "vae", "text_encoder", "text_encoder_2", "hash")


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide the picture, of the model the hashes of its files.

    Fields at their default are left out, so that fields to come change nothing; floats are written
    as such (7.0).
    """
    values = asdict(recipe)
    for field in fields(recipe):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name in NOT_THE_PICTURE or values[field.name] == default:
            del values[field.name]
        elif field.type is float:
            values[field.name] = float(values[field.name])
    for named in (*values.get("adapters", ()), *values.get("embeddings", ()),
                  *values.get("pictures", {}).values(),
                  *(one for net in values.get("control", {}).get("nets", ())
                    for one in net.values())):
        if isinstance(named, dict):
            named.pop("file", None)
    values["model"] = {key: value for key, value in recipe.model.items() if key not in PLACES}
    values["model"]["files"] = sorted(recipe.model.get("files", {}).values())
    return values


def name_of(recipe: Recipe) -> str:
    """32 hexadecimal digits of the SHA-256 of what is decisive, as JSON with sorted keys."""
    text = json.dumps(decisive(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
