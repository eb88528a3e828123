"""A model without values: every op answers with the shape and dtype that its contract infers.

A model of any size runs on `Spec`s in milliseconds and without weights. What it would run is the
list that benchmarks time, that the porting kit orders, and that tests compare with real runs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from refsd.contracts import Output, Spec
from refsd.families import DEFAULT
from refsd.leaf import layer_of
from refsd.models import clip, unet, vae
from refsd.models.config import CONFIGS
from refsd.networks import shapes_of, validate
from refsd.pipelines.loading import bundled_model, load_scheduler
from refsd.registry import trace
from refsd.schedulers import Scheduler, from_config
from refsd.weights import resolve, to_tree
from refsd.weights.plan import plan_whole

BUNDLED = "bundled"  # what the model in refsd is called where none is named by a file


class Planned(NamedTuple):
    """One op that would run; `path` is the checkpoint's of its weights ("conv_in"), or None."""

    op: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    output: Output
    path: str | None


class WeightSpec(Spec):
    """The Spec of a weight that knows its path in its network, as a leaf (refsd.leaf) does."""

    name: str


@contextmanager
def planning() -> Iterator[list[Planned]]:
    """Inside the block ops are planned instead of computed; yields the list they are added to."""
    plan: list[Planned] = []

    def answer(op, inputs, options, inferred):
        plan.append(Planned(op, inputs, options, inferred, layer_of(inputs)))
        return Spec(inferred.shape, inferred.dtype)

    with trace(answer):
        yield plan


def planned_tree(component: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tree of a "text_encoder", "unet" or "vae" with a WeightSpec for every tensor.

    config is a config.json's content; None is that of Stable Diffusion 1.5.
    """
    shapes = shapes_of(component, DEFAULT.configs[component] if config is None else config)
    leaves = {}
    for name, shape in shapes.items():
        name = name.removeprefix("text_model.")
        leaves[name] = WeightSpec(shape, "float32")
        leaves[name].name = name
    return to_tree(leaves)


def planned_config(component: str, config: Mapping[str, Any] | None = None) -> Any:
    """What the shapes cannot tell, from the same config.json, as the models take it."""
    config = DEFAULT.configs[component] if config is None else config
    return CONFIGS[component].from_json(validate(component, config))


def read_configs(model: str | None) -> tuple[dict[str, dict[str, Any]], Scheduler]:
    """The three config.json and the scheduler of a path or hub id; no tensor is read.

    None is Stable Diffusion 1.5 as it was published, for which no file is needed; "bundled" the
    model in refsd, unless there is a path of that name. Raises as refsd.weights.load_checkpoint.
    """
    if model is None:
        return dict(DEFAULT.configs), from_config(DEFAULT.scheduler)
    named = model == BUNDLED and not Path(model).exists()
    path = bundled_model() if named else resolve(model)
    configs = {part: plan.config for part, plan in plan_whole(path).items()}
    return configs, load_scheduler(path)


class Sizes(NamedTuple):
    """The shapes a model is planned for."""

    ids: tuple[int, ...]
    text: tuple[int, ...]
    sample: tuple[int, ...]
    latents: tuple[int, ...]
    image: tuple[int, ...]


def sizes(configs: Mapping[str, Mapping[str, Any]] = DEFAULT.configs) -> Sizes:
    """One image at the size the model was trained at, guided: batch 2 but for latents, image"""
    text = validate("text_encoder", configs["text_encoder"])
    net, decoder = (planned_config(part, configs[part]) for part in ("unet", "vae"))
    length, side = text["max_position_embeddings"], net.sample_size
    latents = (decoder.latent_channels, side, side)
    return Sizes((2, length), (2, length, text["hidden_size"]), (2, *latents), (1, *latents),
                 (1, 3, side * decoder.downscale, side * decoder.downscale))


def plan_model(configs: Mapping[str, Mapping[str, Any]] = DEFAULT.configs, *,
               shapes: Sizes | None = None) -> dict[str, list[Planned]]:
    """All ops of each network, in the order in which a picture needs them.

    clip: two prompts; unet: one guided step; decode: one picture; encode: one picture.
    """
    shapes = sizes(configs) if shapes is None else shapes
    trees = {part: planned_tree(part, configs[part]) for part in CONFIGS}
    settings = {part: planned_config(part, configs[part]) for part in CONFIGS}
    text, sample, latents, image = (
        Spec(s, "float32") for s in (shapes.text, shapes.sample, shapes.latents, shapes.image))
    weights = trees["vae"]
    with planning() as encode_text:
        clip.clip_text(Spec(shapes.ids, "int64"), **trees["text_encoder"],
                       config=settings["text_encoder"])
    with planning() as denoise:
        unet.unet(sample, Spec(shapes.sample[:1], "int64"), text, **trees["unet"],
                  config=settings["unet"])
    with planning() as decode:
        vae.decode(latents, decoder=weights["decoder"], config=settings["vae"],
                   post_quant_conv=weights.get("post_quant_conv"))
    with planning() as encode:
        vae.encode(image, encoder=weights["encoder"], quant_conv=weights.get("quant_conv"),
                   config=settings["vae"])
    return {"clip": encode_text, "unet": denoise, "decode": decode, "encode": encode}

