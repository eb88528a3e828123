"""Planned runs: each result lies where the plan says, with the bits of eager calls."""

import logging
from functools import partial
from unittest import mock

import numpy as np
import pytest
from numba_agreement import same_bits
from test_graph_memory import INPUTS, PLANNERS, net, planted

import refsd
from refsd import F
from refsd.backends import BACKENDS, Backend
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.graph import Arena, MemoryPlan, plan_memory, run, trace
from refsd.graph.arena import work_sizes
from refsd.graph.placing import directed_memory
from refsd.half import HALVES
from refsd.memory_models import NUMBA_MEMORY
from refsd.models import clip, unet, vae


@pytest.fixture(scope="module")
def graph():
    return trace(net, *INPUTS)


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(dtype) for shape, dtype in INPUTS]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pipe(request):
    return refsd.StableDiffusionPipeline.from_pretrained(backend="numba", dtype=request.param)


def bundled(pipe, part):
    """A call of one of the bundled model's networks, and what it is called with."""
    random = np.random.default_rng(1)
    dtype = HALVES.get(pipe.unet.dtype, pipe.unet.dtype)

    def normal(*shape):
        return random.standard_normal(shape).astype("f4").astype(dtype)

    ids = random.integers(100, size=(1, pipe.text_encoder.config.max_length))
    if part == "text_encoder":
        return partial(clip.clip_text, **pipe.text_encoder.tree,
                       config=pipe.text_encoder.config), [ids]
    if part == "unet":
        return partial(unet.unet, **pipe.unet.tree, config=pipe.unet.config), [
            normal(2, 4, 32, 16), np.array([7, 500]),
            normal(2, ids.shape[1], pipe.unet.text_width)]
    return partial(vae.decode, decoder=pipe.vae.tree["decoder"], config=pipe.vae.config,
                   post_quant_conv=pipe.vae.tree.get("post_quant_conv")), [
        normal(1, pipe.vae.config.latent_channels, 16, 32)]


@pytest.mark.parametrize("part", ["text_encoder", "unet", "decoder"])
def test_every_result_of_the_bundled_model_lies_in_its_place(pipe, part):
    call, arrays = bundled(pipe, part)
    graph = trace(call, *[Spec(a.shape, str(a.dtype)) for a in arrays])
    with refsd.use("numba"):
        arena = Arena(graph, plan_memory(graph, NUMBA_MEMORY))
        same_bits(run(graph, *arrays, arena=arena), call(*arrays))
        # What this kernel gives is float32, and the registry rounds it.
        unplaced = ["timestep_embedding"] * (part == "unet" and pipe.unet.dtype == "bfloat16")
        assert [graph.values[n].name for n in arena.unplaced] == unplaced
        assert len(arena.plan.results) > 30 and len(arena.plan.outside) == 1
        # Planned for what was measured, nothing lies elsewhere.
        measured = Arena(graph, plan_memory(graph, work=arena.worked))
        same_bits(run(graph, *arrays, arena=measured), call(*arrays))
        assert not measured.spilled and measured.worked == arena.worked


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_bits_are_those_of_eager_calls(graph, arrays, backend):
    with refsd.use(backend):
        arena = Arena(graph, plan_memory(graph))
        for got, wanted in zip(run(graph, *arrays, arena=arena), net(*arrays), strict=True):
            same_bits(got, wanted)
        assert arena.unplaced == ([*arena.plan.results] if backend == "numpy" else [])


@pytest.mark.parametrize("module", ["refsd.ops", "refsd.planning"])
def test_other_backends_place_results_themselves(module):
    """A package without `planned`, and a module that is no package."""
    with mock.patch.dict(BACKENDS, {"mine": Backend("mine", module)}):
        assert directed_memory("mine") is None
    assert directed_memory("numba").allocating_with


def test_a_backend_that_cannot_be_told_says_so(graph, arrays, caplog):
    with caplog.at_level(logging.INFO, "refsd"):
        run(graph, *arrays, arena=Arena(graph, plan_memory(graph)))
    assert "numpy places results itself: the plan of 36864 bytes only lets them go" in caplog.text


def test_the_next_call_uses_the_arena_and_overwrites_no_output(graph, arrays):
    with refsd.use("numba"):
        arena = Arena(graph, plan_memory(graph))
        assert arena.memory is None
        first = run(graph, *arrays, arena=arena)
        memory, before = arena.memory, [array.copy() for array in first]
        second = run(graph, *[array[::-1].copy() for array in arrays], arena=arena)
        assert arena.memory is memory and memory.nbytes == arena.plan.arena
        for got, wanted, other in zip(first, before, second):
            same_bits(got, wanted)
            assert not np.may_share_memory(got, memory) and not np.may_share_memory(got, other)
            assert not np.array_equal(got, other)


def test_results_lie_at_their_offsets(graph, arrays):
    """Seen by a listener, which the addresses are enough for."""
    seen = []
    with refsd.use("numba"), refsd.registry.watch(lambda op, inputs, options, output: seen.append(
            output.ctypes.data)):
        arena = Arena(graph, plan_memory(graph))
        run(graph, *arrays, arena=arena)
    for node, address in zip(graph.nodes, seen, strict=True):
        if node.result in arena.plan.results:
            assert address == arena.address() + arena.plan.results[node.result].offset


def test_a_view_that_is_a_copy_is_counted():
    graph = trace(lambda x: F.exp(F.reshape(F.transpose(F.silu(x), axes=(1, 0)), shape=(12,))),
                  Spec((3, 4), "float32"))
    x = np.arange(12, dtype="f4").reshape(3, 4)
    with refsd.use("numba"):
        arena = Arena(graph, plan_memory(graph))
        same_bits(run(graph, x, arena=arena), F.exp(F.reshape(F.silu(x).T, shape=(12,))))
    assert [graph.values[n].name for n in arena.unplaced] == ["reshape"]


def test_workspaces_that_are_larger_than_planned_lie_elsewhere():
    random = np.random.default_rng(2)
    x, weight = (random.standard_normal(shape).astype("f4") for shape in (
        (1, 32, 16, 16), (32, 32, 3, 3)))
    graph = trace(lambda x: F.silu(F.conv2d(x, weight, padding=1)), Spec(x.shape, "float32"))
    with refsd.use("numba"):
        wanted = F.silu(F.conv2d(x, weight, padding=1))
        for work in (0, 4096, 2**20):
            arena = Arena(graph, plan_memory(graph, work={0: work}))
            same_bits(run(graph, x, arena=arena), wanted)
            assert set(arena.worked) == {0} and arena.worked[0] > 4096 and not arena.unplaced
            assert set(arena.spilled) == ({0} if work < 2**20 else set())


def test_an_arena_is_of_one_graph_and_one_run(graph, arrays):
    arena = Arena(graph, plan_memory(graph))
    with pytest.raises(UsageError, match="of one graph, and got another: make one for it"):
        run(trace(net, *INPUTS), *arrays, arena=arena)
    with arena.running(graph), pytest.raises(UsageError, match="one run, which is not at its end"):
        run(graph, *arrays, arena=arena)
    with pytest.raises(ZeroDivisionError), arena.running(graph):
        1 / 0  # noqa: B018
    run(graph, *arrays, arena=arena)


def test_a_plan_that_does_not_hold_is_not_run(graph):
    with pytest.raises(UsageError, match="has no place"):
        Arena(graph, MemoryPlan({}, {}, {}, 0, 0, 0))


# Of the planted bugs of test_graph_memory.py those that let something be overwritten.
WRONG = ("freed one node too early", "freed after the first reader", "freed while a view lives",
         "freed while a view of a view lives", "the use in a list is dropped",
         "an output that is reused")


@pytest.mark.parametrize("bug", WRONG)
def test_a_wrong_plan_changes_bits(graph, arrays, bug):
    """Where nobody checks it: the plans that check() finds are not found for nothing."""
    with planted(*PLANNERS[bug]):
        plan = plan_memory(graph)
    with refsd.use("numba"), mock.patch.object(MemoryPlan, "check", lambda plan, graph: plan):
        arena = Arena(graph, plan)
        outputs = run(graph, *arrays, arena=arena)
        run(graph, *[-array for array in arrays], arena=arena)
    assert not all(np.array_equal(*pair) for pair in zip(outputs, net(*arrays)))


def test_the_models_workspace_is_by_node(pipe):
    call, arrays = bundled(pipe, "decoder")
    graph = trace(call, *[Spec(a.shape, str(a.dtype)) for a in arrays])
    sizes = work_sizes(graph, NUMBA_MEMORY)
    assert {graph.nodes[i].op for i, size in sizes.items() if size} == {"conv2d"}
