"""A whole model, from a diffusers folder or a single file: checked first, then read."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.families import COMPONENTS, INPUTS, input_of, not_drawn
from refsd.leaf import Weight, seal
from refsd.networks import network_of
from refsd.quantized import Quantized
from refsd.tree import to_tree
from refsd.weights.folder import check_variants
from refsd.weights.forms import check_form, hold, meant, read_as
from refsd.weights.memory import check_memory, needed_bytes
from refsd.weights.model_index import networks_of, remark
from refsd.weights.plan import Plan, Source, family_at, own_config, plan_file, plan_folder
from refsd.weights.plan import plan_replacement as replacement
from refsd.weights.reader import iter_tensors, read_tensors, warn_nonfinite


@dataclass(frozen=True)
class Component:
    """One network of a checkpoint: its config with all defaults, and its tensors by name.

    The tensors are leaves (refsd.leaf), which never change: backends keep what they make of them.
    To change one, put a changed copy in its place in the tree.
    """

    config: dict[str, Any]
    tensors: dict[str, Weight]
    source: str

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The tensors as nested dicts and lists, for the functions of refsd.models."""
        return to_tree(self.tensors)


def load_checkpoint(
    path: str | Path,
    *,
    dtype: str | None = "float32",
    weights: str | None = None,
    variant: str | None = None,
    ema: bool = False,
    force: bool = False,
    configs: Mapping[str, Mapping] | None = None,
    replaced: Mapping[str, Path | None] | None = None,
    inputs: Collection[str] = tuple(INPUTS),
    offload: Any = None,
    may_offload: bool = False,
) -> dict[str, Component]:
    """The networks of a diffusers folder or a single file, under the names of a folder's parts.

    dtype: see `read_safetensors`; int8 is float32 of which linear layers, and 1 x 1 convolutions
    like them, multiply int8 activations by int8 weights (refsd.quantized.W8A8). weights is the form
    in which matrices, tables and kernels are held, while they read as dtype: one of FORMS of
    refsd.weights.forms; None is dtype, and int8 for those that are int8 in the file. variant picks
    a folder's files ("fp16") in the parts that have it; ema the moving averages of a single file;
    configs are for single files of another size than their family's. force skips the question
    whether it fits into memory. replaced gives components another path, or None to leave them out:
    the model's own are then not looked at. inputs: what the UNet may read (refsd.families.inputs).
    offload: a refsd.weights.streaming.Streamer, from which leaves come while they are used;
    may_offload: whether who calls this has that option, for what is said of too little memory.

    Every name, shape, type and config is checked before the first tensor is read. Raises
    ModelError for what is wrong with the files, ResourceError for too little memory, UsageError
    for a path that does not exist or an option that has no meaning for it.
    """
    path, replaced = Path(path), replaced or {}
    if path.is_dir():
        if ema or configs:
            raise UsageError(f"{path}: ema and configs are for single files, this is a folder: "
                             "leave them out (its plain weights are the averages where it was "
                             "trained with some)")
        remark(path)
        plans = {name: plan_folder(path, name, variant=variant) for name in networks_of(path)
                 if name not in replaced}
        check_variants({name: plan.variant for name, plan in plans.items()}, variant, str(path))
    elif path.is_file():
        if variant is not None:
            raise UsageError(f"{path}: variant is for folders, this is a single file; leave it out")
        plans = plan_file(path, ema=ema, configs=configs, without=replaced)
    else:
        raise UsageError(f"{str(path)[:200]}: no such file or folder. Give one that there is")

    family = family_at(path) if replaced else None
    for name, other in replaced.items():
        if name not in family.networks:
            raise UsageError(f"{path}: {family.name}, which has no {name}: leave it out")
        if other is not None:
            like = (configs or {}).get(name) or own_config(path, name)
            plans[name] = replacement(other, name, variant=variant, like=like, family=family)
    elsewhere = [name for name, other in replaced.items() if other is None]
    check_together({name: plan.config for name, plan in plans.items()}, str(path), inputs,
                   elsewhere)
    return load(plans, dtype=dtype, weights=weights, force=force, offload=offload,
                may_offload=may_offload)


def load_folder(
    path: str | Path,
    component: str,
    *,
    dtype: str | None = "float32",
    weights: str | None = None,
    variant: str | None = None,
    force: bool = False,
) -> Component:
    """One component of a diffusers folder; raises as `load_checkpoint`."""
    if component not in COMPONENTS:
        raise UsageError(f"component: got {component!r}, expected one of {', '.join(COMPONENTS)}")
    plan = plan_folder(Path(path), component, variant=variant)
    check_variants({component: plan.variant}, variant, str(path))
    return load({component: plan}, dtype=dtype, weights=weights, force=force)[component]


def check_together(configs: Mapping[str, Mapping], where: str,
                   inputs: Collection[str] = tuple(INPUTS),
                   elsewhere: Collection[str] = ()) -> None:
    """ModelError when the networks of a model, of which some lie elsewhere, do not fit each other.

    A UNet's latents may be those of several kinds of models, of which `inputs` are wanted.
    """
    if unet := configs.get("unet"):
        latent = configs.get("vae", {}).get("latent_channels", unet["out_channels"])
        if unet["out_channels"] != latent:
            raise ModelError(f"{where}: the UNet gives {unet['out_channels']} channels, the VAE's "
                             f"latents have {latent}. Give parts of one model")
        check_input(unet["in_channels"], latent, inputs, where)
    for part, config in configs.items():
        network_of(part, config).together(part, configs, elsewhere, where)


def check_input(channels: int, latent: int, inputs: Collection[str], where: str) -> None:
    """ModelError for a UNet that reads other inputs than the pipeline at hand gives it."""
    found = input_of(channels, latent)
    if kind := not_drawn(channels, latent):
        raise ModelError(f"{where}: {kind}, its UNet takes {channels} channels; refsd draws "
                         "with none. Give a text-to-image, inpainting or InstructPix2Pix model")
    if found is None:
        raise ModelError(f"{where}: the UNet takes {channels} channels, the VAE's latents have "
                         f"{latent}. Give parts of one model")
    if found not in inputs:
        what, pipelines, options = INPUTS[found]
        raise ModelError(f"{where}: {what}, its UNet takes {channels} channels. Take {pipelines}; "
                         f"for refsd draw give {options}")


def load(plans: Mapping[str, Plan], *, dtype: str | None, weights: str | None = None,
         force: bool, offload: Any = None, may_offload: bool = False) -> dict[str, Component]:
    """Read what was planned, after a look at the memory; NaN weights are logged."""
    check_form(weights, dtype)
    weights, dtype = meant(weights, dtype)
    if offload is not None:
        return offload.components(plans, weights=weights, dtype=dtype, force=force)
    everything = {(id(header), location.name): header.tensors[location.name]
                  for plan in plans.values() for header, location, _ in plan.sources.values()}
    source = next(iter(plans.values())).source
    check_memory(needed_bytes(everything.values(), dtype, weights), source, force=force,
                 loading=(everything.values(), dtype, weights,
                          _sizes(plans, dtype, weights) if may_offload else ()))

    components = {}
    for component, plan in plans.items():
        form, reads = held_as(component, plan.config, weights, dtype)
        leaves = dict(iter_leaves(component, plan, dtype=reads, weights=form))
        leaves = {name: leaves[name] for name in plan.shapes}
        warn_nonfinite(leaves, plan.source)
        components[component] = Component(plan.config, leaves, plan.source)
    return components


def _sizes(plans: Mapping[str, Plan], dtype: str | None, form: str | None) -> list[list[int]]:
    """The bytes of each network's tensors once they are loaded."""
    return [[needed_bytes([source.info], dtype, form, once=True)
             for source in plan.sources.values()] for plan in plans.values()]


def held_as(component: str, config: Mapping[str, Any], form: str | None,
            dtype: str | None) -> tuple[str | None, str | None]:
    """The form and the dtype of one network: float16 holds those that do not compute in it."""
    if dtype == "float16" and network_of(component, config).beyond_float16:
        return form or "float16", "float32"
    return form, dtype


def iter_leaves(component: str, plan: Plan, *, dtype: str | None, weights: str | None = None,
                names: Collection[str] | None = None, empty: Callable = np.empty,
                later: bool = False) -> Iterator[tuple[str, Weight]]:
    """The tensors, or those of these names, as leaves: one after the other as files hold them.

    later: those that are to be converted come as refsd.quantized.AsRead.
    """
    sources = plan.sources if names is None else {name: plan.sources[name] for name in names}
    for header in {id(source.header): source.header for source in sources.values()}.values():
        here: dict[str, list[str]] = {}
        for name, source in sources.items():
            if source.header is header:
                here.setdefault(source.location.name, []).append(name)
        for stored, array in iter_tensors(
                header, dtype=read_as(weights, dtype), names=here, empty=empty, later=later):
            for name in here[stored]:
                part = sources[name].location.take(array).reshape(plan.shapes[name])
                if (scale := sources[name].scale) is not None:
                    part = _quantized(part, scale, dtype)
                yield name, hold(part, f"{component}.{name}", form=weights,
                                 stored=header.tensors[stored].dtype, dtype=dtype, later=later,
                                 empty=empty)
            del array, part  # before the next one is read


def _quantized(values: np.ndarray, scale: Source, dtype: str | None) -> Quantized:
    factors = read_tensors(scale.header, names=[scale.location.name])[scale.location.name]
    return Quantized(seal(values), factors.reshape(-1), dtype or "float32")
