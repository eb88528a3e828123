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
