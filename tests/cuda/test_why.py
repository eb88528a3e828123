"""What `refsd ops why --backend cuda` says is what is launched."""

import pytest

from refsd import functional as F
from refsd import registry
from refsd.errors import UsageError
from refsd.half import HALVES
from refsd.numba_ops.cuda import device, why
from refsd.numba_ops.cuda.array import CHANNELS_LAST, empty

CALLS = [("linear", [(2, 64, 40), (48, 40)], {}), ("linear", [(2, 64, 40), (47, 40)], {}),
         ("matmul", [(64, 40), (40, 48)], {}), ("matmul", [(3, 5), (5, 7)], {}),
         ("conv2d", [(2, 16, 8, 8), (32, 16, 3, 3)], {"padding": 1}),
         ("conv2d", [(2, 16, 8, 8), (32, 16, 1, 1)], {}),
         ("conv2d", [(2, 16, 8, 8), (32, 16, 1, 1)], {"padding": 1}),
         ("conv2d", [(2, 16, 8, 8), (32, 4, 3, 3)], {"groups": 4}),
         ("attention", [(2, 64, 80), (2, 77, 80), (2, 77, 80)], {"heads": 2}),
         ("attention", [(2, 64, 14), (2, 7, 14), (2, 7, 14)], {"heads": 2}),
         ("group_norm", [(2, 64, 64, 64)], {"groups": 32, "eps": 1e-5}),
         ("group_norm", [(2, 6, 4, 4)], {"groups": 3, "eps": 1e-5}),
         ("layer_norm", [(2, 5, 320)], {"eps": 1e-5}), ("layer_norm", [(2, 5, 7)], {"eps": 1e-5}),
         ("rms_norm", [(2, 5, 320)], {"eps": 1e-5}), ("softmax", [(2, 5, 2048)], {"axis": -1}),
         ("softmax", [(2, 5, 7)], {"axis": -1})]


@pytest.mark.parametrize("capability", [75, 80, 90])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_what_is_said_is_launched(dtype, capability, monkeypatch):
    launched = []
    here = device.current()
    monkeypatch.setattr(here, "capability", capability)
    monkeypatch.setattr(here, "launch", lambda factory, constants, *_: launched.append(
        (factory.name, constants)))
    for op, shapes, options in CALLS:
        choice = why.explain(op, shapes, dtype=dtype, capability=capability, **options)
        arrays = [empty(shape, HALVES.get(dtype, dtype), CHANNELS_LAST if len(shape) == 4 else None)
                  for shape in (*shapes, *why._weights(op, shapes))]
        launched.clear()
        with registry.use("cuda"):
            y = getattr(F, op)(*arrays, **options)
        assert (choice.kernel, choice.constants) in launched, (op, shapes, choice, launched)
        assert choice.output.shape == y.shape and choice.why


def test_what_has_no_answer():
    for (op, shapes), words in [(("silu", [(2, 3)]), "silu has one kernel for all calls"),
                                (("attention", [(2, 3, 8)]), "is of the arrays q, k, v, 1 shapes"),
                                (("linear", [(2, 4), (3, 4), (3,), (3,)]), "4 shapes were given")]:
        with pytest.raises(UsageError, match=words):
            why.explain(op, shapes, dtype="float32", capability=80)
    with pytest.raises(UsageError, match="capability is 61; give 75"):
        why.explain("softmax", [(2, 3)], dtype="float32", capability=61, axis=-1)
