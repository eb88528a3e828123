"""Graphs: what is traced, that it runs with the bits of eager calls, and what check() refuses."""

from functools import partial

import numpy as np
import pytest

import refsd
from refsd import F
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.families import gpt2, sd1, sd2, sd3, sdxl
from refsd.graph import Graph, Node, Ref, Value, run, trace
from refsd.leaf import Weight
from refsd.models import clip, unet, vae
from refsd.pipelines.planned import calls, planned_networks, sized
from refsd.planning import planning

F32 = "float32"


def branch(x, y, *, weight, bias=None):
    """What stands for a network: two branches, a list, a number, an option."""
    h = F.linear(F.silu(x), weight, bias)
    return F.concat([F.add(h, y), F.mul(h, 2.0)], axis=-1)


@pytest.fixture
def weight():
    return Weight(np.arange(12, dtype="f4").reshape(4, 3), "net.fc.weight")


@pytest.fixture
def graph(weight):
    return trace(branch, Spec((2, 3), F32), Spec((2, 4), F32), weight=weight)


def test_what_is_noted(graph, weight):
    assert [(v.kind, v.name, v.shape) for v in graph.values.values()] == [
        ("input", "x", (2, 3)), ("input", "y", (2, 4)), ("result", "silu", (2, 3)),
        ("weight", "net.fc.weight", (4, 3)), ("result", "linear", (2, 4)),
        ("result", "add", (2, 4)), ("result", "mul", (2, 4)), ("result", "concat", (2, 8))]
    assert graph.nodes[1] == Node("linear", {"x": Ref(2), "weight": Ref(3), "bias": None}, {}, 4,
                                  "net.fc")
    assert graph.nodes[4].inputs == {"arrays": [Ref(5), Ref(6)]}
    assert graph.nodes[4].options == {"axis": -1} and graph.nodes[3].inputs["b"] == 2.0
    assert graph.outputs == (7,) and graph.single and graph.held == {3: weight}
    assert graph.numbers("input") == (0, 1) and graph.makers()[7] == 4
    assert graph.users() == {0: [0], 1: [2], 2: [1], 3: [1], 4: [2, 3], 5: [4], 6: [4], 7: [5]}


def test_the_listing(graph):
    assert str(graph).splitlines() == [
        "%0 = input x                              (2, 3) float32",
        "%1 = input y                              (2, 4) float32",
        "%2 = silu(%0)                             (2, 3) float32",
        "%4 = linear(%2, net.fc.weight)            (2, 4) float32",
        "%5 = add(%4, %1)                          (2, 4) float32",
        "%6 = mul(%4, 2.0)                         (2, 4) float32",
        "%7 = concat([%5, %6], axis=-1)            (2, 8) float32",
        "return %7"]


def test_it_runs_as_the_function_does(graph, weight):
    x, y = np.ones((2, 3), F32), np.full((2, 4), 3, F32)
    expected = branch(x, y, weight=weight)
    assert np.array_equal(run(graph, x, y), expected)
    other = Weight(np.zeros((4, 3), F32), "net.fc.weight")
    assert np.array_equal(run(graph, x, y, weights={"net.fc.weight": other}),
                          branch(x, y, weight=other))


def test_inputs_stand_in_the_order_of_the_parameters():
    """However they were given: of a partial, by name, one of several."""
    def function(a, *more, last, **rest):
        return F.concat([F.sub(a, more[0]), more[1], last, rest["b"]], axis=0)

    one, two, three, four, five = (Spec((n, 2), F32) for n in (1, 1, 2, 3, 4))
    graph = trace(partial(function, one, last=four), two, three, b=five)
    assert [graph.values[n].name for n in graph.numbers("input")] == [
        "a", "more[0]", "more[1]", "last", "b"]
    arrays = [np.full(spec.shape, i, F32) for i, spec in enumerate((one, two, three, four, five))]
    assert np.array_equal(run(graph, *arrays), function(*arrays[:3], last=arrays[3], b=arrays[4]))
    with pytest.raises(TypeError, match="last"):
        trace(function, one, two, three)


def test_several_results_constants_and_lists_of_inputs():
    def both(arrays, table):
        h = F.concat(arrays, axis=0)
        return h, F.add(h, table)

    table = np.ones((4, 2), F32)
    graph = trace(both, [Spec((1, 2), F32), Spec((3, 2), F32)], table)
    assert [graph.values[n].name for n in graph.numbers("input")] == ["arrays[0]", "arrays[1]"]
    assert [v.kind for v in graph.values.values()].count("constant") == 1
    first, second = run(graph, table[:1], table[1:])
    assert np.array_equal(first, table) and np.array_equal(second, table + 1)


def test_options_that_are_arrays_and_results_in_lists():
    """A mask is read as inputs are; the graph gives what a network keeps one after the other."""
    def attend(x, mask):
        h = F.silu(x)
        return F.attention(h, x, x, heads=1, mask=F.mul(mask, 2.0)), [(h, x)]

    graph = trace(attend, Spec((1, 2, 4), F32), Spec((2, 2), F32)).check()
    mask = graph.nodes[-1].options["mask"]
    assert graph.nodes[-1].reads == (2, 0, 0, mask.number) and graph.users()[mask.number] == [2]
    assert "heads=1, mask=%3" in str(graph) and graph.outputs == (4, 2, 0)
    x, m = np.linspace(-1, 1, 8, dtype=F32).reshape(1, 2, 4), np.array([[0, -1], [2, 0]], F32)
    y, ((h, _),) = attend(x, m)
    found = run(graph, x, m)
    assert all(np.array_equal(a, b) for a, b in zip(found, (y, h, x), strict=True))


def test_results_are_let_go_after_their_last_use(graph, monkeypatch):
    """Of the weights' specs, so that nothing else is alive: at each op what is still to be read."""
    alive = []
    x, y = np.ones((2, 3), F32), np.ones((2, 4), F32)
    with planning() as plan:
        monkeypatch.setattr("refsd.graph.running.dispatch", lambda *call: (
            alive.append(plan.alive), refsd.registry.dispatch(*call))[1])
        run(graph, x, y)
    sizes = {"silu": 24, "linear": 32, "add": 32, "mul": 32}
    assert alive == [0, sizes["silu"], sizes["linear"], sizes["linear"] + sizes["add"],
                     sizes["add"] + sizes["mul"]]


@pytest.mark.parametrize("inputs, words", [
    ((np.ones((2, 3), F32),), "got 1 inputs, wanted 2: x, y"),
    ((np.ones((2, 3), F32), np.ones((2, 5), F32)), r"y is float32 \(2, 5\); it was traced for"),
    ((np.ones((2, 3)), np.ones((2, 4), F32)), r"x is float64 \(2, 3\); it was traced for float32"),
])
def test_inputs_that_do_not_fit_are_refused(graph, inputs, words):
    with pytest.raises(UsageError, match=words):
        run(graph, *inputs)


def test_weights_that_are_not_there_are_named():
    spec = refsd.planning.WeightSpec((4, 3), F32)
    spec.name = "net.fc.weight"
    graph = trace(branch, Spec((2, 3), F32), Spec((2, 4), F32), weight=spec)
    assert not graph.held
    with pytest.raises(UsageError, match="the weight net.fc.weight is missing"):
        run(graph, np.ones((2, 3), F32), np.ones((2, 4), F32))


def test_what_is_no_function_of_ops_is_refused():
    with pytest.raises(UsageError, match="gives a int beside results of ops"):
        trace(lambda x: (F.silu(x), 3), Spec((2,), F32))
    with pytest.raises(ValueError, match="linear"):
        trace(branch, Spec((2, 3), F32), Spec((2, 4), F32), weight=np.ones((4, 5), F32))


@pytest.mark.parametrize("change, words", [
    (lambda g: g.with_nodes(g.nodes[:1] + g.nodes[2:]), "reads %4, which is made later"),
    (lambda g: g.with_nodes(g.nodes[:2] + g.nodes[3:1:-1] + g.nodes[4:3:-1] + g.nodes[:1]),
     "makes %2 again"),
    (lambda g: g.with_nodes((g.nodes[1], g.nodes[0], *g.nodes[2:])), "reads %2, which is made"),
    (lambda g: g.with_nodes(g.nodes[:-1]), "the output %7 is never made"),
    (lambda g: Graph({**g.values, 6: Value("result", "mul", (2, 4), "float64")}, g.nodes,
                     g.outputs), r"mul, gives float32 \(2, 4\), and %6 is float64"),
    (lambda g: Graph({**g.values, 7: Value("result", "concat", (2, 9), F32)}, g.nodes,
                     g.outputs), r"concat, gives float32 \(2, 8\), and %7 is float32 \(2, 9\)"),
    (lambda g: Graph({**g.values, 6: Value("input", "mul", (2, 4), F32)}, g.nodes, g.outputs),
     "makes %6 again"),
])
def test_a_graph_that_does_not_hold_is_refused(graph, change, words):
    graph.check()
    with pytest.raises(UsageError, match=words):
        change(graph).check()


@pytest.mark.parametrize("family", [sd1.SD1, sd2.SD2, sdxl.SDXL, sd3.SD3, gpt2.GPT2])
def test_a_graph_has_the_ops_of_the_plan(family):
    """At full size, of shapes alone: nothing of a graph is made in another way than a plan."""
    networks = planned_networks(family.configs)
    for call, plan, _ in calls(networks, sized(networks)).values():
        graph = trace(call).check()
        planned = [(p.op, p.output.shape, p.output.dtype, p.path) for p in plan]
        assert planned == [(n.op, graph.values[n.result].shape, graph.values[n.result].dtype,
                            n.path) for n in graph.nodes]


@pytest.fixture(scope="module")
def bundled():
    return {backend: refsd.StableDiffusionPipeline.from_pretrained(backend=backend)
            for backend in ("numpy", "numba")}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_bundled_models_networks_run_with_the_bits_of_eager_calls(bundled, backend):
    pipe, rng = bundled[backend], np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(F32)

    ids = np.zeros((1, pipe.text_encoder.config.max_length), "int64")
    ids[0, 3] = 5
    text = normal(2, ids.shape[1], pipe.unet.text_width)
    networks = [
        (partial(clip.clip_text, **pipe.text_encoder.tree, config=pipe.text_encoder.config),
         (ids,)),
        (partial(unet.unet, **pipe.unet.tree, config=pipe.unet.config),
         (normal(2, 4, 8, 8), np.array([7, 500], "int64"), text)),
        (partial(vae.decode, decoder=pipe.vae.tree["decoder"], config=pipe.vae.config,
                 post_quant_conv=pipe.vae.tree.get("post_quant_conv")),
         (normal(1, pipe.vae.config.latent_channels, 8, 8),))]
    for call, arrays in networks:
        inputs = [Spec(a.shape, str(a.dtype)) for a in arrays]
        with refsd.use(backend):
            expected = call(*arrays)
            if call.func is clip.clip_text:  # which looks at the ids
                assert np.array_equal(run(trace(call, ids)), expected)
            else:
                assert np.array_equal(run(trace(call, *inputs), *arrays), expected)
