"""Where a sampler stands within a run, as JSON and NumPy arrays, so that another can go on there.

It is all attributes but the options: the schedule, the position in it, what earlier steps left.
They are None, numbers, texts, arrays, or lists, tuples and dicts of these, and all of them are
there after set_timesteps; `tests/test_scheduler_state.py` holds every sampler to it.
"""

import math
from typing import Any

import numpy as np

from refsd.arguments import shown
from refsd.errors import UsageError
from refsd.places import is_on_device, on_host
from refsd.schedulers.scheduler import Scheduler

OPTIONS = ("config", "_half")  # the second is of one call
PLAIN = (type(None), bool, int, float, str)


def get_state(scheduler: Scheduler) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A sampler's attributes as JSON, and the arrays that it names."""
    arrays: dict[str, np.ndarray] = {}
    values = {name: _plain(name, value, arrays) for name, value in vars(scheduler).items()
              if name not in OPTIONS}
    return values, arrays


def set_state(scheduler: Scheduler, values: dict[str, Any], arrays: dict[str, Any],
              put: Any = None) -> None:
    """Make a sampler of the same class and options stand where `get_state` was asked.

    `put` places an array that lay on a device. Raises UsageError where the state is another's.
    """
    own = vars(scheduler).keys() - set(OPTIONS)
    if own != values.keys():
        raise UsageError(f"the state is not one of {type(scheduler).__name__}: it has "
                         f"{shown(sorted(values))}, wanted {', '.join(sorted(own))}; give one "
                         "that this sampler saved")
    for name, value in values.items():
        setattr(scheduler, name, _value(value, arrays, put))


def _plain(name, value, arrays):
    if type(value) is float and not math.isfinite(value):
        value = np.float64(value)  # JSON has no infinities
    if type(value) in PLAIN:
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(f"{name}.{i}", item, arrays) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {"dict": [[key, _plain(f"{name}.{key}", item, arrays)]
                         for key, item in value.items()]}
    if not hasattr(value, "dtype"):
        raise TypeError(f"{name} is a {type(value).__name__}; a sampler's attributes are None, "
                        "numbers, texts, arrays, or lists, tuples and dicts of these")
    arrays[name] = np.asarray(on_host(value))
    return {"device" if is_on_device(value) else "array": name}


def _value(plain, arrays, put):
    if isinstance(plain, list):
        return [_value(item, arrays, put) for item in plain]
    if not isinstance(plain, dict):
        return plain
    (kind, inner), = plain.items()
    if kind == "tuple":
        return tuple(_value(item, arrays, put) for item in inner)
    if kind == "dict":
        return {key: _value(item, arrays, put) for key, item in inner}
    return put(arrays[inner]) if kind == "device" else arrays[inner][()]
