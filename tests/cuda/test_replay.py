"""A step that is captured once and replayed has the bits of one that is not."""

import numpy as np
import pytest
import standing_in
import tiny
from op_table import normal

import refsd
from refsd import registry
from refsd.numba_ops.cuda.array import CHANNELS_LAST, copies, empty, to_device
from refsd.numba_ops.cuda.device import current
from refsd.numba_ops.cuda.fill import fill
from refsd.numba_ops.cuda.replay import Replayed
from refsd.numba_ops.cuda.simulated import Launches


@pytest.fixture
def runs(monkeypatch):
    """What happens: "call" of the function, "capture", "replay"."""
    seen, replayed, capture = [], Launches.replay, Replayed._capture

    def counted(self):
        seen.append("replay")
        replayed(self)

    def captured(self, inputs):
        seen.append("capture")
        capture(self, inputs)

    monkeypatch.setattr(Launches, "replay", counted)
    monkeypatch.setattr(Replayed, "_capture", captured)
    return seen


def noted(runs, function):
    def call(*inputs):
        runs.append("call")
        return function(*inputs)
    return call


def test_the_second_call_is_captured_and_inputs_are_copied_in(runs):
    with registry.use("cuda"):
        twice = Replayed(noted(runs, lambda x, times, none: refsd.F.silu(refsd.F.silu(x))), {})
        results = []
        for i in range(4):
            x, times = normal((2, 3, 4, 2), i), np.full(2, i)
            expected = refsd.F.silu(refsd.F.silu(to_device(x))).numpy()
            results.append((twice(to_device(x, [None, CHANNELS_LAST][i % 2]), times, None),
                            expected))
    assert runs == ["call", "capture", "call", "replay", "replay", "replay"]
    for found, expected in results:  # also those of earlier calls
        np.testing.assert_array_equal(found.numpy(), expected)


def test_times_get_to_the_device_as_arguments(runs):
    twice = Replayed(lambda times: times if isinstance(times, np.ndarray) else times.astype("f8"),
                     {})
    before = dict(copies)
    for times in ([3, 3], [5, 5], [7, 7], [8, 9]):
        assert copies["to_device"] == before["to_device"]
        found = twice(np.array(times))
    assert copies["to_device"] == before["to_device"] + 1  # two numbers that differ
    np.testing.assert_array_equal(found.numpy(), [8, 9])


def test_other_shapes_leaves_and_listeners_begin_anew(runs):
    tree = {"a": [{"weight": to_device(normal((2,), 1))}]}
    twice = Replayed(noted(runs, lambda x: refsd.F.silu(x)), tree)
    small, large = to_device(normal((2, 3), 1)), to_device(normal((3, 3), 1))
    with registry.use("cuda"):
        for x in (small, small, large, large, small):
            twice(x)
        assert runs == ["call", "capture", "call", "replay"] * 2 + ["call"]
        twice(small)
        tree["a"][0]["weight"] = to_device(normal((2,), 1))
        runs.clear()
        twice(small)
        assert runs == ["call"]
        heard = []
        twice(small)
        with registry.watch(lambda op, *event: heard.append(op)):
            twice(small)
        assert heard == ["silu"] and runs == ["call", "capture", "call", "replay", "call"]


def test_copies_and_graphs_within_a_graph_are_refused():
    x = to_device(normal((2, 3), 1))
    for wrong, what in ((lambda: to_device(np.ones(2)), "a copy from the host"),
                        (x.numpy, "a copy to the host"),
                        (lambda: current().capture(x.numpy), "a graph")):
        with pytest.raises(RuntimeError, match=f"^{what} within a graph"):
            current().capture(wrong)
    x.numpy()


def test_memory_of_a_graph_is_poisoned_before_a_replay():
    x = to_device(normal((2, 3), 1))
    with registry.use("cuda"):
        graph = current().capture(lambda: refsd.F.silu(x))
    graph.replay()
    y = graph.result
    assert np.isfinite(y.numpy()).all()
    graph.launches.clear()
    graph.replay()
    assert np.isnan(y.numpy()).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")


def test_a_drawing_captures_once_and_again_for_other_texts_and_batches(folder, runs, monkeypatch):
    standing_in.stand_in(monkeypatch)

    def change(pipe, step, timestep, tensors):
        if step == 2:
            return {"prompt_embeds": tensors["prompt_embeds"] * 0.5}
        if step == 5:
            pipe._guidance_scale = 1.0
        return {}

    pictures = {}
    for backend in ("numpy", "cuda"):
        pipe = refsd.StableDiffusionPipeline.from_pretrained(folder, backend=backend)
        pictures[backend] = pipe(
            "a red cat", 16, 16, num_inference_steps=9, generator=7, output_type="np",
            callback_on_step_end=change,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]).images
    np.testing.assert_array_equal(pictures["cuda"], pictures["numpy"])
    assert runs == ["capture", "replay", "replay"] * 3


def test_filling_ends_where_the_array_does():
    room = empty((70,), "float32")
    fill(room.part(0, 2, 69), np.full(67, 3))
    found = room.numpy()
    assert (found[2:69] == 3).all() and np.isnan(found[[0, 1, 69]]).all()
