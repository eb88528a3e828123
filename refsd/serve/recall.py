"""What a picture says of how it was made, as the request that would draw it again."""

import argparse
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from refsd.arguments import shown
from refsd.cli import compat, foreign, sampler_names
from refsd.cli.metadata import find_description, find_infotext
from refsd.cli.pictures import Picture
from refsd.cli.recipe import KEYWORD, Recipe, parse_recipe
from refsd.errors import UsageError

# Of a recipe under the same name in a request; those of the second line only where they matter.
SAME = ("prompt", "width", "height", "steps", "cfg_scale", "seed")
SAME_IF_SET = ("negative_prompt", "guidance_rescale", "eta", "clip_skip", "compat")
HIRES = {"scale": "hires_scale", "steps": "hires_steps", "denoising": "hires_denoising",
         "upscaler": "hires_upscaler"}
WHOLE_SERVER = ("dtype", "weights", "exact", "vae_tiling")  # options that no request can choose
PARTS = ("vae", "text_encoder", "text_encoder_2", "without", "ema", "variant")  # of a model


class Has(NamedTuple):
    """What a server has: models and LoRAs by name, and the options that hold for all jobs."""

    models: Mapping[str, Any]
    loras: Mapping[str, str]
    base: argparse.Namespace


class Recalled(NamedTuple):
    """The fields of a request, the picture's own text, and a line for each thing left out."""

    request: dict[str, Any]
    infotext: str
    missing: list[str]


def recall(picture: Picture, has: Has) -> Recalled:
    """The request of a picture of refsd, or of a program whose texts refsd reads.

    Raises UsageError for a picture that does not say how it was made.
    """
    missing: list[str] = []
    request = _of_refsd(picture, has, missing) or _of_others(picture, has, missing)
    if request is None:
        raise UsageError("the picture does not say how it was made: its texts were taken out, or "
                         "it was drawn by hand or by a program that writes none")
    name = request.get("model")
    if name is not None and name not in has.models:
        missing.append(f"the model {name}, which this server was not started with")
    return Recalled(request, picture.texts.get("parameters", ""), missing)


def _of_refsd(picture, has, missing):
    if KEYWORD not in picture.texts:
        return None
    try:
        return _of_recipe(parse_recipe(picture.texts[KEYWORD], picture.path), has, missing)
    except UsageError as problem:
        if picture.texts.keys() <= {KEYWORD}:
            raise
        missing.append(f"{problem}: taken from its other texts")
        return None


def _of_recipe(recipe: Recipe, has: Has, missing: list[str]) -> dict[str, Any]:
    request = _plain({**vars(recipe)}, recipe.rng, has.base)
    sampler, schedule = sampler_names.of_config(recipe.scheduler)
    request |= _said(sampler=sampler, schedule=sampler and schedule)
    if sampler is None:
        missing.append(f"the sampler {recipe.scheduler['_class_name']} as it was set: the model's "
                       "own is taken")
    request |= {field: recipe.hires[name] for name, field in HIRES.items() if recipe.hires}
    request |= _varied(recipe.variation) | _pictures(recipe.pictures, missing)
    request |= _loras(request["prompt"], recipe.adapters, has.loras, missing)
    there = [Path(path).name for path in _embeddings(has.base)]
    missing += [f"the embedding {one['file']}" for one in recipe.embeddings
                if one["file"] not in there]
    if recipe.control:
        missing.append("the ControlNet and its pictures")
    for name in WHOLE_SERVER:
        own = getattr(has.base, name)
        if getattr(recipe, name) != own:
            missing.append(f"{name} {getattr(recipe, name)}: this server draws with {own}")
    missing += [f"{part} {recipe.model[part]}" for part in PARTS
                if recipe.model.get(part) and not getattr(has.base, part)]
    return request | _said(model=_model(recipe.model.get("name"), has.models))


def _model(name, models):
    """The id of a model; a recipe calls the one in refsd in more words."""
    from refsd.pipelines.loading import BUNDLED

    own = next((id for id, model in models.items() if model.path is None), "bundled")
    return own if name == BUNDLED else name


def _plain(values, rng, base):
    """The fields that a request and a recipe call the same, without those that change nothing."""
    request = {name: values[name] for name in SAME}
    request |= {name: values[name] for name in SAME_IF_SET if values[name] != getattr(base, name)}
    if rng != compat.rng(argparse.Namespace(rng=base.rng, compat=values["compat"])):
        request["rng"] = rng
    return request


def _said(**fields):
    return {name: value for name, value in fields.items() if value}


def _varied(variation):
    if not variation:
        return {}
    size, strength = variation["resize_from"], variation["strength"]
    return {**_said(variation_strength=strength, seed_resize_from=size and f"{size[0]}x{size[1]}"),
            **({"variation_seed": variation["seed"]} if strength else {})}


def _pictures(pictures, missing):
    """The numbers of drawing from pictures, which no picture holds."""
    if not pictures:
        return {}
    missing += ["the picture it was drawn from", *(["the mask"] if pictures["mask"] else [])]
    found = {name: pictures[name] for name in ("strength", "img_cfg_scale")
             if pictures[name] is not None}
    part = pictures.get("part")
    return {**found, "mask_padding": part["padding"]} if part else found


def _loras(prompt, wanted, there, missing):
    """The prompt and the list of LoRAs; those with two weights can only be said in the prompt."""
    listed = []
    for one in wanted:
        name, why = _lora(one, there)
        if name is None:
            missing.append(f"the LoRA {one['file']}, {why}")
        elif one["unet"] == one["text_encoder"]:
            listed.append({"name": name, "weight": one["unet"]})
        else:
            prompt += f" <lora:{name}:{one['text_encoder']}:{one['unet']}>"
    return {"prompt": prompt, **_said(loras=listed)}


def _lora(one, there):
    """The name under which a server has a recipe's LoRA; else None, and why not."""
    named = [name for name, path in there.items() if Path(path).name == one["file"]]
    for name in named:
        try:
            about = os.stat(there[name])
            if _digest(there[name], about.st_mtime_ns, about.st_size) == one["sha256"]:
                return name, ""
        except OSError:
            return None, "which can no longer be read here"
    return None, "of which there is another one here" if named else "which is not here"


@lru_cache(maxsize=256)
def _digest(path, written, size):
    from refsd.pipelines.identity import sha256

    return sha256(Path(path))


def _embeddings(base):
    folder = base.embd_dir
    return [*base.embedding, *(Path(folder).rglob("*.safetensors") if folder else ())]


def _of_others(picture, has, missing):
    """What another program says, all of it where refsd reads its settings, else its prompts."""
    try:
        found = foreign.read(picture)
    except UsageError as problem:
        missing.append(str(problem))
        found = None
    if found is None:
        return _of_words(picture.texts, missing)
    prompt = foreign.TAG.sub(lambda tag: _kept(tag, has.loras, missing), found.values["prompt"])
    missing += found.missing
    name, _, schedule = found.sampler.rpartition("_")
    if schedule not in sampler_names.SCHEDULES:
        name, schedule = found.sampler, None
    values = {**found.values, "prompt": prompt.strip(), "compat": found.compat}
    return {**_plain(values, found.rng, has.base), **_varied(found.variation),
            **_said(sampler=name, schedule=schedule, model=found.model)}


def _kept(tag, loras, missing):
    """A tag of a LoRA that is here; nothing of any other."""
    kind, name = tag.groups()
    if kind in ("lora", "lyco") and name in loras:
        return tag[0]
    missing.append(f"{kind} {shown(name)}")
    return ""


def _of_words(texts, missing):
    infotext = find_infotext(texts)
    found = infotext if infotext and infotext.settings else find_description(texts) or infotext
    if found is None or not found.prompt:
        return None
    program = getattr(found, "program", "the program")
    missing.append(f"all but the prompts: {program} did not write the rest in a way that refsd "
                   "can draw from")
    return {"prompt": found.prompt, **_said(negative_prompt=found.negative_prompt)}
