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
from refsd.networks import NETWORKS
from refsd.pipelines.asked import Request, offloads, peak_bytes, planned_pipe, with_size
from refsd.pipelines.lighter import smaller
from refsd.pipelines.memory import weight_bytes
from refsd.pipelines.outline import Outline
from refsd.pipelines.planned import calls, denoiser_of
from refsd.pipelines.staged import Stage, stages, text_bytes
from refsd.planning import Plan
from refsd.tree import flatten
from refsd.weights.forms import check_form
from refsd.weights.lighter import LIGHTER, Choice

# What a model may compute in, and hold its weights as: the rows of a table of memory.
HELD = ({"dtype": "float32"}, {"dtype": "float32", "weights": "float16"},
        {"dtype": "float32", "weights": "int8"}, {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "weights": "int8"})


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
    libraries + weights + working = peak, all in bytes: those of the stage that takes the most;
    `held` is the peak by dtype and weights; free is what there is, None where nobody knows;
    `choices` are what would fit into it. text are the bytes of keys and values that are kept from
    step to step, a part of working.
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
    stages: tuple[Stage, ...]
    held: tuple[Choice, ...]
    free: int | None
    choices: tuple[Choice, ...]
    text: int

    @property
    def most(self) -> Stage:
        """The stage that takes the most."""
        return max(self.stages, key=lambda stage: stage.bytes)

    @property
    def peak(self) -> int:
        """The most that the process will hold."""
        return self.most.bytes

    @property
    def libraries(self) -> int:
        """Python with all that is imported and compiled."""
        return self.most.libraries

    @property
    def weights(self) -> int:
        """The weights that are there, in use or read ahead."""
        return self.most.weights + self.most.ahead

    @property
    def working(self) -> int:
        """What else is held."""
        return self.most.kept + self.most.working

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
    pipe, steps = planned_pipe(found, request), 0
    asked, request = with_size(pipe, request)
    if asked is not None:
        found.scheduler.set_timesteps(request.steps)
        steps = len(found.scheduler.timesteps)
    there = calls(pipe.networks, asked)
    plans = {name: plan for name, (_, plan, _) in there.items()}
    figures = Figures(
        found.name, found.family.name, request.width, request.height, request,
        tuple(_network(part, network) for part, network in pipe.networks.items()),
        tuple(_call(name, *call, backend.name) for name, call in there.items()),
        steps, _flops(plans, pipe, steps, request.pictures),
        tuple(stages(pipe, asked, request.offload, free)), tuple(_held(found, request, free)),
        free, (), sum(text_bytes(call) for call, *_ in there.values()))
    fitting = () if figures.fits in (None, True) else tuple(
        choice for choice in _choices(found, request, pipe, free) if choice.bytes <= free)
    return replace(figures, choices=fitting)


def _call(name: str, call: Any, plan: Plan, result: Any, backend: str) -> Call:
    placed = plan_memory(trace(call), backend)
    return Call(name, len(plan), plan.flops, plan.peak, plan.naive, placed.peak, placed.workspace)


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
    return Choice(options, peak_bytes(found, other, free))


def _choices(found: Outline, request: Request, pipe: Any, free: int | None) -> Iterator[Choice]:
    """What else could be asked for; what changes the picture least comes first."""
    others = [] if pipe.vae is None else [
        Choice(options, peak_bytes(found, replace(request, **changed), free)) for options, changed
        in smaller(pipe.vae, request.width, request.height, request.pictures)]
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
