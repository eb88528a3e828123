"""Memory images: every live value at its offset with eager's bits, and files that are refused."""

import hashlib
import json

import numpy as np
import pytest
from test_graph_memory import INPUTS, net

import refsd
from refsd.errors import ModelError, UsageError
from refsd.graph import plan_memory, trace
from refsd.graph.image import memory_image, read_image, write_image
from refsd.registry import watch


@pytest.fixture(scope="module")
def graph():
    return trace(net, *INPUTS)


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(dtype) for shape, dtype in INPUTS]


@pytest.mark.parametrize("at", [0, 4, 9, 14])
def test_every_live_value_lies_at_its_offset(graph, arrays, at, tmp_path):
    eager = []
    with refsd.use("numba"):
        with watch(lambda op, inputs, options, output: eager.append(np.array(output))):
            net(*arrays)
        write_image(tmp_path / "image", memory_image(graph, *arrays, at=at))
        plan = plan_memory(graph, "numba")
    image = read_image(tmp_path / "image")
    assert (image.node, image.op, image.memory.size) == (at, graph.nodes[at].op, plan.arena)
    made = {node.result: i for i, node in enumerate(graph.nodes)}
    for live in image.values:
        assert made[live.number] <= at and live.name == graph.values[live.number].name
        assert image.value(live.number).tobytes() == eager[made[live.number]].tobytes()
        if live.number in plan.results:
            assert live.offset == plan.results[live.number].offset
    wanted = {n for n, place in plan.results.items()
              if place.lifetime.first <= at <= place.lifetime.last}
    assert {live.number for live in image.values} & plan.results.keys() >= {
        n for n in wanted if n in {*graph.nodes[at].reads, graph.nodes[at].result}} & wanted
    assert len(image.values) >= 1


def test_what_there_is_no_image_of(graph, arrays):
    with refsd.use("numba"):
        for at in (-1, len(graph.nodes)):
            with pytest.raises(UsageError, match=f"at is {at}, and the graph has the nodes 0 to"):
                memory_image(graph, *arrays, at=at)
        with pytest.raises(UsageError, match="%999 is not in it; there are %2"):
            memory_image(graph, *arrays, at=0).value(999)
    with refsd.use("numpy"), pytest.raises(UsageError, match="numpy places results itself"):
        memory_image(graph, *arrays, at=0)


@pytest.mark.parametrize("change, words", [
    ({"schema": 2}, "schema"), ({"bytes": 64}, "arena.bin"), ({"sha256": "0"}, "which are not"),
    ({"more": 1}, "more"), ({"values": [{"number": 1}]}, r"values\[0\]"),
])
def test_files_that_are_refused(graph, arrays, tmp_path, change, words):
    with refsd.use("numba"):
        write_image(tmp_path, memory_image(graph, *arrays, at=4))
    found = json.loads((tmp_path / "image.json").read_text())
    (tmp_path / "image.json").write_text(json.dumps({**found, **change}))
    with pytest.raises(ModelError, match=words):
        read_image(tmp_path)


@pytest.mark.parametrize("change, words", [
    ({"offset": 2**20}, "ends at byte"), ({"strides": [4]}, "a stride"), ({"dtype": "x"}, "dtype"),
    ({"number": 3}, None), ({"shape": [0, 1, 1]}, "a stride"),
])
def test_values_that_are_refused(graph, arrays, tmp_path, change, words):
    with refsd.use("numba"):
        write_image(tmp_path, memory_image(graph, *arrays, at=4))
    found = json.loads((tmp_path / "image.json").read_text())
    first = found["values"][0]
    values = [first | change, *([] if words else [first | change])]
    (tmp_path / "image.json").write_text(json.dumps({**found, "values": values}))
    with pytest.raises(ModelError, match=words or "a second %3"):
        read_image(tmp_path)
    assert hashlib.sha256((tmp_path / "arena.bin").read_bytes()).hexdigest() == found["sha256"]
