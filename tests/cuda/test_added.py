"""A step of a UNet that reads a vector and sizes beside the text: on the device, and replayed."""

import numpy as np
import pytest
import standing_in
from model_samples import UNETS, added_inputs, tree, values

from refsd.leaf import Weight
from refsd.models.layers import Text
from refsd.numba_ops.cuda.array import copies, to_device
from refsd.numba_ops.cuda.replay import Replayed
from refsd.numba_ops.cuda.weights import place_all
from refsd.pipelines.components import UNet
from refsd.weights import flatten, to_tree

CONFIG = UNETS["added embedding, depths a level"]


def placed(found):
    """The tree with its weights on the device."""
    leaves = {name: Weight(array, name) for name, array in flatten(found).items()}
    place_all(leaves)
    return to_tree(leaves)


@pytest.fixture
def networks(monkeypatch):
    """One on NumPy, and one on a device whose kernels are the definitions."""
    standing_in.stand_in(monkeypatch)
    found, config = tree("unet", CONFIG)
    return UNet(found, config, "numpy"), UNet(placed(found), config, "cuda")


def test_a_replayed_step_reads_the_vector_and_sizes_of_its_call(networks, monkeypatch):
    captured, capture = [], Replayed._capture
    monkeypatch.setattr(Replayed, "_capture", lambda self, inputs: (
        captured.append(len(inputs)), capture(self, inputs)))
    plain, device = networks
    states, added = values(2, 2, 5, 10), added_inputs(CONFIG, 2)
    text = Text(to_device(states))
    swapped = {key: array[::-1].copy() for key, array in added.items()}
    moved, placed_inputs = [], {id(given): {key: to_device(array) for key, array in given.items()}
                                for given in (added, swapped)}
    for call, given in enumerate((added, added, added, swapped)):
        x = values(call, 2, 4, 4, 4)
        x_there, before = to_device(x), dict(copies)
        found = device(x_there, 900 - call, text, **placed_inputs[id(given)])
        moved.append(copies["to_device"] - before["to_device"])
        np.testing.assert_array_equal(found.numpy(), plain(x, 900 - call, states, **given))
    assert captured == [5] and moved == [0] * 4  # x, steps, no condition, vector, sizes


def test_what_is_given_on_the_host_is_uploaded(networks):
    plain, device = networks
    inputs, added = (values(1, 2, 4, 4, 4), 7, values(2, 2, 5, 10)), added_inputs(CONFIG, 2)
    expected = plain(*inputs, **added)
    lists = {key: array.tolist() for key, array in added.items()}
    for given in (added, lists):
        np.testing.assert_array_equal(device(*inputs, added_cond_kwargs=given).numpy(), expected)
