"""ComfyUI's graphs: what was asked of the samplers in them."""

from collections.abc import Mapping
from typing import Any

# Inputs of nodes that are worth a line.
SETTINGS = ("seed", "noise_seed", "steps", "cfg", "guidance", "sampler_name", "scheduler",
            "denoise", "ckpt_name", "unet_name", "vae_name", "lora_name", "width", "height")
TEXTS = ("text", "text_g", "clip_l", "t5xxl", "prompt", "string", "value")
MOST_NODES = 10_000


def describe(graph: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt and the settings of a graph, of either form.

    `prompt` holds the graph that ran (nodes by number, with their inputs), `workflow` the editor's
    (a list of nodes), in which no text says what it is for.
    """
    if isinstance(graph.get("nodes"), list):
        return _of_editor(graph["nodes"])
    nodes = {key: node for key, node in list(graph.items())[:MOST_NODES]
             if isinstance(node, dict) and isinstance(node.get("inputs"), dict)}
    settings: dict[str, str] = {}
    for name in SETTINGS:
        values = [node["inputs"][name] for node in nodes.values() if name in node["inputs"]]
        words = dict.fromkeys(str(value) for value in values if not isinstance(value, list))
        if words:
            settings[name] = ", ".join(words)
    prompts = {}
    for which, ends in (("positive", ("positive", "conditioning")), ("negative", ("negative",))):
        texts = [_text_behind(node["inputs"][end], which, nodes) for node in nodes.values()
                 for end in ends if end in node["inputs"] and _asks(node["inputs"])]
        prompts[which] = next(filter(None, texts), "")
    return prompts["positive"], prompts["negative"], settings


def _asks(inputs: Mapping[str, Any]) -> bool:
    """Whether a node takes conditionings to a model: a sampler, or a guider of one."""
    return "model" in inputs or "steps" in inputs


def _text_behind(link: Any, which: str, nodes: Mapping[str, Any]) -> str:
    """The first text found from a link upwards; through nodes that have both, along the same."""
    waiting, seen = [link], set()
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, list) or not link or str(link[0]) in seen:
            continue
        seen.add(str(link[0]))
        inputs = nodes.get(str(link[0]), {}).get("inputs", {})
        texts = [inputs[name] for name in TEXTS if isinstance(inputs.get(name), str)]
        if any(texts):
            return next(filter(None, texts))
        waiting += [inputs[which]] if which in inputs else list(inputs.values())
    return ""


def _of_editor(nodes: list[Any]) -> tuple[str, str, dict[str, str]]:
    texts = {}
    for node in nodes[:MOST_NODES]:
        values = node.get("widgets_values") if isinstance(node, dict) else None
        if isinstance(values, list) and "TextEncode" in str(node.get("type")):
            texts[f"text of node {node.get('id')}"] = ", ".join(map(str, values))
    return "", "", {"nodes": str(len(nodes)), **texts}
