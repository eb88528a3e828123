"""Wrong passes, each of which check() or a comparison of bits has to notice."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from graph_samples import NETWORKS, traced

from refsd import F
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.graph import Ref, run, trace
from refsd.graph.passes import PASSES, matching, optimize, products, split, unused
from refsd.graph.passes.matching import Fusion, View

RIGHT = {one.__name__: one for one in PASSES}


def verdict(graph, changed, inputs):
    """Whether a graph after a pass is refused by check(), has other bits, or is right."""
    try:
        changed.check()
        found = run(changed, *inputs)
    except UsageError:
        return "check"
    expected = run(graph, *inputs)
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    same = len(found) == len(expected) and all(map(np.array_equal, found, expected))
    return "right" if same else "bits"


def of_network(name):
    return traced(*NETWORKS[name]())


def of_function(function, *shapes):
    inputs = [np.random.default_rng(i).standard_normal(s).astype("f4")
              for i, s in enumerate(shapes)]
    return trace(function, *(Spec(x.shape, "float32") for x in inputs)), inputs


def altered(name, change):
    """A pass whose new nodes are changed: change(graph, node) -> node."""
    def wrong(graph):
        found, _ = optimize(graph, [RIGHT[name]])
        new = {node.result for node in found.nodes} - {
            node.result for node in graph.nodes if node in found.nodes}
        return found.with_nodes(tuple(change(graph, node) if node.result in new else node
                                      for node in found.nodes))
    return wrong


def with_inputs(**inputs):
    return lambda graph, node: node._replace(inputs={**node.inputs, **inputs})


def with_options(**options):
    return lambda graph, node: node._replace(options={**node.options, **options})


def swapped(a, b, of):
    def change(graph, node):
        found = getattr(node, of)
        return node._replace(**{of: {**found, a: found[b], b: found[a]}})
    return change


def other_weight(graph, node):
    """Of the last layer with the same shape."""
    shape = graph.values[node.inputs["weight"].number].shape
    last = max(n for n in (*graph.numbers("weight"), *graph.numbers("constant"))
               if graph.values[n].shape == shape)
    return node._replace(inputs={**node.inputs, "weight": Ref(last)})


def reads_of_nodes(self, graph):
    """A View's count that takes a node that reads twice for one, and forgets the outputs."""
    self.graph, self._makers = graph, graph.makers()
    self._reads = Counter(n for node in graph.nodes for n in set(node.reads))


def fuses_what_is_read_twice(graph):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(View, "__init__", reads_of_nodes)
        return optimize(graph)[0]


def fuses_whatever_is_read(graph):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counter, "__getitem__", lambda self, number: 1)
        return optimize(graph)[0]


def at_the_first(graph):
    """The new node stands where the first of its nodes stood."""
    found, _ = optimize(graph, [RIGHT["conv2d_add"]])
    made = {node.result for node in graph.nodes} - {node.result for node in found.nodes}
    nodes = list(found.nodes)
    for node in [n for n in nodes if n.op == "conv2d_add"]:
        old = next(n for n in graph.nodes if n.result in made
                   and n.inputs.get("weight") == node.inputs["weight"])
        behind = [n.result for n in graph.nodes].index(old.result)
        before = {n.result for n in graph.nodes[:behind]}
        nodes.remove(node)
        nodes.insert(sum(n.result in before for n in nodes), node)
    return found.with_nodes(tuple(nodes))


def without_contracts(graph):
    """linear + add, whatever the addend's rows."""
    def fuse(self, op, inputs, options, *nodes):
        made = nodes[-1]._replace(op=op, inputs={
            name: inputs.get(name) for name in ("x", "weight", "addend", "bias")}, options={})
        return Fusion(frozenset(map(self.index, nodes)), made, "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(View, "fuse", fuse)
        return optimize(graph, [RIGHT["linear_add"]])[0]


def outputs_turned(graph):
    return replace(optimize(graph)[0], outputs=graph.outputs[::-1])


def an_output_less(graph):
    return replace(optimize(graph)[0], outputs=graph.outputs[:1], single=True)


def unused_but_for_lists(graph):
    """Takes what only stands in lists for unread."""
    read = {v.number for node in graph.nodes for v in node.inputs.values() if isinstance(v, Ref)}
    return graph.with_nodes(tuple(node for node in graph.nodes
                                  if node.result in read | set(graph.outputs)))


def unused_but_for_outputs(graph):
    return unused(replace(graph, outputs=graph.outputs[:1]), "numpy")[0].__class__(
        graph.values, unused(replace(graph, outputs=graph.outputs[:1]), "numpy")[0].nodes,
        graph.outputs, graph.single, graph.held)


def turned(graph):
    """The two last nodes change places."""
    found, _ = optimize(graph)
    return found.with_nodes((*found.nodes[:-2], *found.nodes[:-3:-1]))


def the_first_operand(view, add):
    """linear + add that takes the first operand for the addend, whichever the product is."""
    if add.op != "add" or (linear := view.maker(add.inputs["b"], "linear") or view.maker(
            add.inputs["a"], "linear")) is None:
        return None
    return view.fuse("linear_add", {**linear.inputs, "addend": add.inputs["a"]}, {}, linear, add)


def takes_the_first(graph):
    return matching.pattern("linear_add")(the_first_operand)(graph, "numpy")[0]


def subtracts_too(graph):
    """conv2d + sub for conv2d + add."""
    renamed = graph.with_nodes(tuple(node._replace(op="add") if node.op == "sub" else node
                                     for node in graph.nodes))
    return products.conv2d_add(renamed, "numpy")[0]


def of_another_dtype(graph):
    """Says that its result is float64."""
    found, _ = optimize(graph)
    last = found.nodes[-1].result
    return replace(found, values={**found.values,
                                  last: found.values[last]._replace(dtype="float64")})


def twice_read():
    return of_function(lambda x, w, b: (h := F.group_norm(x, w, b, groups=2, eps=1e-5),
                                        F.add(F.silu(h), h))[1], (1, 4, 3, 2), (4,), (4,))


def read_as_output():
    return of_function(lambda x, w: (h := F.linear(x, w), (F.geglu(h), h))[1], (2, 4), (6, 4))


def doubled():
    return of_function(lambda x, w: (h := F.linear(x, w), F.add(h, h))[1], (2, 4), (4, 4))


def broadcast():
    return of_function(lambda x, w, y: F.add(F.linear(x, w), y), (1, 3, 4), (4, 4), (2, 3, 4))


def subtracted():
    return of_function(lambda x, w: F.sub(F.conv2d(x, w, padding=1), x), (1, 4, 5, 5),
                       (4, 4, 3, 3))


def two_outputs():
    return of_network("vae, encode")


def strided():
    return of_function(lambda x, w, y: F.add(F.conv2d(x, w, stride=2, groups=2), y), (1, 4, 6, 6),
                       (4, 2, 2, 2), (1, 4, 3, 3))


def enlarged():
    return of_function(lambda x, w: F.conv2d(F.upsample_nearest(x, height=6, width=8), w,
                                             padding=1), (1, 2, 3, 4), (2, 2, 3, 3))


UNET, VAE = "unet, two levels", "vae, decode"
MISTAKES = {
    "fuses what another node reads": (twice_read, fuses_whatever_is_read, "check"),
    "fuses what is an output": (read_as_output, fuses_what_is_read_twice, "check"),
    "fuses what one node reads twice": (doubled, fuses_what_is_read_twice, "check"),
    "drops the norm's bias": (
        UNET, altered("group_norm_silu", swapped("weight", "bias", "inputs")), "bits"),
    "drops the convolution's bias": (UNET, altered("conv2d_add", with_inputs(bias=None)), "bits"),
    "drops the layer's bias": (UNET, altered("linear_geglu", with_inputs(bias=None)), "bits"),
    "another layer's weight": (UNET, altered("linear_add", other_weight), "bits"),
    "another eps": (VAE, altered("group_norm_silu", with_options(eps=1e-3)), "bits"),
    "another number of groups": (VAE, altered("group_norm_silu", with_options(groups=1)), "bits"),
    "drops the stride": (strided, altered("conv2d_add", with_options(stride=1)), "check"),
    "drops the groups": (strided, altered("conv2d_add", with_options(groups=1)), "check"),
    "drops the padding": (enlarged, altered("upsample_conv2d", with_options(padding=0)), "check"),
    "turns height and width": (
        enlarged, altered("upsample_conv2d", swapped("height", "width", "options")), "check"),
    "adds x in place of the addend": (
        UNET, altered("linear_add", lambda g, n: n._replace(
            inputs={**n.inputs, "addend": n.inputs["x"]})), "check"),
    "takes the first operand, which is the product": (UNET, takes_the_first, "check"),
    "fuses a difference": (subtracted, subtracts_too, "bits"),
    "fuses where the addend has more rows": (broadcast, without_contracts, "check"),
    "stands before what it reads": (UNET, at_the_first, "check"),
    "turns two nodes": (UNET, turned, "check"),
    "turns the outputs": (two_outputs, outputs_turned, "bits"),
    "loses an output": (two_outputs, an_output_less, "bits"),
    "drops the maker of an output": (two_outputs, unused_but_for_outputs, "check"),
    "drops what is read in a list": (UNET, unused_but_for_lists, "check"),
    "changes the dtype": (UNET, of_another_dtype, "check"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_pass_is_noticed(name):
    where, wrong, expected = MISTAKES[name]
    graph, inputs = of_network(where) if isinstance(where, str) else where()
    assert verdict(graph, optimize(graph)[0], inputs) == "right"
    assert verdict(graph, wrong(graph), inputs) == expected


def steps(fixed):
    """A UNet's bits at two timesteps, what is hoisted by `fixed` computed at the first alone."""
    graph, (sample, _, text) = of_network(UNET)
    parts = split(graph, [graph.numbers("input")[i] for i in fixed])
    parts.once.check(), parts.each.check()
    kept, found = None, []
    for time in (np.array([5.0, 700.0], "f4"), np.array([3.0, 600.0], "f4")):
        arrays = dict(zip(graph.numbers("input"), (sample, time, text)))
        if kept is None:
            kept = dict(zip(parts.hoisted, run(parts.once, *parts.inputs(parts.once, arrays))))
        given = parts.inputs(parts.each, {**arrays, **kept})
        found.append(np.array_equal(run(parts.each, *given), run(graph, sample, time, text)))
    return found


def test_what_is_computed_once_depends_on_the_text_alone():
    assert steps(fixed=[2]) == [True, True]


def test_hoisting_what_depends_on_the_time_is_noticed():
    assert steps(fixed=[1, 2]) == [True, False]


def test_a_split_that_hoists_too_little_or_forgets_is_noticed():
    graph, inputs = of_network(UNET)
    parts = split(graph, [graph.numbers("input")[2]])
    blocks = sum(node.op == "attention" for node in graph.nodes) // 2
    assert len(parts.hoisted) == len(parts.once.nodes) == 2 * blocks
    assert {node.op for node in parts.once.nodes} == {"linear"}
    assert [parts.each.values[n].name for n in parts.each.numbers("input")][:2] == [
        "sample", "timesteps"]
    assert len(parts.each.numbers("input")) == 2 + len(parts.hoisted)
    lost = parts.hoisted[0]
    values = {n: v for n, v in parts.each.values.items() if n != lost}
    with pytest.raises(UsageError, match=f"reads %{lost}"):
        replace(parts.each, values=values).check()


def test_weights_and_what_only_they_make_are_computed_once():
    """The transformer's places are cut out of a weight."""
    graph, _ = of_network("mmdit")
    parts = split(graph, [graph.numbers("input")[2]])
    assert {"slice", "to_image", "linear"} <= {node.op for node in parts.once.nodes}
    assert split(graph, []).once.numbers("input") == ()
