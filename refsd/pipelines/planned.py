"""A model's networks without weights: what each would compute for a drawing, op by op.

Each is the object that a pipeline has (refsd.networks' `computes`), of Specs in the place of
arrays, and says itself what a drawing calls: its `calls`. Nothing here knows a network by its name.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from refsd.backends import find_backend
from refsd.contracts import Spec, itemsize
from refsd.errors import UsageError
from refsd.families import DEFAULT
from refsd.graph.arena import directed_memory
from refsd.half import HALVES
from refsd.leaf import is_multiplied
from refsd.networks import shapes_of, validate
from refsd.pipelines.loading import computes
from refsd.planning import Asked, Plan, WeightSpec, planning
from refsd.weights.checkpoint import Component, held_as
from refsd.weights.forms import item_bytes, meant

Configs = Mapping[str, Mapping[str, Any]]
STORED = "F16"  # how published files hold their weights, where no file says it


def planned_network(part: str, config: Mapping[str, Any] | None = None, *,
                    backend: str = "numpy", dtype: str = "float32", weights: str | None = None,
                    stored: Callable[[str], str] = lambda name: STORED) -> Any:
    """The object that computes a part, of Specs that have the bytes of loaded weights.

    config is a config.json's content; None is that of Stable Diffusion 1.5. dtype and weights as
    in load_checkpoint; stored(name) is a tensor's type in the file.
    """
    config = DEFAULT.configs[part] if config is None else config
    form, dtype = held_as(part, config, *meant(weights, dtype))
    leaves = {}
    for name, shape in shapes_of(part, config).items():
        leaf = leaves[name] = WeightSpec(shape, dtype)
        leaf.name = name
        leaf.nbytes = _held(name, shape, dtype, form, stored(name), backend)
    found = Component(validate(part, config), leaves, f"the {part}")
    return computes(part, config).of(found, find_backend(backend).name, False)


def planned_networks(configs: Configs, stored: Mapping[str, Callable[[str], str]] | None = None,
                     **options: Any) -> dict[str, Any]:
    """Those of all parts; the options are planned_network's."""
    of = stored or {}
    return {part: planned_network(part, config, **options, **(
        {"stored": of[part]} if part in of else {})) for part, config in configs.items()}


def _held(name: str, shape: tuple[int, ...], dtype: str, form: str | None, stored: str,
          backend: str) -> int:
    """The bytes of a loaded weight, as refsd.weights.forms holds it and the backend places it."""
    count, wide = math.prod(shape), itemsize(dtype)
    if len(shape) < 2:
        return count * wide
    size = item_bytes(form, stored, dtype)
    if size < wide or form in ("int8", "w8a8"):
        return count * size + (4 * shape[0] if size == 1 else 0)  # with a scale for each output
    if not is_multiplied(name, shape):
        return count * size
    step = find_backend(backend).conv2d_rows("im2col", shape[0], 1,
                                             "float16" if dtype in HALVES else dtype) or shape[0]
    return ((count // shape[0] - 1) * step + shape[0]) * size  # from the first number to the last


def sized(networks: Mapping[str, Any], *, pictures: int = 1, copies: int = 2,
          width: int | None = None, height: int | None = None) -> Asked | None:
    """A drawing of pictures of this size, in pixels; by default of the denoiser's own.

    None for networks that draw none, which write texts; of these UsageError for a size.
    """
    if "vae" not in networks:
        if (width, height) != (None, None):
            raise UsageError("width and height are of pictures, and this model writes texts, which "
                             "have no width and height; leave them out")
        return None
    factor = networks["vae"].config.downscale
    side = denoiser_of(networks)[1].config.sample_size
    return Asked(pictures, copies, side if height is None else math.ceil(height / factor),
                 side if width is None else math.ceil(width / factor), factor)


def denoiser_of(networks: Mapping[str, Any]) -> tuple[str, Any]:
    """The network that predicts, and the part that it is."""
    return next((part, network) for part, network in networks.items()
                if part != "vae" and not part.startswith("text_encoder"))


def plan_networks(networks: Mapping[str, Any], asked: Asked | None) -> dict[str, Plan]:
    """The ops of each call, in the order in which a picture needs them.

    A text encoder's: the texts of one picture; the denoiser's, under its part's name: one step;
    decode and encode: one picture.
    """
    return {name: planned for name, (_, planned, _) in calls(networks, asked).items()}


def calls(networks: Mapping[str, Any], asked: Asked | None) -> dict[str, tuple[partial, Plan, Any]]:
    """Each call, whose `args` are the Specs of what it reads; its ops; and what it gives."""
    found, texts = {}, {}
    for part in sorted(networks, key=lambda part: not part.startswith("text_encoder")):
        network = networks[part]
        for name, call in network.calls(part, asked, texts).items():
            with planning(find_backend(network.backend).memory,
                          directed_memory(network.backend)) as plan:
                result = call()
            found[name] = call, plan, result
            if part.startswith("text_encoder"):
                texts[part] = (result,) if isinstance(result, Spec) else result
    return found


def plan_model(configs: Configs = DEFAULT.configs, asked: Asked | None = None) -> dict[str, Plan]:
    """`plan_networks` of configs, in float32: by default one picture at its own size, guided."""
    networks = planned_networks(configs)
    return plan_networks(networks, sized(networks) if asked is None else asked)
