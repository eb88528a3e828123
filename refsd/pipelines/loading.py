"""A model on disk as the parts of a pipeline."""

import logging
from collections.abc import Collection, Mapping
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from refsd.arguments import ARITHMETICS, shown
from refsd.backends import find_backend
from refsd.errors import ModelError, UsageError
from refsd.families import Family, input_of
from refsd.networks import network_of
from refsd.pipelines.kind import Kind
from refsd.pipelines.single_file import predicting, scheduler_of_file
from refsd.schedulers import Config, from_config, would_do
from refsd.weights import load_checkpoint, resolve
from refsd.weights.files import read_foreign_object
from refsd.weights.model_index import index_of, networks_of, part_class, parts_of
from refsd.weights.plan import family_at

logger = logging.getLogger(__name__)

BUNDLED = "refsd bundled model"  # the name of the one that ships


def bundled_model() -> Path:
    """The folder of the small model that ships with refsd."""
    return Path(str(resources.files("refsd"))) / "data" / "model"


def load_components(path: str | Path | None, *, backend: str, dtype: str,
                    weights: str | None = None, download: bool,
                    variant: str | None, ema: bool, force: bool, exact: bool = False,
                    hub: dict[str, Any] | None = None, scheduler: Any = None,
                    given: Mapping[str, Any], prediction_type: str | None = None,
                    kind: type[Kind] = Kind, without: Collection[str] = (),
                    offload: str | None = None, budget: int | None = None) -> dict[str, Any]:
    """Everything that a pipeline is made of, from a folder, a file or a hub id.

    No path: the bundled model. `hub` holds cache_dir, revision and token, for ids; `scheduler` and
    `prediction_type` as in `load_scheduler`; `given` has, by their parts, paths, hub ids or
    networks that replace the model's, None where none does; `kind` is the class that is to draw
    with it, `without` networks that it may lack and is to; `offload` is when weights
    are in memory, `budget` what chooses it. Raises ModelError, ResourceError, UsageError.
    """
    if dtype not in ARITHMETICS:
        raise UsageError(f"dtype is {dtype!r}; give one of {', '.join(ARITHMETICS)}")
    given = {part: value for part, value in given.items() if value is not None}
    if path is None:
        place, name = bundled_model(), BUNDLED
    else:
        place = resolve(path, download=download, variant=variant, without=[*given, *without],
                        **(hub or {}))
        place, name = _whole(place, {*given, kind.denoises}), str(path)
    family = family_at(place)
    _check_family(family, kind, name)
    scheduler = load_scheduler(place, scheduler, prediction_type, upgrade=kind.upgrades_scheduler)
    objects = {part: value for part, value in given.items() if hasattr(value, "tree")}
    replaced = {part: None if part in objects else resolve(
        value, download=download, variant=variant, parts=(part,), **(hub or {}))
        for part, value in given.items()}
    own = part_class(place, "vae") if place.is_dir() and "vae" not in given else None
    if replaced.get("vae") is not None or own == "AutoencoderTiny":
        from refsd.pipelines import taesd

        taesd.replace_vae(place, replaced, objects, backend=backend, dtype=dtype, weights=weights,
                          variant=variant, force=force, exact=exact)
    networks = _load_networks(place, objects, family, kind.denoises, backend, exact, offload,
                              budget, dtype=dtype, weights=weights, variant=variant, ema=ema,
                              force=force, inputs=kind.inputs,
                              replaced={**dict.fromkeys(without), **replaced})
    tokenizers = {part.replace("text_encoder", "tokenizer"): load_tokenizer(place, part, network)
                  for part, network in networks.items() if part.startswith("text_encoder")}
    lacking = dict.fromkeys({*kind.parts} - {"scheduler", *tokenizers, *networks})
    return {**lacking, **tokenizers, **networks, **load_settings(place, kind, family),
            "scheduler": scheduler, "name": name}


def _load_networks(place: Path, objects: dict[str, Any], family: Family, denoises: str,
                   backend: str, exact: bool, offload: str | None, budget: int | None,
                   **options: Any) -> dict[str, Any]:
    """The objects that compute, those that were given among them; options are load_checkpoint's."""
    streamer = room = None
    if (offload, budget) != (None, None):
        from refsd.pipelines.offload import arrange, streaming

        streamer, room = streaming(place, offload, budget, backend, dtype=options["dtype"],
                                   weights=options["weights"])
    parts = load_checkpoint(place, offload=streamer, **options,
                            may_offload=find_backend(backend).device == "cpu")
    if streamer is None:
        for part in parts.values():
            find_backend(backend).place(part.tensors)
        find_backend(backend).release()  # the memory that weights lay in before

    networks = {part: computes(part, found.config).of(found, backend, exact)
                for part, found in parts.items()}
    if "vae" in networks:
        networks["vae"].room = room
    networks |= objects
    if objects:
        _check_objects(objects, networks, family, denoises)
    if streamer is not None:
        arrange(streamer, networks)
    return networks


def computes(part: str, config: Mapping[str, Any]) -> Any:
    """The class whose objects compute a part of a model, of a config.json's content."""
    module, _, name = network_of(part, config).computes.partition(":")
    return getattr(import_module(module), name)


def _check_family(family: Family, kind: type[Kind], name: str) -> None:
    """ModelError for a model of other parts than the pipeline at hand has."""
    if not {*kind.parts} - {*kind.optional} <= {*family.parts} <= {*kind.parts}:
        raise ModelError(f"{name}: {family.name}. Take {family.pipeline('text')} or "
                         "AutoPipelineForText2Image")


def _whole(place: Path, known: Collection[str]) -> Path:
    """The folder that a model_index.json stands for; ModelError for one part of several.

    known: the parts that lie elsewhere, or may be the one.
    """
    if place.name == "model_index.json":
        return place.parent
    alone = (place / "config.json").is_file() and not parts_of(place)
    if alone and {*networks_of(place)} - {*known}:
        raise ModelError(f"{place}: one part of a model; give the folder that holds all of them")
    return place


def _check_objects(objects: dict[str, Any], networks: dict[str, Any], family: Family,
                   denoises: str) -> None:
    """UsageError for networks of another pipeline that do not fit those of this one."""
    unet = networks[denoises]
    for part, found in objects.items():
        kind = computes(part, family.configs[part])
        if not isinstance(found, kind) or found.backend != unet.backend:
            raise UsageError(f"{part} is {type(found).__name__} on "
                             f"{getattr(found, 'backend', 'no backend')}; give a path, or the "
                             f"{part} of a refsd pipeline on {unet.backend}")
    vae = objects.get("vae")
    if vae is not None and not input_of(unet.in_channels, vae.config.latent_channels):
        raise UsageError(f"vae has latents of {vae.config.latent_channels} channels, the model "
                         f"takes {unet.in_channels}; give one of such a model")
    encoders = sorted(part for part in networks if part.startswith("text_encoder"))
    if denoises != "unet":
        if {*encoders} & objects.keys():
            raise UsageError("text encoders of another pipeline are for UNets; give a path")
        return
    width = sum(networks[part].tree["embeddings"]["token_embedding"]["weight"].shape[1]
                for part in encoders)
    if {*encoders} & objects.keys() and width != unet.text_width:
        raise UsageError(f"{' and '.join(encoders)} give text of width {width}, the UNet reads "
                         f"{unet.text_width}; give one of such a model")


def load_settings(place: Path, kind: type[Kind], family: Family) -> dict[str, bool]:
    """What a folder's model_index.json, or a file's family, says besides the parts; null is False.

    ModelError for what is neither true, false nor null, such as a text.
    """
    said = index_of(place) if place.is_dir() else family.settings
    found = {name: said.get(name, value) for name, value in kind.settings.items()}
    for name, value in found.items():
        if not isinstance(value, bool | None):
            raise ModelError(f"{place / 'model_index.json'}: {name} is {ascii(value)[:80]}, "
                             "expected true or false. Write the one that the model was made with")
    return {name: bool(value) for name, value in found.items()}


def load_tokenizer(place: Path, part: str, encoder: Any) -> Any:
    """The tokenizer of a text encoder in a model, which fits it: the encoder says how it is read.

    For a single file it pads as the file's family does.
    """
    name = part.replace("text_encoder", "tokenizer")
    pad = None if place.is_dir() else family_at(place).pads.get(name)
    return encoder.tokenizer_of(place, name, pad)


def load_scheduler(place: Path, wanted: Any = None, prediction: str | None = None, *,
                   upgrade: bool = True) -> Any:
    """The folder's scheduler; for a single file what its tensors say (`scheduler_of_file`).

    `wanted` replaces it: a scheduler, for which the folder's is not even looked at, or what makes
    one of the folder's config: a class, or a function. As in diffusers the class is the one that
    model_index.json names. `prediction` overrules what is predicted; `upgrade` replaces options of
    older files. Raises ModelError for a sampler or an option that refsd does not have.
    """
    if wanted is not None and not callable(wanted):
        if not hasattr(wanted, "set_timesteps"):
            raise UsageError(f"scheduler is {shown(wanted)}; give a scheduler, or a class of "
                             "refsd.schedulers")
        return wanted if prediction is None else type(wanted).from_config(
            predicting(wanted.config, prediction))
    config, where = scheduler_config(place)
    config = predicting(config, prediction)
    make = partial(_as_saved, upgrade=upgrade)
    if wanted is not None:
        make = getattr(wanted, "from_config", wanted)
        config = {**config, **(_outdated(config) if upgrade else {})}
    try:
        found = make(config)
    except ModelError as problem:
        raise ModelError(f"{where}: {problem}") from None
    if isinstance(found, type) or not hasattr(found, "set_timesteps"):
        raise UsageError(f"scheduler={shown(wanted)} makes {shown(found)} of a config; give a "
                         "scheduler, or a class of refsd.schedulers")
    return found


def _as_saved(config: dict[str, Any], *, upgrade: bool) -> Any:
    """The scheduler that the config names; what would do in its place where refsd has it not."""
    try:
        found = from_config(config)
        if upgrade and (changes := _outdated(found.config)):
            unchosen = found.config.defaulted  # also of what is put in its place, as in diffusers
            found = type(found).from_config(found.config, **changes)
            found.config = Config(found.config, unchosen)
        return found
    except ModelError as problem:
        able = would_do(config)
        hint = (f"from_pretrained(..., scheduler=refsd.schedulers.{able[0]}) replaces it; "
                f"{', '.join(able[:4])} and {len(able[4:])} more would do"
                ) if able else "no other sampler would do"
        raise ModelError(f"{problem}. {hint}") from None


def _outdated(config: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' StableDiffusionPipeline puts in place of options in older files.

    steps_offset is 1 and clip_sample False there, whatever the file says and its class defaults to.
    """
    changes: dict[str, Any] = {}
    if config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if config.get("clip_sample"):
        changes["clip_sample"] = False
    # An offset moves evenly spaced multiples alone, and LCM has timesteps of its own.
    moved = config.get("timestep_spacing") == "leading" and "original_inference_steps" not in config
    heard = [key for key in changes if key == "clip_sample" or moved]
    if heard:
        logger.warning("the scheduler's config is of an older form: %s, as in diffusers",
                       " and ".join(f"{k} is taken as {changes[k]}" for k in heard))
    return changes


def scheduler_config(place: Path) -> tuple[dict[str, Any], str]:
    """The scheduler_config.json of a model, its class named as model_index.json names it."""
    if not place.is_dir():
        return scheduler_of_file(place), str(place)
    path = place / "scheduler" / "scheduler_config.json"
    named, config = part_class(place, "scheduler"), read_foreign_object(path)
    saved = config.get("_class_name")
    if named in (None, saved):
        return config, str(path)
    if saved is not None:
        logger.warning("%s: of %s, which model_index.json says to read as %s", path,
                       ascii(saved)[:80], ascii(named)[:80])
    return {**config, "_class_name": named}, str(path)
