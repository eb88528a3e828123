"""All commands, by who needs them: what may be the first word, and what `refsd --help` shows."""

import importlib
from typing import Any

from refsd.cli import actions

# A group's title -> its commands: what stands behind each, and what it is for.
GROUPS = {
    "draw": {
        "draw": ("PROMPT", "pictures of a text; draw may be left out, as above"),
        "text": ("PROMPT", "a text continued by GPT-2: without -m, a prompt to draw"),
        "words": ("", "what the model that comes with refsd can draw"),
        "repro": ("PICTURE", "draw a picture again from its recipe, and compare"),
        "serve": ("", "a page that draws, and the APIs of A1111 and OpenAI"),
        "quantize": ("-o FOLDER", "write a model with int8 weights, and what that costs"),
    },
    "look inside": {
        "info": ("FILE", "how a picture was made, or what a model's file holds"),
        "models": ("[MODEL]", "what a model is made of, part for part, and what it lacks"),
        "lora": ("inspect FILE", "what a LoRA is, and for which models"),
        "samplers": ("", "the samplers, their names in other tools, and what each takes"),
        "tokenize": ("TEXT", "the tokens that a prompt becomes"),
        "dialects": ("PROMPT", "how diffusers, A1111 and ComfyUI read a prompt"),
        "ops": ("", "the operations, and how each is computed"),
        "profile": ("", "where the time of a picture goes"),
        "graph": ("-m MODEL", "a network op by op, without weights; DOT, JSON, ONNX"),
        "plan": ("-m MODEL", "what a drawing costs, and whether it fits, without weights"),
    },
    "port to another machine": {
        "golden": ("ACTION", "reference tensors with the tolerance that each deserves"),
        "export": ("ACTION", "parts of a model as plain files"),
        "port": ("ACTION", "bring it up elsewhere, in the order that works"),
    },
    "this machine": {
        "doctor": ("", "versions, processor, memory, caches, self-checks"),
        "warmup": ("", "compile the kernels now, not with the first picture"),
        "tune": ("", "measure which algorithm each convolution is to take"),
        "help": ("[COMMAND]", "this page, or the options of a command"),
    },
}
COMMANDS = tuple(name for group in GROUPS.values() for name in group)
MODULES = {"serve": "refsd.serve.command"}  # what calls the command line, and is never imported


def find(name: str) -> Any:
    """What answers to a command, or to FAMILY_ACTION: a module with parser() and run()."""
    if name in actions.FAMILIES:
        return actions.Family(name)
    return importlib.import_module(MODULES.get(name, f"refsd.cli.{name}"))
