"""A pack's networks as ONNX models with weights, each with its recorded calls beside it.

FOLDER/unet/model.onnx, test_data_set_0/input_0.pb, ..., output_0.pb: a set for each step, or text.
inputs.json and outputs.json have the same for Polygraphy, an iteration a set. networks.json says
which tensors of the pack each is made of, and what a port may differ by.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refsd.atomic import empty_folder, write_file
from refsd.errors import UsageError
from refsd.golden.packs.pack import Pack
from refsd.golden.porting.export import chosen, encode, write_folder
from refsd.golden.porting.onnx import MODEL, encoder
from refsd.golden.porting.polygraphy import write_inputs, write_outputs
from refsd.golden.recording.names import full
from refsd.golden.recording.replay import load_weights
from refsd.graph import trace
from refsd.graph.graph import Graph, Value
from refsd.graph.onnx import write_onnx
from refsd.pipelines.planned import calls, denoiser_of, planned_networks, sized

LIST = "networks.json"


class Set(NamedTuple):
    """A call that was recorded: for each input, and for the output, the pack's tensors.

    Several are one after the other along the first axis. step: of the schedule, whose timestep is
    an input; None where there is none.
    """

    inputs: dict[str, list[str]]
    output: list[str]
    step: int | None = None


def export_networks(pack: Pack, folder: str | Path, *, model: str | Path | None = None,
                    only: Iterable[str] = ()) -> list[str]:
    """A folder for each network of which the pack has a call's inputs and output; their names.

    model is where the pack's lies, as recording.replay.weights has it. Raises UsageError where the
    onnx package is missing, and for a pack that has no network whole.
    """
    as_proto = encoder()
    graphs = dict(_graphs(pack))
    found = {name: (graph, sets) for name, graph in graphs.items()
             if (sets := list(_sets(pack, name, graph)))}
    if not found:
        raise UsageError(f"{pack.path}: it has no network's inputs and output; give a pack of a "
                         "picture, of level 1 or more, and not cut by --include or --exclude")
    wanted = chosen(found, only)
    parts = load_weights(pack.manifest, model)
    folder, told = empty_folder(folder), {}
    for name in wanted:
        graph, sets = found[name]
        for i, one in enumerate(sets):
            arrays = {key: _array(pack, one, key, value) for key, value in _inputs(graph).items()}
            files = {f"input_{k}.pb": as_proto(array, key)
                     for k, (key, array) in enumerate(arrays.items())}
            files["output_0.pb"] = as_proto(_joined(pack, one.output), "output_0")
            write_folder(folder / name / f"test_data_set_{i}", files)
        write_inputs(folder / name, ([(key, _array(pack, one, key, value)) for key, value in
                                      _inputs(graph).items()] for one in sets))
        write_outputs(folder / name, ([("output_0", _joined(pack, one.output))] for one in sets))
        write_onnx(graph, folder / name / MODEL, weights=parts[_part(name, parts)])
        told[name] = [one._asdict() | {"tolerance": {
            tensor: pack.entries[tensor].tolerance for tensor in one.output}} for one in sets]
    write_file(folder / LIST, [encode(told)])
    return wanted


def _graphs(pack: Pack) -> Iterator[tuple[str, Graph]]:
    """Each network's call as a graph: a text encoder of one text, the denoiser of a step's batch.
    """
    recipe, configs = pack.manifest.recipe, pack.manifest.model.get("configs")
    if pack.manifest.kind != "run" or not configs or "width" not in recipe:
        return
    networks = planned_networks(configs)
    guided = any(name.endswith("/eps_uncond") for name in pack.entries)
    for copies in (1, 2):
        asked = sized(networks, copies=copies, width=recipe["width"], height=recipe["height"])
        for name, (call, _, _) in calls(networks, asked).items():
            if copies == (2 if guided and name == denoiser_of(networks)[0] else 1):
                yield name, trace(call)


def _inputs(graph: Graph) -> dict[str, Value]:
    return {graph.values[number].name: graph.values[number] for number in graph.numbers("input")}


def _part(name: str, parts: Iterable[str]) -> str:
    return name if name in parts else "vae"


def _sets(pack: Pack, name: str, graph: Graph) -> Iterator[Set]:
    """The calls of a network that the pack has whole."""
    wanted = {key: value.shape for key, value in _inputs(graph).items() if key != "timesteps"}
    for one in _candidates(pack, name):
        shapes = {key: _shape(pack, names) for key, names in one.inputs.items()}
        if shapes == wanted and _shape(pack, one.output) == graph.values[graph.outputs[0]].shape:
            yield one


def _shape(pack: Pack, names: list[str]) -> tuple[int, ...] | None:
    """That of tensors one after the other; None if one is not in the pack."""
    if not all(name in pack.entries for name in names):
        return None
    shapes = [pack.entries[name].shape for name in names]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _candidates(pack: Pack, name: str) -> Iterator[Set]:
    if name.startswith("text_encoder"):
        which = name.removeprefix("text_encoder")
        for i in range(2):
            yield Set({"input_ids": [full(f"tokens{which}", i, "ids")]},
                      [full(f"text{which}", i, "last_hidden_state")])
    elif name == "decode":
        yield Set({"latents": ["decode/latents"]}, ["decode/decoder.conv_out"])
    elif name != "encode":
        steps = {entry.step for tensor, entry in pack.entries.items()
                 if tensor.endswith("/eps_cond")}
        yield from (_step(pack, step) for step in sorted(steps))


def _step(pack: Pack, step: int) -> Set:
    """A step's batch: the negative text's rows first, where there is guidance."""
    texts = [1, 0] if full("denoise", step, "eps_uncond") in pack.entries else [0]
    output = [full("denoise", step, f"eps_{which}") for which in ("uncond", "cond")[-len(texts):]]
    kind = next((kind for kind in ("prompt_embeds", "last_hidden_state")
                 if full("text", 0, kind) in pack.entries), "last_hidden_state")
    further = {key: [f"denoise/{key}"] for key in ("text_embeds", "time_ids", "pooled_projections")
               if f"denoise/{key}" in pack.entries}
    return Set({"sample": [full("denoise", step, "scaled")] * len(texts),
                "encoder_hidden_states": [full("text", i, kind) for i in texts], **further},
               output, step)


def _array(pack: Pack, one: Set, key: str, value: Value) -> np.ndarray:
    """An input as the graph takes it."""
    if key not in one.inputs:
        return np.full(value.shape, pack.read("schedule/timesteps")[one.step], value.dtype)
    return _joined(pack, one.inputs[key]).astype(value.dtype)


def _joined(pack: Pack, names: list[str]) -> np.ndarray:
    return np.concatenate([pack.read(name) for name in names])
