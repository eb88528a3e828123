"""Packs of Stable Diffusion XL's and 3's kind against diffusers: a block is a module's output.

Hooks on the modules of diffusers' networks give the tensors of these names in float32; the spread
that the pack has measured says what that may differ by.
"""

import diffusers
import numpy as np
import pytest
import tiny_sd3
import tiny_sdxl
import torch
from tiny_diffusers import PROMPT

from refsd.golden.packs.pack import Pack
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request, load_truth
from refsd.golden.tolerances.spread import add_spread

SIZE, STEPS, SCALE = 64, 2, 5.0
KINDS = {"base": (tiny_sdxl, "StableDiffusionXLPipeline", "unet"),
         "3.5 medium": (tiny_sd3, "StableDiffusion3Pipeline", "transformer")}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """A pack of level 2, and diffusers' tensors by its names."""
    (samples, kind, part), root = KINDS[request.param], tmp_path_factory.mktemp("golden")
    model = samples.write_model(root, request.param)
    pipe = load_truth(model)
    asked = Request(prompt=PROMPT, negative_prompt="a cat", width=SIZE, height=SIZE, steps=STEPS,
                    cfg_scale=SCALE, seed=3, scheduler=pipe.scheduler.config.plain())
    make(root / "pack", asked, pipe=pipe, model=model, selection=Selection(level=2))
    add_spread(root / "pack", formats=("float32",), runs=2, pipe=pipe)
    theirs = hooked(getattr(diffusers, kind).from_pretrained(model), part, asked)
    with Pack.open(root / "pack") as pack:
        yield pack, theirs, part


def hooked(pipe, part, asked):
    """Every module's first result by our name, what the network reads, latents and picture."""
    pipe.set_progress_bar_config(disable=True)
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            several = output if isinstance(output, tuple) else (getattr(output, "sample", output),)
            tensors = [one for one in several if isinstance(one, torch.Tensor)]
            if tensors:
                found.setdefault(name, tensors[0].detach().numpy().copy())

        return hook

    def read(module, inputs, given):
        further = {**given, **(given.get("added_cond_kwargs") or {})}
        away, towards = further["encoder_hidden_states"].chunk(2)
        found.setdefault("text/001/prompt_embeds", away.numpy().copy())
        found.setdefault("text/000/prompt_embeds", towards.numpy().copy())
        for name in {"text_embeds", "time_ids", "pooled_projections"} & further.keys():
            found.setdefault(f"denoise/{name}", further[name].numpy().copy())

    network = getattr(pipe, part)
    network.register_forward_pre_hook(read, with_kwargs=True)
    for stage, module in ((f"{part}/000", network), ("decode", pipe.vae)):
        for path, inner in module.named_modules():
            inner.register_forward_hook(keep(f"{stage}/{path}"))
    if getattr(pipe, "text_encoder_3", None) is not None:
        for path, inner in pipe.text_encoder_3.named_modules():
            inner.register_forward_hook(keep(f"text_3/000/{path}"))

    def each_step(pipe, index, timestep, tensors):
        found[f"denoise/{index:03d}/latents"] = tensors["latents"].numpy().copy()
        return {}

    found["picture/image"] = pipe(
        asked.prompt, negative_prompt=asked.negative_prompt, width=SIZE, height=SIZE,
        num_inference_steps=STEPS, guidance_scale=SCALE, callback_on_step_end=each_step,
        output_type="np", generator=torch.Generator().manual_seed(asked.seed)).images
    return found


def test_every_block_is_a_module_of_diffusers(both):
    pack, theirs, part = both
    blocks = [entry.name for entry in pack.entries.values() if entry.op == "block"
              and entry.stage in (part, "decode", "text_3") and ":" not in entry.name
              and not entry.name.startswith("text_3/001") and "last_hidden" not in entry.name]
    assert len(blocks) > 15
    assert [name for name in blocks if name not in theirs] == []


def test_the_numbers_are_diffusers_within_the_spread(both):
    """rms is what the error of a right port stays below in all but one of 10,000 tensors."""
    pack, theirs, _ = both
    compared = set()
    for entry in pack.entries.values():
        if entry.name not in theirs or entry.op is None:
            continue
        golden, other = pack.read(entry.name).astype("f8"), theirs[entry.name]
        assert golden.shape == other.shape, entry.name
        error = np.sqrt(np.mean(np.square(other - golden)))
        limit = entry.tolerance["float32"]["spread"]["rms"] + 2.0**-25 * np.abs(golden).max()
        assert error <= limit, f"{entry.name}: {error:.3g}, allowed {limit:.3g}"
        compared.add(entry.name)
    assert len(compared) >= 25 and {"text/000/prompt_embeds", "text/001/prompt_embeds",
                                    "denoise/001/latents", "picture/image"} <= compared


def test_what_the_network_reads_besides_is_diffusers(both):
    pack, theirs, part = both
    besides = {name for name in theirs if name.startswith("denoise/")} - {
        f"denoise/{step:03d}/latents" for step in range(STEPS)}
    assert besides == {"unet": {"denoise/text_embeds", "denoise/time_ids"},
                       "transformer": {"denoise/pooled_projections"}}[part]
    assert besides <= pack.entries.keys()
    if part == "unet":
        np.testing.assert_array_equal(pack.read("denoise/time_ids"), theirs["denoise/time_ids"])
