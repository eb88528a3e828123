"""The contracts of the five stages, and the table of a model's weights: shapes from planning.

The letters are those of the stages' docstrings; the numbers come from running the stage on shapes
alone, the ranges from the configs.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from refsd.contracts import Spec
from refsd.golden.porting.contracts import SCHEMA, describe_ops, plain
from refsd.networks import shapes_of, validate
from refsd.pipelines import stages
from refsd.pipelines.outline import outline
from refsd.pipelines.planned import calls, denoiser_of, plan_model, planned_networks, sized
from refsd.planning import WeightSpec
from refsd.schedulers import Scheduler
from refsd.version import __version__

ModelConfigs = Mapping[str, Mapping[str, Any]]


def describe_all(model: str | None = None) -> dict[str, Any]:
    """Every contract as JSON values: ops, stages, the model's configs, weights and calls of ops.

    model is a path, a hub id or a short name; None is Stable Diffusion 1.5, which needs no file.
    """
    found = outline(model)
    return {"schema": SCHEMA, "refsd": __version__, "ops": describe_ops(),
            "stages": describe_stages(found.configs, found.scheduler),
            "model": describe_model(found.configs, found.scheduler),
            "calls": describe_calls(found.configs)}


def describe_stages(configs: ModelConfigs, scheduler: Scheduler | None) -> dict[str, Any]:
    """What each stage takes and gives for one prompt and one picture of a model.

    configs holds a config.json for each network. Of a second text encoder it is encode_text_2. A
    model that writes texts has no scheduler, and the calls of its network in their place.
    """
    networks = planned_networks(configs)
    found = calls(networks, sized(networks, copies=1))
    if scheduler is None:
        return {name: _of_text(*call) for name, call in found.items()}
    steps = scheduler.config.num_train_timesteps
    texts = {}
    for part, network in networks.items():
        if part.startswith("text_encoder"):
            (call, _, text), number = found[part], part.removeprefix("text_encoder")
            ids = _tensor(call.args[0].shape, "int64", [0, network.rows - 1])
            texts |= {
                f"tokenize{number}": _stage(stages.tokenize, {"prompts": "a list of texts"}, ids),
                f"encode_text{number}": _stage(stages.encode_text, {"ids": ids}, _result(text))}

    part, _ = denoiser_of(networks)
    predict, _, predicted = found[part]
    decode, _, decoded = found["decode"]
    text, *further = _read_beside(predict)
    latents = _tensor(decode.args[0].shape, "float32")
    _, channels, height, width = decoded.shape
    pictures = _tensor((1, height, width, channels), "float32", [0, 1])
    return {
        **texts,
        "make_schedule": _stage(
            stages.make_schedule, {"steps": f"an integer from 1 to {steps}"},
            _tensor(["T"], str(scheduler.timesteps.dtype), [0, steps - 1])),
        "denoise": _stage(
            stages.denoise, {"latents": latents, "prompt_embeds": text[1],
                             "negative_prompt_embeds": text[1], **dict(further)},
            _result(predicted)),
        "decode": _stage(stages.decode, {"latents": latents}, pictures),
        "to_bytes": _stage(stages.to_bytes, {"pictures": pictures}, _tensor(
            pictures["shape"], "uint8", [0, 255])),
    }


def _of_text(call: Any, plan: Any, result: Any) -> dict[str, Any]:
    """A call of a network that writes: ids, and of each layer the keys and values of those before.
    """
    ids, past = call.args
    kept = [] if past is None else [("past", _tensor((len(past), 2, *past[0][0].shape),
                                                     past[0][0].dtype))]
    return _stage(call.func, {"ids": _tensor(ids.shape, "int64"), **dict(kept)}, _result(result))


def _read_beside(predict: Any) -> list[tuple[str, dict[str, Any]]]:
    """What a denoiser reads beside latents and the time: the text, and further inputs, by name."""
    given = inspect.signature(predict.func).bind_partial(*predict.args, **predict.keywords)
    return [(name, _tensor(*spec)) for name, spec in list(given.arguments.items())[2:]
            if isinstance(spec, Spec) and not isinstance(spec, WeightSpec)]


def _stage(function: Callable, inputs: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
    """A stage's first docstring line, its options, and what goes in and out."""
    formula, _, description = inspect.getdoc(function).partition("\n")
    parameters = inspect.signature(function).parameters.values()
    options = {p.name: {"required": p.default is p.empty}
               | ({} if p.default is p.empty else {"default": p.default})
               for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {"formula": formula, "description": description.strip(), "inputs": inputs,
            "options": options, "output": output}


def _tensor(shape, dtype, limits=None) -> dict[str, Any]:
    """A float without a range may be any finite number."""
    return {"shape": list(shape), "dtype": dtype, "range": limits}


def _result(given) -> dict[str, Any]:
    """Of a network that gives several, the first."""
    return _tensor(*(given if isinstance(given, Spec) else given[0]))


def describe_model(configs: ModelConfigs, scheduler: Scheduler | None) -> dict[str, Any]:
    """Every part's config with all defaults, what the models read of it, and every weight's shape.

    {"text_encoder": {"config", "reads", "parameters", "weights": {name: shape}}, ..,
    "scheduler": {"config"}}
    """
    model: dict[str, Any] = {}
    for part, network in planned_networks(configs).items():
        shapes = shapes_of(part, configs[part])
        model[part] = {
            "config": validate(part, configs[part]),
            "reads": asdict(network.config),
            "parameters": sum(math.prod(shape) for shape in shapes.values()),
            "weights": {name: list(shape) for name, shape in shapes.items()},
        }
    return model if scheduler is None else {**model, "scheduler": {"config": {
        "_class_name": type(scheduler).__name__, **scheduler.config}}}


def describe_calls(configs: ModelConfigs) -> dict[str, list[dict[str, Any]]]:
    """op -> its different calls in the model, the ones with most work in all first.

    Each with shapes, options, result, FLOPs and bytes of one, `count` by network (text_encoder: two
    prompts, unet: one guided step, decode and encode: one picture), and where it is used first.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for part, plan in plan_model(configs).items():
        for planned in plan:
            call = {"inputs": plain(planned.inputs), "options": plain(planned.options)}
            entry = found.setdefault(planned.op, {}).setdefault(json.dumps(call), {
                **call, "output": {"shape": list(planned.output.shape),
                                   "dtype": planned.output.dtype},
                "flops": planned.output.flops, "bytes": planned.output.bytes,
                "count": {}, "first": planned.path and f"{part}.{planned.path}"})
            entry["count"][part] = entry["count"].get(part, 0) + 1
    return {op: sorted(calls.values(), reverse=True,
                       key=lambda call: call["flops"] * sum(call["count"].values()))
            for op, calls in found.items()}
