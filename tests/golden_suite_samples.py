"""A suite of small packs, and what a right and a wrong port wrote for them."""

import json
import shutil

from safetensors.numpy import load_file, save_file

from refsd.__main__ import main

RUNS = [{"name": name, "prompt": f"a {name}", "seed": i}
        for i, name in enumerate(["cone", "cube", "ring"])]
SUITE = {"schema": 1, "title": "things", "level": 1, "runs": RUNS,
         "defaults": {"sampler": "ddim", "steps": 2, "width": 32, "height": 32}}


def write(folder, model):
    """packs/, as golden make writes them, and mine/ of a right port."""
    (folder / "suite.json").write_text(json.dumps(SUITE))
    assert main(["golden", "make", "-o", str(folder / "packs"), "--suite",
                 str(folder / "suite.json"), "-m", model, "--spread", "0", "-q"]) == 0
    for run in RUNS:
        mine = folder / "mine" / run["name"]
        mine.mkdir(parents=True)
        for file in (folder / "packs" / run["name"]).glob("*.safetensors"):
            shutil.copy(file, mine)
    return folder


def spoil(mine, name):
    """Let a tensor of a port be wrong."""
    file = next(mine.glob("*.safetensors"))
    tensors = load_file(file)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file)
