"""A picture of A1111, stable-diffusion.cpp or ComfyUI as a request that refsd can draw.

What such a picture says and refsd does not have, or cannot know, becomes a line each in `missing`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd.arguments import shown
from refsd.cli import comfy_graph, compat, sampler_names
from refsd.cli.infotext import Infotext
from refsd.cli.metadata import find_infotext, json_object
from refsd.dialects.names import find
from refsd.errors import UsageError
from refsd.pipelines.request import check_numbers

NUMBER = re.compile(r"[+-]?\d{0,20}\.?\d{0,20}")
TAG = re.compile(r"<(\w+):([^<>:]*)[^<>]*>")  # A1111 takes them all out of the prompt
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
RNGS = {"GPU": "cuda", "NV": "cuda", "CPU": "torch-cpu", "cuda": "cuda", "cpu": "torch-cpu",
        "std_default": "torch-cpu"}
PROGRAMS = ("stable-diffusion.cpp", "refsd ")  # whose infotexts are not A1111's own
EMPHASES = {written: name for name, written in compat.EMPHASES.items()}
# A1111's settings that are read here, and those that change no pixel or say it in other words.
READ = {"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Model hash",
        "Clip skip", "RNG", "ENSD", "Eta DDIM", "Emphasis", "Pad conds", "Variation seed",
        "Variation seed strength", "Seed resize from", "Use old prompt editing timelines"}
SAID = {"Version", "Hashes", "Lora hashes", "Lora", "User", "Guidance", "Batch size", "Batch pos",
        "VAE hash", "TI hashes", "Backend", "Operations", "Parser", "Pipeline", "App"}
SCHEDULES = {"karras", "exponential", "beta", "discrete", "ays", "gits", "simple", "sgm_uniform",
             "smoothstep"}  # at the end of a sampler's name
USUAL = {"", "uniform", "normal", "discrete", "default"}
NAMES = {"Eta": "the noise of ancestral steps", "Denoising strength": "the picture it began with"}
# Samplers of A1111 and ComfyUI that step through training steps, not through sigmas.
BY_STEPS = ("ddim", "ddpm", "pndm", "lcm", "unipc", "unipc_bh1", "unipc_bh2", "tcd")


class Foreign(NamedTuple):
    """`values` are those of Recipe that the picture says, `sampler` and `compat` refsd's names.

    A1111's prompts still have their tags (`untagged`).
    """

    program: str
    values: dict[str, Any]
    sampler: str
    compat: str
    rng: str
    variation: dict[str, Any]
    model: str
    model_hash: str
    missing: list[str]

    def scheduler(self, config: Mapping[str, Any]) -> Any:
        """The sampler of a model's options, with sigmas where these programs have them."""
        scheduler = sampler_names.of_model(self.sampler, config)
        if self.sampler in BY_STEPS or self.program == "refsd":
            return scheduler
        wanted = {"timestep_spacing": "linspace", "steps_offset": 0}
        return type(scheduler).from_config({**scheduler.config, **{
            key: value for key, value in wanted.items() if key in type(scheduler).DEFAULTS}})


def read(picture: Any) -> Foreign | None:
    """What a picture of another program says; None where it says nothing that could be drawn.

    Raises UsageError, which names the picture, for what is out of range or not to be had.
    """
    named = {name.lower(): text for name, text in picture.texts.items()}
    try:
        infotext = find_infotext(picture.texts)
        if infotext is not None and "Steps" in infotext.settings:
            return _of_infotext(infotext)
        for name in ("prompt", "workflow"):
            graph = json_object(named.get(name, ""))
            if graph is not None and (found := comfy_graph.request(graph)) is not None:
                return _of_graph(found)
    except UsageError as problem:
        raise UsageError(f"{picture.path}: {problem}") from None
    return None


def _of_infotext(infotext: Infotext) -> Foreign:
    said, missing = infotext.settings, []
    cpp, own = (said.get("Version", "").startswith(name) for name in PROGRAMS)
    width, height = _size(said, "Size")
    values = {"prompt": infotext.prompt, "negative_prompt": infotext.negative_prompt,
              "width": width, "height": height, "steps": _number(said, "Steps", int),
              "cfg_scale": _number(said, "CFG scale", float, 7.0),
              "seed": _number(said, "Seed", int), "eta": _number(said, "Eta DDIM", float, 0.0),
              "clip_skip": max(_number(said, "Clip skip", int, 1) - 1, 0) or None}
    strength = _number(said, "Variation seed strength", float, 0.0)
    resize = list(_size(said, "Seed resize from")) if "Seed resize from" in said else None
    variation = {} if not strength and resize is None else {
        "seed": _number(said, "Variation seed", int, 0), "strength": strength,
        "resize_from": resize}
    if said.get("RNG", "GPU") not in RNGS:
        missing.append(f"RNG {shown(said['RNG'])}: drawn with the noise of a GPU")
    for name in said:
        if name not in READ | SAID and not (name == "Eta" and float_of(said[name]) in (1.0, None)) \
                and not (cpp and name == "Eta"):
            missing.append(f"{NAMES.get(name, name)} ({name}: {said[name][:60]})")
    sampler, _, schedule = said.get("Sampler", "Euler").rpartition(" ")
    if schedule.lower() not in SCHEDULES:  # A1111 before 1.9 and sd.cpp have it in the name
        sampler, schedule = said.get("Sampler", "Euler"), said.get("Schedule type", "")
    return _made(PROGRAMS[0] if cpp else "refsd" if own else "A1111", values,
                 _sampler(sampler, schedule, missing), "diffusers" if own else _dialect(said),
                 RNGS.get(said.get("RNG", "GPU"), "cuda"), variation, said.get("Model", ""),
                 said.get("Model hash", ""), missing)


def _of_graph(found: comfy_graph.Request) -> Foreign:
    missing = list(found.missing)
    sampler = _sampler(found.sampler, found.schedule, missing)
    return _made("ComfyUI", found.values, sampler, "comfy", "torch-cpu", {}, found.model, "",
                 missing)


def _made(program, values, sampler, compat, rng, variation, model, model_hash, missing):
    values = {"guidance_rescale": 0.0, "eta": 0.0, "clip_skip": None, **values}
    find(compat)
    check_numbers({**values, **({"seed": variation["seed"]} if variation else {})})
    return Foreign(program, values, sampler, compat, rng, variation, model,
                   model_hash, list(dict.fromkeys(missing)))


def _sampler(name: str, schedule: str, missing: list[str]) -> str:
    """refsd's name of both; of a schedule that it does not have the sampler alone, which is said.

    Raises UsageError for a sampler that refsd does not have.
    """
    try:
        found = sampler_names.find_sampler(name)
    except UsageError as problem:
        raise UsageError(str(problem).removeprefix("--sampler: ")) from None
    if schedule.lower() == "automatic":
        return sampler_names.automatic(found)
    if schedule.lower() in USUAL:
        return found
    try:
        return sampler_names.find_sampler(f"{name} {schedule}")
    except UsageError:
        missing.append(f"the schedule {shown(schedule)} of {name}: its own is taken")
        return found


def _dialect(said: Mapping[str, str]) -> str:
    options = {"emphasis": EMPHASES.get(said.get("Emphasis", "")), "ensd": said.get("ENSD"),
               "pad": "yes" if said.get("Pad conds") == "True" else None,
               "old-editing": "yes" if said.get("Use old prompt editing timelines") == "True"
               else None}
    return ",".join(["a1111", *(f"{key}={value}" for key, value in options.items() if value)])


def untagged(prompt: str) -> tuple[str, list[str]]:
    """The prompt without A1111's tags, and a line for each."""
    return TAG.sub("", prompt), [f"{kind} {shown(name)}" for kind, name in TAG.findall(prompt)]


def float_of(word: str) -> float | None:
    """A number in a text that anyone may have written; None for what is none."""
    try:
        return float(word) if NUMBER.fullmatch(word) else None
    except ValueError:
        return None


def _number(said, name, kind, default=None):
    found = float_of(said[name].strip()) if name in said else default
    if found is None or kind is int and found != int(found):
        raise UsageError(f"{name} is {shown(said.get(name))}; give a picture that says it as a "
                         "number")
    return kind(said[name]) if kind is int and name in said and said[name].strip().isdigit() \
        else kind(found)


def _size(said, name):
    size = SIZE.fullmatch(said.get(name, "").strip())
    if size is None:
        raise UsageError(f"{name} is {shown(said.get(name))}; give a picture that says it, such as "
                         "512x512")
    return int(size[1]), int(size[2])
