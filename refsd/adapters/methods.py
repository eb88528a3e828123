"""The methods of a pipeline that are about LoRA and its relatives, under diffusers' names.

They are a pipeline's (its `__getattr__`) once one of them is asked for. Adapters belong to the
networks, which several pipelines may share.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from refsd.adapters import file, loaded
from refsd.adapters.blocks import number_of
from refsd.arguments import refuse_unknown
from refsd.errors import UsageError

HUB = ("cache_dir", "revision", "token", "subfolder")
LOAD = ("pretrained_model_name_or_path_or_dict", "weight_name", "adapter_name", "weight", "strict",
        "download", *HUB)


def load_lora_weights(pipe: Any, pretrained_model_name_or_path_or_dict: Any,
                      weight_name: str | None = None, adapter_name: str | None = None,
                      weight: Any = 1.0, *, strict: bool = True, download: bool = False,
                      **hub: Any) -> None:
    """Load an adapter (LoRA, LoHa, LoKr, DoRA, ...) and put it, alone, into the networks.

    From a .safetensors file, a folder or a hub id (weight_name: which file), or a dict of
    arrays. `weight` as a weight of set_adapters, which puts several in at once. A tensor
    without a place in the model is an error; strict=False leaves it out. Raises ModelError,
    ResourceError, UsageError; then nothing is changed.
    """
    refuse_unknown("load_lora_weights", [name for name in hub if name not in HUB], LOAD)
    wanted = loaded.strengths_of(pipe, ["one"], weight, "load_lora_weights")
    source = file.open_source(pretrained_model_name_or_path_or_dict, weight_name,
                              download=download, **hub)
    _refuse_fused(pipe, "load_lora_weights")
    name = loaded.load(pipe, source, adapter_name, strict=strict)
    try:
        loaded.show(pipe, {part: {name: found["one"]} for part, found in wanted.items()})
    except BaseException:
        loaded.show(pipe, _strengths(pipe), without=[name])
        raise
    vars(pipe).pop("_disabled_lora", None)
    if len(loaded.adapters(pipe)) > 1:
        pipe.remark(f"adapter {name!r} is in alone now, as in diffusers: set_adapters(["
                    f"{', '.join(map(repr, loaded.adapters(pipe)))}]) puts several in")


def set_adapters(pipe: Any, adapter_names: str | Sequence[str],
                 adapter_weights: Any = None) -> None:
    """Have these adapters in the networks, and no others.

    adapter_weights: a number for all, or a list with one each: a number, None for 1, or a dict
    {"unet": x, "text_encoder": y}, where x may be a dict of weights of the UNet's blocks.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    refuse_unknown("set_adapters", names, loaded.adapters(pipe) or ["none is loaded"],
                   "adapter")
    _refuse_fused(pipe, "set_adapters")
    loaded.show(pipe, loaded.strengths_of(pipe, names, adapter_weights, "set_adapters"))
    vars(pipe).pop("_disabled_lora", None)


def get_active_adapters(pipe: Any) -> list[str]:
    """The adapters that are in the networks."""
    return [*_strengths(pipe)[pipe.denoises]]


def get_list_adapters(pipe: Any) -> dict[str, list[str]]:
    """The adapters that are loaded, of each network that they change."""
    found = {part: [name for name, changes in one.changes.items() if changes]
             for part, one in loaded.applied(pipe).items()}
    return {part: names for part, names in found.items() if names}


def delete_adapters(pipe: Any, adapter_names: str | Sequence[str]) -> None:
    """Take these out and forget them."""
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    refuse_unknown("delete_adapters", names, loaded.adapters(pipe) or ["none is loaded"],
                   "adapter")
    _refuse_fused(pipe, "delete_adapters")
    left = {part: {name: x for name, x in found.items() if name not in names}
            for part, found in _strengths(pipe).items()}
    loaded.show(pipe, left, without=names)


def unload_lora_weights(pipe: Any) -> None:
    """Take all adapters out and forget them: the weights are the very ones of before.

    What fuse_lora put in stays, as in diffusers, and the weights of before are let go.
    """
    for found in loaded.applied(pipe).values():
        found.keep() if found.fused else found.show({}, {})
    vars(pipe).pop("_disabled_lora", None)


def disable_lora(pipe: Any) -> None:
    """Take all adapters out, until enable_lora."""
    _refuse_fused(pipe, "disable_lora")
    if any(_strengths(pipe).values()):
        pipe._disabled_lora = _strengths(pipe)
        loaded.show(pipe, {})


def enable_lora(pipe: Any) -> None:
    """Put in again what disable_lora took out."""
    if disabled := vars(pipe).pop("_disabled_lora", None):
        names = loaded.adapters(pipe)
        loaded.show(pipe, {part: {name: x for name, x in found.items() if name in names}
                           for part, found in disabled.items()})


def fuse_lora(pipe: Any, components: Sequence[str] | None = None,
              lora_scale: float = 1.0, safe_fusing: bool = False,
              adapter_names: Sequence[str] | None = None) -> None:
    """Make what the adapters add part of the networks, which unload_lora_weights leaves.

    Of these components, or of all. refsd merges in any case: what is computed is the same.
    safe_fusing is always so.
    """
    networks = loaded.applied(pipe)
    components = networks if components is None else components
    refuse_unknown("fuse_lora", components, networks, "component")
    _refuse_fused(pipe, "fuse_lora")
    scaled = _scaled(pipe, number_of(lora_scale, "lora_scale"), adapter_names)
    loaded.show(pipe, {part: found if part in components else _strengths(pipe)[part]
                       for part, found in scaled.items()})
    for part in components:
        networks[part].fused = True


def unfuse_lora(pipe: Any, components: Sequence[str] | None = None) -> None:
    """Undo fuse_lora: the adapters can be changed and unloaded again."""
    networks = loaded.applied(pipe)
    components = networks if components is None else components
    refuse_unknown("unfuse_lora", components, networks, "component")
    for part in components:
        networks[part].fused = False


@contextmanager
def lora_scaled(pipe: Any, options: Mapping[str, Any]) -> Iterator[None]:
    """Within the block adapters have `scale` times their weights: cross_attention_kwargs."""
    refuse_unknown("cross_attention_kwargs", options, ["scale"], "key")
    scale = number_of(options.get("scale", 1.0), "cross_attention_kwargs: scale")
    if scale == 1 or "adapters" not in vars(pipe.denoiser) or not any(_strengths(pipe).values()):
        yield
        return
    _refuse_fused(pipe, "cross_attention_kwargs")
    before = _strengths(pipe)
    loaded.show(pipe, _scaled(pipe, scale))
    try:
        yield
    finally:
        loaded.show(pipe, before)


def _strengths(pipe):
    return {part: dict(found.strengths) for part, found in loaded.applied(pipe).items()}


def _scaled(pipe, scale, only=None):
    return {part: {name: scale * x for name, x in found.items() if only is None or name in only}
            for part, found in _strengths(pipe).items()}


def _refuse_fused(pipe, what):
    if any(found.fused for found in loaded.applied(pipe).values()):
        raise UsageError(f"{what}: the adapters are fused; call unfuse_lora() first, or "
                         "unload_lora_weights() to keep what they added")
