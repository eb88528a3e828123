"""Products, attention and norms at the sizes of a UNet step, in halves, beside torch's; and right.

Each is launched from Python many times in a row, as torch's is: where the kernel takes less than
its launch, the launch is what is timed, and the row of "launch" says how much that is.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.calls import Call, distinct_calls, make_arrays
from benchmarks.gpu.work import middle
from refsd import functional as F
from refsd.numba_ops.cuda.array import CHANNELS_LAST, to_device
from refsd.registry import use

DTYPE = "float16"
EACH = {"conv2d": 10, "linear": 8, "attention": 8, "group_norm": 4, "layer_norm": 3, "silu": 2,
        "geglu": 3}  # of an op, those with most FLOPs in a step
ALLOWED = 2.0**-9  # relative to the result: torch and refsd each round a product of halves
CONV = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "algorithm": "im2col"}
TINY = {  # of widths that plain kernels take
    "conv2d": ({"x": (2, 6, 4, 3), "weight": (5, 6, 3, 3), "bias": (5,)}, CONV),
    "linear": ({"x": (2, 5, 7), "weight": (6, 7), "bias": (6,)}, {}),
    "attention": ({"q": (2, 5, 6), "k": (2, 6, 6), "v": (2, 6, 6)},
                  {"heads": 2, "mask": None, "causal": False}),
    "group_norm": ({"x": (2, 6, 3, 3), "weight": (6,), "bias": (6,)}, {"groups": 2, "eps": 1e-5}),
    "layer_norm": ({"x": (2, 5, 7), "weight": (7,), "bias": (7,)}, {"eps": 1e-5}),
    "silu": ({"x": (2, 3, 5)}, {}),
    "geglu": ({"x": (2, 5, 14)}, {}),
}
Rows = Iterator[tuple[str, dict[str, Any]]]


def calls(tiny: bool, most: int = 10) -> list[Call]:
    """The largest of each op, by what they are of a step; convolutions by their formula."""
    if tiny:
        return [Call(name, inputs, options, (), 0, 0, {"unet": 1})
                for name, (inputs, options) in TINY.items()]
    found = sorted(distinct_calls(("unet",)), key=lambda call: -call.flops * call.count["unet"])
    largest = [call for name, count in EACH.items()
               for call in [c for c in found if c.op == name][:min(count, most)]]
    return [call._replace(options=call.options | {"algorithm": "im2col"}) if call.op == "conv2d"
            else call for call in largest]


def placed(arrays: dict[str, np.ndarray | None]) -> dict[str, Any]:
    """On the device, images and kernels of convolutions with their channels last."""
    return {name: to_device(a, CHANNELS_LAST if a is not None and a.ndim == 4 else None)
            for name, a in arrays.items()}


def section(work: Any) -> Rows:
    """A row a call, with torch's time if torch is there."""
    try:
        import torch
    except ImportError:
        torch = None
        yield "torch", {"skipped": "torch is not installed"}
    for call in calls(work.rehearse):
        yield call.name, work.guarded(lambda call=call: _row(work, call, torch))


def _row(work, call, torch):
    arrays = {name: None if a is None else a.astype(DTYPE)
              for name, a in make_arrays(call.inputs).items()}
    given, function = placed(arrays), getattr(F, call.op)
    with use("cuda"):
        result = function(**given, **call.options).numpy().astype("float64")
        samples = {"refsd": work.seconds(lambda: function(**given, **call.options),
                                         rounds=3, budget=0.3)}
    row: dict[str, Any] = {"count": call.count["unet"], "flops": call.flops,
                           "bytes": call.bytes // 2}
    if torch is not None:
        samples["torch"], theirs = _torch(work, call, arrays, torch)
        error = float(np.sqrt(np.mean((result - theirs)**2) / np.mean(theirs**2)))
        row |= {"error": error, "ratio": middle(samples["refsd"]) / middle(samples["torch"])}
        if not error <= ALLOWED:
            row["red"] = f"differs from torch by {error:.3g} of the result"
    return row | {"seconds": samples}


def _torch(work, call, arrays, torch):
    from benchmarks.torch_ops import Op

    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else lambda: None

    def there(x):
        x = x.to("cuda" if on_gpu else "cpu")
        return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    module = Op(call.op, arrays, call.options)
    for name, buffer in module.named_buffers():
        setattr(module, name, there(buffer))
    inputs = tuple(map(there, module.activations))
    with torch.inference_mode():
        result = module(*inputs).double().cpu().numpy()
        return work.seconds(lambda: module(*inputs), wait, rounds=3, budget=0.3), result


