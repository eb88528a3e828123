"""A drawing that is asked for before anything is loaded, and what it holds at its peak."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from refsd.backends import find_backend
from refsd.pipelines.outline import Outline
from refsd.pipelines.planned import denoiser_of, planned_network, planned_networks, sized
from refsd.pipelines.request import check_choice
from refsd.pipelines.staged import Stage, stages
from refsd.pipelines.vae_tiling import coding_bytes
from refsd.planning import Asked
from refsd.weights.checkpoint import held_as
from refsd.weights.forms import meant
from refsd.weights.lighter import Choice
from refsd.weights.streaming import MODES


@dataclass(frozen=True)
class Request:
    """A drawing that is planned: `pictures` at once, each guided or not.

    dtype, weights, backend and tiling (of the VAE) are the options of drawing; None of width and
    height is the model's own size; without is a part that the model may lack, and then does.
    """

    width: int | None = None
    height: int | None = None
    pictures: int = 1
    steps: int = 20
    guided: bool = True
    dtype: str = "float32"
    weights: str | None = None
    backend: str = "auto"
    tiling: str = "auto"
    without: str | None = None
    offload: str | None = None


def with_size(pipe: Any, request: Request) -> tuple[Asked | None, Request]:
    """What is asked of the networks, and the request with the model's own size for none.

    None for a model that writes texts: it has no sizes.
    """
    asked = sized(pipe.networks, pictures=request.pictures, copies=pipe.copies,
                  width=request.width, height=request.height)
    if asked is None:
        return None, request
    return asked, replace(request, width=request.width or asked.width * asked.downscale,
                          height=request.height or asked.height * asked.downscale)


def planned_pipe(found: Outline, request: Request) -> Any:
    """What estimates of memory ask of a pipeline; a model that writes texts has no vae.

    sources: of each part where its tensors lie, if anywhere, and the form that they take.
    """
    stored = {part: _types(plan) for part, plan in (found.plans or {}).items()}
    configs = {part: config for part, config in found.configs.items() if part != request.without}
    networks = planned_networks(configs, stored, backend=request.backend, dtype=request.dtype,
                                weights=request.weights)
    denoiser, vae, copies = denoiser_of(networks)[1], networks.get("vae"), 1
    decoder = vae
    if vae is not None:
        if _upcasts(found, vae):
            decoder = planned_network("vae", found.configs["vae"], backend=request.backend)
        decoder.tiling = vae.tiling = check_choice("vae.tiling", request.tiling, vae.TILINGS)
        copies = 2 if request.guided and denoiser.time_cond_dim is None else 1
    plans, held = found.plans or {}, meant(request.weights, request.dtype)
    sources = {part: (plans.get(part), held_as(part, config, *held)[0])
               for part, config in configs.items()}
    return SimpleNamespace(networks=networks, sources=sources, denoiser=denoiser, vae=vae,
                           copies=copies, coder=lambda part: decoder)


def _upcasts(found: Outline, vae: Any) -> bool:
    """Whether the class that draws with the model decodes in float32, whatever is asked for."""
    from refsd.pipelines.auto import class_of

    return class_of(found.family, "text").upcasts(SimpleNamespace(vae=vae), "decoder")


def _types(plan: Any) -> Any:
    return lambda name: plan.sources[name].info.dtype


def planned_stages(found: Outline, request: Request, free: int | None) -> list[Stage]:
    """Those of a drawing; `free` bytes are what it may take, None: nobody knows."""
    pipe = planned_pipe(found, request)
    asked, _ = with_size(pipe, request)
    return stages(pipe, asked, request.offload, free)


def peak_bytes(found: Outline, request: Request, free: int | None) -> int:
    """The most that the process holds."""
    return max(stage.bytes for stage in planned_stages(found, request, free))


def decoding_room(found: Outline, request: Request, budget: int) -> int:
    """What a budget leaves for the decoder, in bytes of coding_bytes: more goes in bands."""
    pipe = planned_pipe(found, replace(request, tiling="off"))
    asked, _ = with_size(pipe, request)
    whole = coding_bytes(pipe.coder("decoder"), "decoder", asked.height, asked.width, "off")
    return budget - (stages(pipe, asked, request.offload)[-1].bytes - whole)


def offloads(found: Outline, request: Request, free: int | None = None) -> Iterator[Choice]:
    """The peak of each way of having weights in memory, the fastest first; None is all of them."""
    modes = (None, *MODES) if "vae" in found.configs else (None,)
    for mode in modes if find_backend(request.backend).device == "cpu" else modes[:1]:
        yield Choice({"offload": mode}, peak_bytes(found, replace(request, offload=mode), free))
