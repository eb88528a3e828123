"""`refsd lora inspect FILE`: what an adapter is, for which models, and what would be ignored."""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from refsd.cli.arguments import Parser
from refsd.cli.report import answer
from refsd.errors import ModelError

ABOUT = """\
Show what a LoRA, LoHa, LoKr or DoRA is: its kinds, ranks and alphas, the model
families that it fits, the layers that it changes, what would be ignored, and what
its trainer wrote into it.

    refsd lora inspect style.safetensors
    refsd lora inspect style.safetensors -m MODEL"""
MOST = 12  # lines of a list
# What kohya's trainers write that says something without the tool, in this order.
SHOWN = ("ss_output_name", "ss_base_model_version", "ss_sd_model_name", "ss_network_module",
         "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_clip_skip", "ss_resolution",
         "ss_num_train_images", "ss_steps", "ss_learning_rate", "ss_v2", "ss_v_parameterization",
         "modelspec.title", "modelspec.author", "modelspec.license", "modelspec.trigger_phrase")


def parser() -> Parser:
    """The options of lora inspect."""
    parser = Parser("refsd lora inspect FILE [options]", ABOUT)
    add = parser.add_argument
    add("file", metavar="FILE", help="a .safetensors file")
    add("-m", "--model", metavar="MODEL",
        help="hold it against this model: a folder, a .safetensors file, a hub id")
    return parser.answering("everything, all metadata too, as JSON")


def run(options: argparse.Namespace) -> int:
    """Show it."""
    from refsd.adapters import file

    source = file.open_source(file.find_file(options.file))
    fits: dict[str, Any] = {}
    for name, shapes in _models(options.model):
        try:
            fits[name] = _plan(source, shapes)
        except ModelError as problem:
            fits[name] = str(problem).removeprefix(f"{source.name}: ")
    plans = {name: plan for name, plan in fits.items() if not isinstance(plan, str) and plan.parts}
    best = min(plans, key=lambda name: len(plans[name].unknown), default=None)
    found = {"file": options.file, "model": best,
             "why_not": {name: why for name, why in fits.items() if isinstance(why, str)},
             **_contents(source, plans.get(best)), "metadata": dict(source.metadata)}
    return answer(options.json, found, *_in_words(found))


def _models(model: str | None) -> Iterator[tuple[str, dict[str, dict[str, tuple[int, ...]]]]]:
    """The names and shapes of the networks of a model, or of each family as it was published."""
    from refsd.adapters.loaded import adapted
    from refsd.families import FAMILIES
    from refsd.networks import shapes_of
    from refsd.weights import resolve
    from refsd.weights.plan import plan_whole

    if model is None:
        for family in FAMILIES:
            yield family.name, {part: shapes_of(part, family.configs[part])
                                for part in adapted(family.networks)}
        return
    place = resolve(model)
    plans = plan_whole(place)
    yield str(model), {part: plans[part].shapes for part in adapted(plans)}


def _plan(source: Any, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Any:
    from refsd.adapters import formats, loaded, names
    from refsd.weights import to_tree

    trees = {part: to_tree(found) for part, found in shapes.items()}
    return formats.plan(source.shapes, names.targets(trees), loaded.shapes(trees),
                        metadata=source.metadata, where=source.name)


def _contents(source: Any, plan: Any) -> dict[str, Any]:
    """Kinds, ranks, alphas and layers: as planned for a model, else as the names alone say."""
    from refsd.adapters import formats, names

    keys = [key for key in source.shapes if formats.split(key) is not None]
    foreign = {what for key in source.shapes if (what := names.foreign(key)) is not None}
    if plan is None:
        modules: dict[str, set[str]] = {}
        for key in keys:
            module, name = formats.split(key)
            modules.setdefault(module, set()).add(name)
        return {"kinds": dict(Counter(_by_name(own) for own in modules.values())), "ranks": {},
                "alphas": {}, "scales": {}, "layers": {}, "ignored": [*source.shapes],
                "looks_like": sorted(foreign)}
    alphas = source.read([part.tensors["alpha"] for part in plan.parts if "alpha" in part.tensors])
    scalars = {**alphas, **source.read([part.tensors["scale"] for part in plan.parts
                                        if "scale" in part.tensors])}
    layers = Counter(f"{part.target.network} {_layer(part.target.module)}" for part in plan.parts)
    return {
        "kinds": dict(Counter(part.name for part in plan.parts)),
        "ranks": _counted(part.rank for part in plan.parts if part.rank),
        "alphas": _counted(f"{alpha.item():g}" for alpha in alphas.values()),
        "scales": _counted(f"{formats.scale_of(part, scalars, plan.configs.get(part.target[0])):g}"
                           for part in plan.parts if part.rank),
        "layers": dict(sorted(layers.items())), "ignored": plan.unknown,
        "looks_like": sorted(foreign),
    }


def _by_name(own: set[str]) -> str:
    from refsd.adapters.formats import EXTRAS
    from refsd.adapters.kinds import IA3, OTHERS, kind_of

    kind = kind_of(own - set(EXTRAS))
    if kind is not None:
        return kind.name
    return "(IA)3" if set(IA3) <= own else next(
        (OTHERS[name] for name in own if name in OTHERS), "incomplete")


def _layer(module: str) -> str:
    """A module's name without the numbers of its blocks."""
    return ".".join(word for word in module.split(".") if not word.isdigit())


def _counted(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def _in_words(found: Mapping[str, Any]) -> Iterator[str]:
    kinds = ", ".join(f"{kind} of {count} layers" for kind, count in found["kinds"].items())
    yield f"{found['file']}: {kinds or 'no adapter'}"
    if found["model"] is not None:
        yield f"fits: {found['model']}"
    else:
        yield "fits: nothing that refsd has" + (
            f"; such names are of {', '.join(found['looks_like'])}" if found["looks_like"] else "")
        for name, why in found["why_not"].items():
            yield f"  {name}: {why}"
    for name in ("ranks", "alphas", "scales"):
        if found[name]:
            yield f"{name}: " + ", ".join(f"{value} ({count} layers)"
                                          for value, count in found[name].items())
    yield from _listed("layers", [f"{layer} ({count})" for layer, count in found["layers"].items()])
    if found["model"] is not None:
        yield from _listed("ignored", found["ignored"])
    told = [f"{key}: {found['metadata'][key]}" for key in SHOWN if found["metadata"].get(key)]
    more = len(found["metadata"]) - len(told)
    yield from _listed("metadata", told)
    if more:
        yield f"  {more} more entries of metadata: --json has them"


def _listed(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line[:200]}" for line in lines[:MOST])
        if len(lines) > MOST:
            yield f"  and {len(lines) - MOST} more"
