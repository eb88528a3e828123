"""Checkpoints in and out: safetensors, diffusers folders, single files of the families."""

from refsd.leaf import Weight
from refsd.tree import flatten, to_tree
from refsd.weights.checkpoint import Component, load_checkpoint, load_folder
from refsd.weights.location import resolve
from refsd.weights.reader import read_safetensors
from refsd.weights.writer import write_safetensors

__all__ = [
    "Component",
    "Weight",
    "flatten",
    "load_checkpoint",
    "load_folder",
    "read_safetensors",
    "resolve",
    "to_tree",
    "write_safetensors",
]
