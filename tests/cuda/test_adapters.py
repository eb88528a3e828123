"""An adapter merged into weights that lie on the device, and taken out again."""

import numpy as np

from refsd.adapters.applied import Applied
from refsd.adapters.kinds import Change, kind_of
from refsd.backends import find_backend
from refsd.leaf import Weight
from refsd.numba_ops.cuda.layout import order_of
from refsd.numba_ops.cuda.weights import DeviceWeight
from refsd.weights import to_tree


def test_merged_on_the_host_and_placed_anew():
    random = np.random.default_rng(0)
    shapes = {"conv.weight": (3, 4, 3, 3), "linear.weight": (5, 6)}
    arrays = {name: random.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    placed = {name: Weight(array, name) for name, array in arrays.items()}
    find_backend("cuda").place(placed)
    tree = to_tree(placed)
    changes = {name: Change(kind_of(["diff"]), {"diff": random.standard_normal(shape)})
               for name, shape in shapes.items()}

    applied = Applied(tree, "cuda")
    applied.show({"a": 0.5}, {"a": changes})
    for name, old in placed.items():
        module, kind = name.split(".")
        new = tree[module][kind]
        assert isinstance(new, DeviceWeight) and new is not old and new.name == name
        assert order_of(new.dense()) == order_of(old.dense())
        assert np.array_equal(new.numpy(), (arrays[name] + 0.5 * changes[name].tensors["diff"])
                              .astype("f4"))
    applied.show({}, {})
    assert all(tree[name.split(".")[0]]["weight"] is old for name, old in placed.items())
