"""The committed pack of the bundled model against diffusers: names, steps, numbers.

Names in a pack are module paths of diffusers, so hooks on its modules give the same tensors. They
are computed in float32; the pack says what that may differ by.
"""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import refsd
from refsd.golden.packs.pack import Pack
from refsd.pipelines.loading import bundled_model

GOLDEN = Path(refsd.__file__).parents[1] / "golden" / "bundled"


@pytest.fixture(scope="module")
def pack():
    with Pack.open(GOLDEN) as found:
        yield found


@pytest.fixture(scope="module")
def theirs(pack):
    """Every module's first result by our name, and the latents and the picture."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        bundled_model(), dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    found, texts = {}, []

    def keep(name):
        def hook(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            if isinstance(output, torch.Tensor):
                found.setdefault(name, output.detach().numpy().copy())

        return hook

    for stage, part in (("unet/000", pipe.unet), ("decode", pipe.vae)):
        for path, module in part.named_modules():
            module.register_forward_hook(keep(f"{stage}/{path}"))
    pipe.text_encoder.register_forward_hook(
        lambda module, inputs, output: texts.append(output[0].detach().numpy().copy()))

    def each_step(pipe, index, timestep, tensors):
        found[f"denoise/{index:03d}/latents"] = tensors["latents"].numpy().copy()
        return {}

    recipe = pack.manifest.recipe
    images = pipe(
        recipe["prompt"], negative_prompt=recipe["negative_prompt"], width=recipe["width"],
        height=recipe["height"], num_inference_steps=recipe["steps"],
        guidance_scale=recipe["cfg_scale"], callback_on_step_end=each_step, output_type="np",
        generator=torch.Generator().manual_seed(recipe["seed"])).images
    found["picture/image"] = images
    for number, text in enumerate(texts):
        found[f"text/{number:03d}/last_hidden_state"] = text
    return found


def test_every_block_of_the_unet_and_the_decoder_is_a_module_of_diffusers(pack, theirs):
    blocks = [entry.name for entry in pack.entries.values() if entry.op == "block"
              and entry.stage in ("unet", "decode") and ":" not in entry.name]
    assert len(blocks) > 30
    assert [name for name in blocks if name not in theirs] == []


def test_the_numbers_are_diffusers_within_the_spread(pack, theirs):
    """rms is what the error of a right port stays below in all but one of 10,000 tensors."""
    compared = 0
    for entry in pack.entries.values():
        if entry.name not in theirs or "spread" not in entry.tolerance.get("float32", {}):
            continue
        golden, other = pack.read(entry.name).astype("f8"), theirs[entry.name]
        assert golden.shape == other.shape, entry.name
        error = np.sqrt(np.mean(np.square(other - golden)))
        limit = entry.tolerance["float32"]["spread"]["rms"] + 2.0**-25 * np.abs(golden).max()
        assert error <= limit, f"{entry.name}: {error:.3g}, allowed {limit:.3g}"
        compared += 1
    assert compared >= 45


def test_the_noise_is_torchs(pack):
    noise = torch.randn(tuple(pack.entries["denoise/noise"].shape),
                        generator=torch.Generator().manual_seed(pack.manifest.recipe["seed"]))
    assert pack.read("denoise/noise").tobytes() == noise.numpy().tobytes()
