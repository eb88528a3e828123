"""Dump what every module of a diffusers UNet gives, for refsd golden compare, bisect and same.

    refsd golden make -o PACK "a red cone" -m MODEL --level 3 --steps 4
    python examples/torch_dump.py PACK MODEL MINE
    refsd golden bisect PACK MINE --map examples/torch_names.json -m MODEL

draws the pack's picture with torch, and writes MINE/unet-000.safetensors for its first step, and
so on. Golden names are module paths. torch_names.json has those of what is called otherwise
there: activations, which one module does several times, and functions. In a program of your own,
`Dump(unet, "mine")` before the first step is all; bfloat16 and float16 stay what they are.
"""

import json
import sys
from functools import partial
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file


class Dump:
    """Hooks on all modules of a network; one file for each of its calls, which are the steps."""

    def __init__(self, network, folder, stage="unet"):
        self.folder, self.stage, self.step, self.tensors = Path(folder), stage, 0, {}
        self.folder.mkdir(parents=True)
        network.register_forward_pre_hook(self.given, with_kwargs=True)
        for path, module in network.named_modules():
            if path:
                module.register_forward_hook(partial(self.output, path))
        network.register_forward_hook(self.write)

    def given(self, network, inputs, options):
        self.keep(f"denoise/{self.step:03d}/concat", inputs[0] if inputs else options["sample"])
        if not self.step:
            self.keep("denoise/concat", options["encoder_hidden_states"])

    def output(self, path, module, inputs, output):
        output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        name, calls = f"{self.stage}/{self.step:03d}/{path}", 1
        while f"{name}.{calls}" in self.tensors or calls == 1 and name in self.tensors:
            calls += 1
        self.keep(name if calls == 1 else f"{name}.{calls}", output)

    def keep(self, name, tensor):
        self.tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()

    def write(self, network, inputs, output):
        save_file(self.tensors, self.folder / f"{self.stage}-{self.step:03d}.safetensors")
        self.step, self.tensors = self.step + 1, {}


def draw(pack, model, folder, change=lambda unet: None):
    """The picture of a pack's recipe, as latents, with a UNet that `change` may alter before."""
    recipe = json.loads((Path(pack) / "manifest.json").read_text())["recipe"]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    scheduler = getattr(diffusers, recipe["scheduler"]["_class_name"])
    pipe.scheduler = scheduler.from_config(recipe["scheduler"])
    change(pipe.unet)
    Dump(pipe.unet, folder)
    return pipe(recipe["prompt"], negative_prompt=recipe["negative_prompt"], width=recipe["width"],
                height=recipe["height"], num_inference_steps=recipe["steps"],
                guidance_scale=recipe["cfg_scale"], output_type="latent",
                generator=torch.Generator().manual_seed(recipe["seed"])).images


if __name__ == "__main__":
    draw(*sys.argv[1:])
