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
from refsd.graph.arena import directed_memory
from refsd.graph.passes import optimize
from refsd.half import HALVES
from refsd.models import clip, unet, vae
from refsd.numba_ops import weights


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
        arena = Arena(graph, plan_memory(graph, "numba"))
        same_bits(run(graph, *arrays, arena=arena), call(*arrays))
        # What this kernel gives is float32, and the registry rounds it.
        unplaced = ["timestep_embedding"] * (part == "unet" and pipe.unet.dtype == "bfloat16")
        assert [graph.values[n].name for n in arena.unplaced] == unplaced
        assert len(arena.plan.results) > 30 and len(arena.plan.outside) == 1
        # What its kernels work in is known to the byte, but where the registry rounds.
        rounded = {i for i, node in enumerate(graph.nodes) if node.result in arena.unplaced}
        assert arena.plan.work.keys() | rounded == arena.worked.keys()
        assert all(arena.worked[i] == place.size for i, place in arena.plan.work.items())
        measured = Arena(graph, plan_memory(graph, work=arena.worked))
        same_bits(run(graph, *arrays, arena=measured), call(*arrays))
        assert not measured.spilled and measured.worked == arena.worked
        # And what fused convolutions work in.
        fused, _ = optimize(graph)
        arena = Arena(fused, plan_memory(fused, "numba"))
        run(fused, *arrays, arena=arena)
        convolutions = {i for i, node in enumerate(fused.nodes) if "conv2d" in node.op}
        assert (part == "text_encoder") != any(n.op == "conv2d_add" for n in fused.nodes)
        assert {i: place.size for i, place in arena.plan.work.items() if i in convolutions} == {
            i: size for i, size in arena.worked.items() if i in convolutions}


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


def conv(x, kernel, **options):
    return (F.conv2d, [x, kernel], options)


CALLS = {
    "winograd4": conv((2, 33, 25, 30), (40, 33, 3, 3), padding=1),
    "winograd2": conv((1, 32, 8, 9), (48, 32, 3, 3), padding=1),
    "winograd of many panels": conv((2, 16, 64, 64), (16, 16, 3, 3), padding=1),
    "winograd of groups": conv((1, 32, 24, 24), (64, 16, 3, 3), padding=1, groups=2,
                               algorithm="winograd4"),
    "gemm of stride 2": conv((2, 32, 17, 16), (40, 32, 3, 3), stride=2, padding=((0, 1), (0, 1))),
    "gemm of lines with a gap": conv((1, 1024, 4, 4), (16, 1024, 3, 3), padding=1),
    "gemm without a copy": conv((1, 32, 9, 9), (16, 32, 3, 3), algorithm="im2col"),
    "gemm of few pixels": conv((1, 32, 3, 3), (16, 32, 3, 3)),
    "dilated": conv((1, 32, 16, 16), (16, 32, 3, 3), padding=2, dilation=2),
    "depthwise": conv((1, 48, 16, 16), (48, 1, 3, 3), padding=1, groups=48),
    "narrow": conv((2, 40, 16, 16), (3, 40, 3, 3), padding=1),
    "one pixel": conv((2, 40, 16, 16), (24, 40, 1, 1)),
    "linear": (F.linear, [(2, 40, 48), (20, 48), (20,)], {}),
    "linear and addend": (F.linear_add, [(2, 40, 48), (20, 48), (2, 40, 20)], {}),
    "linear and geglu": (F.linear_geglu, [(2, 40, 48), (40, 48), (40,)], {}),
    "attention": (F.attention, [(2, 50, 48), (2, 77, 48), (2, 77, 48)],
                                {"heads": 3}),
    "attention of odd widths": (F.attention, [(2, 50, 45), (2, 9, 45), (2, 9, 60)],
                                              {"heads": 5, "causal": False}),
    "silu": (F.silu, [(2, 50)], {}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CALLS)
def test_what_a_kernel_works_in_is_known_to_the_byte(name, dtype):
    function, shapes, options = CALLS[name]
    random = np.random.default_rng(3)
    arrays = [random.standard_normal(shape).astype(HALVES.get(dtype, dtype)) for shape in shapes]
    if name.startswith("linear") or function is F.conv2d:  # as a pipeline has them
        arrays[1] = weights.pack_weight(arrays[1])
    if function is F.conv2d:  # channels last, as a convolution leaves them
        arrays[0] = np.ascontiguousarray(arrays[0].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    graph = trace(partial(function, **options), *[Spec(a.shape, dtype) for a in arrays])
    with refsd.use("numba"):
        arena = Arena(graph, plan_memory(graph, "numba"))
        same_bits(run(graph, *arrays, arena=arena), function(*arrays, **options))
    assert arena.worked.get(0, 0) == arena.plan.workspace and not arena.spilled
    assert (arena.plan.workspace > 0) == (name != "silu")
