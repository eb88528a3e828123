"""Small models whose weights are away, for the tests of offload."""

import os
import threading
import time
from pathlib import Path

import pytest

import refsd
from refsd.pipelines.offload import streamers
from refsd.weights import streaming

BLOCK, AHEAD = 12_000, 24_000  # of a model of 160 kB in float32


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", BLOCK)
    monkeypatch.setattr(streaming, "AHEAD", AHEAD)
    yield
    wait_for_threads()


def wait_for_threads():
    """A thread that reads ahead ends by itself."""
    deadline = time.monotonic() + 10
    while (left := [one for one in threading.enumerate() if one.name == "refsd weights"]):
        assert time.monotonic() < deadline, left
        time.sleep(0.001)


def load(path, **options):
    return refsd.StableDiffusionPipeline.from_pretrained(
        path, **{"backend": "numpy", **options})


def draw(pipe, seed=0, steps=3, **options):
    return pipe("red cat", width=32, height=32, num_inference_steps=steps, generator=seed,
                output_type="np", **options).images


def source(pipe):
    found, = streamers(pipe)
    return found


def groups(streamer):
    return list(dict.fromkeys(streamer._groups.values()))


def cut(folder, part="unet"):
    """A file that shrinks after it was checked."""
    file = next(Path(folder, part).glob("*.safetensors"))
    os.truncate(file, file.stat().st_size // 2)
