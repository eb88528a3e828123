"""Passes: what they fuse and what not, that nothing else changes, and that wrong ones are noticed.
"""

from functools import cache

import numpy as np
import pytest
from graph_samples import NETWORKS, traced

import refsd
from refsd import F
from refsd.contracts import Spec
from refsd.families import sd1, sd3, sdxl
from refsd.graph import passes, run, trace
from refsd.graph.passes import PASSES, Site, optimize
from refsd.pipelines.planned import planned_networks, sized

F32 = "float32"


@cache
def network(name):
    """Graph, inputs, and what the function itself gives."""
    call, given, more = NETWORKS[name]()
    return *traced(call, given, more), outputs_of(call(*given, **more))


def outputs_of(found):
    return found if isinstance(found, tuple) else (found,)


def same_bits(found, expected):
    return all(np.array_equal(a.view("u4"), b.view("u4"))
               for a, b in zip(outputs_of(found), expected, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_each_pass_keeps_the_bits_of_a_network(name):
    graph, given, expected = network(name)
    for one in PASSES:
        graph, _ = optimize(graph, [one])
        assert same_bits(run(graph.check(), *given), expected), one.__name__


def spec(*shape, dtype=F32):
    return Spec(shape, dtype)


X, IMAGE = spec(2, 3, 8), spec(1, 4, 6, 4)
KERNEL, MATRIX, BIAS = spec(4, 4, 3, 3), spec(8, 8), spec(4)


def norm(x, w, b):
    return F.group_norm(x, w, b, groups=2, eps=1e-5)


def conv(x, w, **options):
    return F.conv2d(x, w, padding=1, **options)


@pytest.mark.parametrize("function, inputs, fused", [
    (lambda x, w, b: F.silu(norm(x, w, b)), (IMAGE, BIAS, BIAS), ["group_norm_silu"]),
    (lambda x, w, b: F.silu(norm(F.silu(norm(x, w, b)), w, b)), (IMAGE, BIAS, BIAS),
     ["group_norm_silu"] * 2),
    (lambda x, w: F.add(conv(x, w), x), (IMAGE, KERNEL), ["conv2d_add"]),
    (lambda x, w: F.add(x, conv(x, w)), (IMAGE, KERNEL), ["conv2d_add"]),
    (lambda x, w, t: F.add(conv(x, w), t), (IMAGE, KERNEL, spec(1, 4, 1, 1)), ["conv2d_add"]),
    (lambda x, w: F.add(F.linear(x, w), x), (X, MATRIX), ["linear_add"]),
    (lambda x, w: F.add(x, F.linear(x, w)), (X, MATRIX), ["linear_add"]),
    (lambda x, w: F.geglu(F.linear(x, w)), (X, MATRIX), ["linear_geglu"]),
    (lambda x, w: conv(F.upsample_nearest(x, height=12, width=8), w), (IMAGE, KERNEL),
     ["upsample_conv2d"]),
    # the later of two, and what the other gives is the addend
    (lambda x, w, v: F.add(conv(x, w), conv(x, v)), (IMAGE, KERNEL, KERNEL),
     ["conv2d", "conv2d_add"]),
    (lambda x, w, v: (h := conv(x, w), F.add(h, conv(x, v)))[1], (IMAGE, KERNEL, KERNEL),
     ["conv2d", "conv2d_add"]),
])
def test_a_pattern_becomes_one_node(function, inputs, fused):
    graph, report = optimize(trace(function, *inputs))
    assert [node.op for node in graph.check().nodes] == fused
    assert sum(report.counts().values()) == sum("_" in op for op in fused)
    random = np.random.default_rng(0)
    given = [random.standard_normal(x.shape).astype(F32) for x in inputs]
    assert same_bits(run(graph, *given), outputs_of(function(*given)))


def test_of_two_products_the_earlier_fuses_where_the_later_is_read_again():
    def function(x, w, v):
        first, second = conv(x, w), conv(x, v)
        return F.add(first, second), second

    graph, _ = optimize(trace(function, IMAGE, KERNEL, KERNEL))
    assert [node.op for node in graph.check().nodes] == ["conv2d", "conv2d_add"]
    assert graph.nodes[1].inputs["weight"] == (1,) and graph.outputs[1] == graph.nodes[0].result


@pytest.mark.parametrize("function, inputs, why", [
    (lambda x, w, b: (h := norm(x, w, b), F.add(F.silu(h), h))[1], (IMAGE, BIAS, BIAS),
     "what group_norm gives is read 2 times"),
    (lambda x, w, b: (h := norm(x, w, b), (F.silu(h), h))[1], (IMAGE, BIAS, BIAS),
     "what group_norm gives is read 2 times"),
    (lambda x, w: (h := conv(x, w), F.add(h, h))[1], (IMAGE, KERNEL),
     "what conv2d gives is read 2 times"),
    (lambda x, w: F.add(F.linear(x, w), spec_like(x)), (spec(1, 3, 8), MATRIX),
     "linear_add"),
])
def test_what_does_not_fit_stays_and_is_said(function, inputs, why):
    before = trace(function, *inputs)
    graph, report = optimize(before)
    assert graph == before and report.nodes == (len(before.nodes),) * 2
    assert {site.why is None for sites in report.sites.values() for site in sites} == {False}
    assert any(f", not fused: {why}" in line for line in report.lines())


def spec_like(x):
    """Rows that a result is broadcast to."""
    return F.concat([x, x], axis=0)


@pytest.mark.parametrize("function, inputs", [
    (lambda x: F.silu(F.silu(x)), (X,)),
    (lambda x, w, b: norm(F.silu(x), w, b), (IMAGE, BIAS, BIAS)),
    (lambda x, w: F.geglu(F.silu(F.linear(x, w))), (X, MATRIX)),
    (lambda x, w: F.sub(F.linear(x, w), x), (X, MATRIX)),
    (lambda x: F.add(x, 1), (X,)),
])
def test_what_is_no_pattern_is_none(function, inputs):
    before = trace(function, *inputs)
    graph, report = optimize(before)
    assert graph == before and report.counts() == {}
    assert report.lines() == ["nothing to fuse"]


def test_a_backend_without_a_kernel_keeps_the_pattern(monkeypatch):
    before = trace(lambda x, w, b: F.silu(norm(x, w, b)), IMAGE, BIAS, BIAS)
    monkeypatch.setattr(passes.matching, "kernels", lambda op, backend: backend == "numpy")
    graph, report = optimize(before, backend="numba")
    assert graph == before
    assert report.lines() == ["group_norm_silu: 0 of 1",
                              "  %4, not fused: numba has no kernel of group_norm_silu"]
    assert optimize(before, backend="numpy")[1].counts() == {"group_norm_silu": 1}


def test_the_kernels_of_one_backend_are_asked_for():
    assert list(refsd.registry.kernels("silu", "numpy")) == ["numpy"]
    assert not refsd.registry.kernels("silu_of_nothing", "numpy")


def test_by_default_for_the_active_backend(monkeypatch):
    asked = []
    monkeypatch.setattr(passes.matching, "kernels",
                        lambda op, backend: asked.append(backend) or True)
    with refsd.use("numba"):
        optimize(trace(lambda x, w: F.geglu(F.linear(x, w)), X, MATRIX))
    assert asked == ["numba"]


def test_what_nobody_reads_goes_and_what_it_alone_read():
    def function(x):
        F.exp(F.tanh(x))
        return F.concat([F.silu(x), x], axis=0)

    graph, report = optimize(trace(function, X))
    assert [node.op for node in graph.check().nodes] == ["silu", "concat"]
    assert report.sites["unused"] == [Site("tanh %1"), Site("exp %2")]


FAMILIES = {"sd1": sd1.SD1, "sdxl": sdxl.SDXL, "sd3": sd3.SD3}
FULL = {
    ("sd1", "unet"): {"group_norm_silu": 45, "upsample_conv2d": 3, "conv2d_add": 60,
                        "linear_geglu": 16, "linear_add": 48},
    ("sdxl", "unet"): {"group_norm_silu": 35, "upsample_conv2d": 2, "conv2d_add": 34,
                          "linear_geglu": 70, "linear_add": 211},
    ("sd1", "vae"): {"group_norm_silu": 29, "upsample_conv2d": 3, "conv2d_add": 14},
    ("sd3", "transformer"): {"linear_add": 1},
}


@pytest.mark.parametrize("family, part", FULL)
def test_counts_at_full_size(family, part):
    """Of shapes alone. 22 residual blocks of SD 1.5 have two norms, 17 transformers one; the last
    norm is the 45th. Each block adds its time and its residual, each transformer its input."""
    graph = full(family, part)
    found, report = optimize(graph)
    assert report.counts() == FULL[family, part]
    assert len(found.check().nodes) == len(graph.nodes) - sum(report.counts().values())


@cache
def full(family, part):
    networks = planned_networks(FAMILIES[family].configs)
    asked, texts = sized(networks), {}
    for one in sorted(networks, key=lambda one: not one.startswith("text_encoder")):
        calls = networks[one].calls(one, asked, texts)
        if one == part:
            return trace(next(iter(calls.values())))
        if one.startswith("text_encoder"):
            graph = trace(next(iter(calls.values())))
            texts[one] = tuple(Spec(*graph.values[n][2:]) for n in graph.outputs)


def test_every_skip_is_joined_by_a_concat_that_one_node_reads():
    graph, _ = optimize(full("sd1", "unet"))
    joins = [node for node in graph.nodes if node.op == "concat"]
    assert len(joins) == 12 and all(len(node.inputs["arrays"]) == 2 for node in joins)
