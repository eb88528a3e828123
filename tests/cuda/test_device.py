"""Which device is the current one."""

import pytest

from refsd.numba_ops.cuda import device
from refsd.numba_ops.cuda.simulated import Simulated


def test_another_device_within_a_block():
    before, other = device.current(), Simulated(capability=90)
    with pytest.raises(RuntimeError, match="inside"), device.on(other) as given:
        assert given is device.current() is other
        raise RuntimeError("inside")
    assert device.current() is not other and device.current().capability == before.capability


def test_what_a_recipe_keeps_of_it():
    """In lockstep no driver has a part in it."""
    found = device.versions()
    assert (found["device"], found["capability"]) == ("Python in lockstep", "7.5")
    assert {"numba-cuda", "cuda-core"} <= set(found) and "driver" not in found
