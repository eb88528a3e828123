"""What a drawing costs, known from shapes: parameters, FLOPs, memory, and what would make it fit.

The record alone: `refsd plan` prints it, errors about memory take their advice from the same
estimates (refsd.weights.lighter, refsd.pipelines.lighter).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from refsd.backends import find_backend
from refsd.graph import plan_memory, trace
from refsd.half import HALVES
from refsd.memory_models import BESIDE
from refsd.networks import NETWORKS
from refsd.pipelines.lighter import lighter
from refsd.pipelines.memory import offloaded_bytes, weight_bytes, working_bytes
from refsd.pipelines.outline import Outline
from refsd.pipelines.planned import (
    calls,
    denoiser_of,
    plan_networks,
    planned_network,
    planned_networks,
    sized,
)
from refsd.pipelines.request import check_choice
from refsd.pipelines.working import planned_bytes, text_bytes
from refsd.planning import Asked, Plan
from refsd.tree import flatten
from refsd.weights.forms import check_form
from refsd.weights.lighter import LIGHTER, Choice
from refsd.weights.streaming import MODES

# What a model may compute in, and hold its weights as: the rows of a table of memory.
HELD = ({"dtype": "float32"}, {"dtype": "float32", "weights": "float16"},
        {"dtype": "float32", "weights": "int8"}, {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "weights": "int8"})


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


@dataclass(frozen=True)
class Network:
    """A part of a model: its kind in words, its parameters, and its bytes once loaded."""

    part: str
    word: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Call:
    """One call of a network: ops, FLOPs, the most bytes at once, and those of all results.

    arena: what a memory plan (refsd.graph.plan_memory) takes for them, with workspaces, of which
    one node's are `workspace` at most.
    """

    name: str
    ops: int
    flops: int
    peak: int
    results: int
    arena: int
    workspace: int


@dataclass(frozen=True)
class Figures:
    """What a drawing costs. model_calls: steps of the schedule, each one call of the denoiser.

    Of a model that writes texts it is what the longest text costs, without sizes and steps.
    libraries + weights + working = peak, all in bytes; `held` is the peak by dtype and weights;
    free is what there is, None where nobody knows; `choices` are what would fit into it. text are
    the bytes of keys and values that are kept from step to step, a part of working.
    """

    model: str
    family: str
    width: int | None
    height: int | None
    request: Request
    networks: tuple[Network, ...]
    calls: tuple[Call, ...]
    model_calls: int
    flops: Mapping[str, int]
    libraries: int
    weights: int
    working: int
    held: tuple[Choice, ...]
    free: int | None
    choices: tuple[Choice, ...]
    text: int

    @property
    def peak(self) -> int:
        """The most that the process will hold."""
        return self.libraries + self.weights + self.working

    @property
    def fits(self) -> bool | None:
        """Whether that is there; None where nobody knows."""
        return None if self.free is None else self.peak <= self.free


def figures(found: Outline, request: Request, *, free: int | None = None) -> Figures:
    """Of a model and a drawing. `free` bytes are what it may take; None: nobody knows.

    Raises UsageError for a size that the model does not draw, and as load_checkpoint.
    """
    check_form(request.weights, request.dtype)
    found.family.leaving_out(request.without)
    backend = find_backend(request.backend)
    request = replace(request, backend=backend.name)
    pipe, steps = _pipe(found, request), 0
    asked, request = _with_size(pipe, request)
    if asked is not None:
        found.scheduler.set_timesteps(request.steps)
        steps = len(found.scheduler.timesteps)
    there = calls(pipe.networks, asked)
    plans = {name: plan for name, (_, plan, _) in there.items()}
    figures = Figures(
        found.name, found.family.name, request.width, request.height, request,
        tuple(_network(part, network) for part, network in pipe.networks.items()),
        tuple(_call(name, *call, backend.name) for name, call in there.items()),
        steps, _flops(plans, pipe, steps, request.pictures), _libraries(pipe),
        _weights(pipe, request), _working(pipe, request, free), tuple(_held(found, request, free)),
        free, (), sum(text_bytes(call) for call, *_ in there.values()))
    fitting = () if figures.fits in (None, True) else tuple(
        choice for choice in _choices(found, request, pipe, free) if choice.bytes <= free)
    return replace(figures, choices=fitting)


def _with_size(pipe: Any, request: Request) -> tuple[Asked | None, Request]:
    """What is asked of the networks, and the request with the model's own size for none.

    None for a model that writes texts: it has no sizes.
    """
    asked = sized(pipe.networks, pictures=request.pictures, copies=pipe.copies,
                  width=request.width, height=request.height)
    if asked is None:
        return None, request
    return asked, replace(request, width=request.width or asked.width * asked.downscale,
                          height=request.height or asked.height * asked.downscale)


def _pipe(found: Outline, request: Request) -> Any:
    """What estimates of memory ask of a pipeline; a model that writes texts has no vae."""
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
    return SimpleNamespace(networks=networks, denoiser=denoiser, vae=vae, copies=copies,
                           coder=lambda part: decoder)


def _upcasts(found: Outline, vae: Any) -> bool:
    """Whether the class that draws with the model decodes in float32, whatever is asked for."""
    from refsd.pipelines.auto import class_of

    return class_of(found.family, "text").upcasts(SimpleNamespace(vae=vae), "decoder")


def _libraries(pipe: Any) -> int:
    """Python with all that is imported and compiled, and what each weight takes beside its bytes.
    """
    weights = sum(len(flatten(network.tree)) for network in pipe.networks.values())
    return find_backend(pipe.denoiser.backend).memory.libraries + BESIDE * weights


def _weights(pipe: Any, request: Request) -> int:
    """What is held of the weights at once."""
    if request.offload is None:
        return weight_bytes(pipe)
    return offloaded_bytes({part: flatten(network.tree).values()
                            for part, network in pipe.networks.items()}, request.offload)


def offloads(found: Outline, request: Request, free: int | None = None) -> Iterator[Choice]:
    """The peak of each way of having weights in memory, the fastest first; None is all of them."""
    pipe = _pipe(found, request)
    _, request = _with_size(pipe, request)
    modes = (None, *MODES) if pipe.vae is not None else (None,)
    for mode in modes if find_backend(request.backend).device == "cpu" else modes[:1]:
        yield Choice({"offload": mode}, _peak(pipe, replace(request, offload=mode), free))


def _peak(pipe: Any, request: Request, free: int | None) -> int:
    return _libraries(pipe) + _weights(pipe, request) + _working(pipe, request, free)


def _working(pipe: Any, request: Request, free: int | None = None) -> int:
    """What is held on top of the weights.

    A VAE that chooses how it works does so in one piece where that fits into `free` bytes.
    """
    if pipe.vae is None:
        gaps = find_backend(request.backend).memory.gaps
        plans = plan_networks(pipe.networks, None).values()
        return max(plan.with_gaps(gaps) for plan in plans)
    asked = request.width, request.height, request.pictures
    working = planned_bytes(pipe, *asked)
    if request.tiling == "auto" and free is not None and (
            _libraries(pipe) + _weights(pipe, request) + working > free):
        working = min(working, working_bytes(pipe, *asked))
    return working


def _call(name: str, call: Any, plan: Plan, result: Any, backend: str) -> Call:
    placed = plan_memory(trace(call), backend)
    return Call(name, len(plan), plan.flops, plan.peak, plan.naive, placed.peak, placed.workspace)


def _types(plan: Any) -> Any:
    return lambda name: plan.sources[name].info.dtype


def _network(part: str, network: Any) -> Network:
    parameters = sum(math.prod(leaf.shape) for leaf in flatten(network.tree).values())
    return Network(part, NETWORKS[part].word, parameters,
                   weight_bytes(SimpleNamespace(networks={part: network})))


def _flops(plans: Mapping[str, Plan], pipe: Any, calls: int, pictures: int) -> dict[str, int]:
    """Of the texts, a step, decoding, and of the whole drawing; of a text reading, and a token."""
    if pipe.vae is None:
        return {name: plan.flops for name, plan in plans.items()}
    texts = sum(plan.flops for name, plan in plans.items() if name.startswith("text_encoder"))
    step = plans[denoiser_of(pipe.networks)[0]].flops
    decode = pictures * plans["decode"].flops
    return {"texts": texts, "step": step, "decode": decode,
            "drawing": texts + calls * step + decode}


def _held(found: Outline, request: Request, free: int | None) -> Iterator[Choice]:
    for options in HELD:
        yield _with(found, request, options, free)
    yield from [*offloads(found, request, free)][1:]


def _with(found: Outline, request: Request, options: Mapping[str, str],
          free: int | None) -> Choice:
    """The peak with another dtype or other weights."""
    form = request.weights if [*options] == ["without"] else None
    other = replace(request, **{"weights": form, **options})
    return Choice(options, _peak(_pipe(found, other), other, free))


def _choices(found: Outline, request: Request, pipe: Any, free: int | None) -> Iterator[Choice]:
    """What else could be asked for; what changes the picture least comes first."""
    fixed = _libraries(pipe) + _weights(pipe, request)
    others = [] if pipe.vae is None else [
        Choice(choice.options, fixed + choice.bytes) for choice in lighter(
            pipe, request.width, request.height, request.pictures, planned_bytes)]
    yield from (choice for choice in others if "vae.tiling" in choice.options)
    if request.offload is None:
        yield from [*offloads(found, request, free)][1:]
    yield from (choice for choice in others if "num_images_per_prompt" in choice.options)
    forms = [options for options in LIGHTER
             if not (request.dtype in HALVES and options.get("weights") in HALVES)
             and (found.plans is not None or options.get("weights") != "as-is")]
    for part in (None, *({*found.family.optional} & pipe.networks.keys())):
        without = {} if part is None else {"without": part}
        if without:
            yield _with(found, request, without, free)
        yield from (_with(found, request, {**without, **options}, free) for options in forms)
    yield from (choice for choice in others if "width" in choice.options)
