"""ComfyUI's graphs as a request: one sampler of them, and what its inputs come from.

`prompt` holds the graph that ran, `workflow` the editor's, whose widgets are read by their place.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from refsd.arguments import shown
from refsd.cli.comfy import MOST_NODES, TEXTS
from refsd.errors import UsageError

SAMPLERS = ("KSampler", "KSamplerAdvanced")
KNOWN = {*SAMPLERS, "CheckpointLoaderSimple", "CheckpointLoader", "CLIPTextEncode",
         "EmptyLatentImage", "VAEDecode", "SaveImage", "PreviewImage", "CLIPSetLastLayer",
         "PrimitiveNode", "Reroute", "Note", "MarkdownNote", "ConditioningZeroOut"}
# The widgets of the editor's nodes, in their order.
WIDGETS = {
    "KSampler": ("seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", None, "steps", "cfg", "sampler_name",
                         "scheduler", "start_at_step", "end_at_step", "return_with_leftover_noise"),
    "CLIPTextEncode": ("text",), "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",), "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "PrimitiveNode": ("value",),
}
DEFAULTS = {"denoise": 1, "add_noise": "enable", "start_at_step": 0, "end_at_step": None,
            "batch_size": 1,
            "return_with_leftover_noise": "disable"}


class Request(NamedTuple):
    """`values` under the names of refsd's recipe, the rest under ComfyUI's."""

    values: dict[str, Any]
    sampler: str
    schedule: str
    model: str
    missing: list[str]


def request(graph: Mapping[str, Any]) -> Request | None:
    """What the first sampler of a graph was asked for; None where it has none.

    Raises UsageError for what a graph does not say, or says as no number.
    """
    nodes = _of_editor(graph) if isinstance(graph.get("nodes"), list) else {
        str(key): node for key, node in list(graph.items())[:MOST_NODES]
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)}
    asking = [key for key, node in nodes.items() if node.get("class_type") in SAMPLERS]
    if not asking:
        return None
    inputs = {**DEFAULTS, **nodes[asking[0]]["inputs"]}
    missing = [f"{len(asking)} samplers: the first is drawn"] if len(asking) > 1 else []
    kinds = dict.fromkeys(str(node.get("class_type"))[:80] for node in nodes.values())
    missing += [f"the node {kind}" for kind in kinds if kind not in KNOWN]
    steps, end = _number(inputs, "steps", nodes), inputs["end_at_step"]
    if inputs["denoise"] != 1 or inputs["start_at_step"] or inputs["add_noise"] != "enable" \
            or inputs["return_with_leftover_noise"] != "disable" \
            or (isinstance(end, int) and end < steps):
        missing.append("the latents that it began with, or left steps to: all steps are drawn from "
                       "noise")
    latent = _behind(inputs.get("latent_image"), "EmptyLatentImage", nodes)
    if _value(latent.get("batch_size", 1), nodes) != 1:
        missing.append("a batch: its first picture is drawn")
    last = _behind(inputs.get("positive"), "CLIPSetLastLayer", nodes)
    values = {
        "prompt": _text(inputs.get("positive"), nodes),
        "negative_prompt": _text(inputs.get("negative"), nodes),
        "seed": _number(inputs, "seed" if "seed" in inputs else "noise_seed", nodes),
        "steps": steps, "cfg_scale": _number(inputs, "cfg", nodes),
        "width": _number(latent, "width", nodes), "height": _number(latent, "height", nodes),
        "clip_skip": max(-_number(last, "stop_at_clip_layer", nodes) - 1, 0) or None
        if last else None,
    }
    model = _behind(inputs.get("model"), "CheckpointLoaderSimple", nodes).get("ckpt_name", "")
    return Request(values, str(_value(inputs.get("sampler_name", ""), nodes)),
                   str(_value(inputs.get("scheduler", ""), nodes)), str(model), missing)


def _number(inputs, name, nodes):
    value = _value(inputs.get(name), nodes)
    if isinstance(value, float) and value.is_integer() and name != "cfg":
        value = int(value)
    if type(value) not in ((int, float) if name == "cfg" else (int,)):
        raise UsageError(f"its graph has {shown(value)} for {name}; give a picture of a graph with "
                         "KSampler and EmptyLatentImage, whose numbers are in it")
    return value


def _value(value: Any, nodes: Mapping[str, Any]) -> Any:
    """A value, or that of the node that it is linked to, a few links away at most."""
    for _ in range(10):
        if not (isinstance(value, list) and value and str(value[0]) in nodes):
            return value
        inputs = nodes[str(value[0])]["inputs"]
        value = next((inputs[name] for name in ("value", "seed", "int", "float", *TEXTS)
                      if name in inputs), next(iter(inputs.values()), None))
    return None


def _text(link: Any, nodes: Mapping[str, Any]) -> str:
    """The text of the encoder that a conditioning comes from; "" of a zeroed one or of none."""
    if _behind(link, "ConditioningZeroOut", nodes) or not isinstance(link, list):
        return ""
    text = _value(_behind(link, "CLIPTextEncode", nodes).get("text", ""), nodes)
    return text if isinstance(text, str) else ""


def _behind(link: Any, kind: str, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the first node of a kind from a link upwards; {} where there is none."""
    waiting, seen = deque([link]), set()
    while waiting:
        link = waiting.popleft()
        if not isinstance(link, list) or not link or str(link[0]) in seen:
            continue
        seen.add(str(link[0]))
        node = nodes.get(str(link[0]), {"inputs": {}})
        if node.get("class_type") == kind:
            return node["inputs"]
        waiting += node["inputs"].values()
    return {}


def _of_editor(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The editor's nodes in the form of those that ran: widgets by their place, links by number."""
    links = graph.get("links")
    sources = {link[0]: [str(link[1]), link[2]]
               for link in (links if isinstance(links, list) else [])[:10 * MOST_NODES]
               if isinstance(link, list) and len(link) >= 5 and isinstance(link[0], int)}
    nodes = {}
    for node in graph["nodes"][:MOST_NODES]:
        if not isinstance(node, dict) or node.get("mode") in (2, 4):  # muted, bypassed
            continue
        widgets = node.get("widgets_values")
        names = WIDGETS.get(str(node.get("type")), ())
        inputs = {name: value for name, value in
                  zip(names, widgets if isinstance(widgets, list) else []) if name}
        slots = node.get("inputs")
        for slot in slots if isinstance(slots, list) else []:
            if isinstance(slot, dict) and isinstance(slot.get("link"), int):
                inputs[str(slot.get("name"))] = sources.get(slot["link"])
        nodes[str(node.get("id"))] = {"class_type": str(node.get("type")), "inputs": inputs}
    return nodes
