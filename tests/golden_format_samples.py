"""Small golden packs, whole and tampered with, for the tests of the format."""

import hashlib
import json

import numpy as np

from refsd.golden.packs.pack import Writer

RECIPE = {"prompt": "a glossy red sphere", "steps": 2, "seed": 7, "cfg_scale": 7.5}
MODEL = {"name": "tiny", "hash": "0" * 64, "scheduler": {"_class_name": "DDIMScheduler"}}


def tensors():
    """Name -> (array, keywords of add), in the order of execution; some dtypes, some oddities."""
    draw = np.random.default_rng(20)
    ids = draw.integers(0, 49408, (1, 77))
    x = draw.standard_normal((2, 4, 6, 5))
    y = draw.standard_normal((2, 8, 6, 5)).astype("f4")
    odd = np.array([1.5, -np.inf, np.nan, 0.0, -0.0, 1e-40], "f4")
    weight = "weight:unet.conv_in.weight"
    return {
        "tokens/000/ids": (ids, {"stage": "tokens", "step": 0}),
        "unet/000/conv_in:x": (x, {"stage": "unet", "step": 0, "note": "an input"}),
        "unet/000/conv_in": (y, {
            "stage": "unet", "step": 0, "op": "conv2d", "options": {"padding": (1, 1), "groups": 1},
            "inputs": {"x": "tensor:unet/000/conv_in:x", "weight": weight, "bias": None},
            "tolerance": {"float32": {"worst": 1e-5, "likely": 2e-6, "rms": 5e-7},
                          "float16": {"worst": None, "likely": 2e-3, "rms": 1e-3}}}),
        "unet/000/down_blocks.0.add": (y.astype("f2"), {
            "stage": "unet", "step": 0, "op": "add",
            "inputs": {"a": "tensor:unet/000/conv_in", "b": np.float64(0.5)}}),
        "denoise/000/guided": (x[:1], {"stage": "denoise", "step": 0, "keep": True}),
        "unet/001/odd": (odd, {"stage": "unet", "step": 1}),
        "decode/sum": (np.float32(3.25), {"stage": "decode"}),
        "decode/none": (np.zeros((0, 3), "f4"), {"stage": "decode"}),
        "decode/mask": (draw.random((3, 3)) < 0.5, {"stage": "decode"}),
        "picture/pixels": (draw.integers(0, 256, (5, 7, 3)).astype("u1"), {"stage": "picture"}),
    }


def writer(folder, *, recipe=RECIPE, shard_bytes=3000, resume=False):
    """A Writer of the sample; its shards take a few tensors each."""
    return Writer(folder, recipe=recipe, model=MODEL, kind="run", title="a sample",
                  shard_bytes=shard_bytes, resume=resume)


def write(folder, *, found=None, **options):
    """Record the sample, or other tensors; gives the manifest."""
    with writer(folder, **options) as pack:
        fill(pack, (tensors() if found is None else found).items())
    return pack.close()


def fill(pack, found):
    """Add these tensors, with a checkpoint and an invariant after those that they are about."""
    for name, (array, keywords) in found:
        pack.add(name, array, **keywords)
        if name == "denoise/000/guided":
            pack.checkpoint(50, name, step=1)
            pack.invariant("guided: the mean", 0.25, limit=0.5, tensor=name)


def files(folder):
    """The bytes of all files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reseal(folder):
    """Let SHA256SUMS say again what the manifest is, as someone would who tampers with it."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    sums = {name: file["sha256"] for name, file in manifest["files"].items()}
    sums["manifest.json"] = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
    (folder / "SHA256SUMS").write_text("".join(lines))


def tamper(folder, change):
    """Change the manifest's JSON, and seal it."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reseal(folder)
