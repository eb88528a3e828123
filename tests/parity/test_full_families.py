"""Denoisers at their published size, random weights, pictures of 1024 x 1024 pixels.

`make parity-full FAMILY=sdxl` (or sd3): 20 GB of memory, 25 GB of disk. Each side runs in a process
of its own, which tells its peak memory. The truth is torch in float64 on the same weights, of which
it widens a layer's at a time.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file

pytestmark = [pytest.mark.full, pytest.mark.timeout(7200)]

# name -> part, class, published config, the shapes of what a call is given, and the error allowed
# in units of torch's: of sums of the same length, or of a UNet with Winograd's convolutions
# (test_full_size.py).
FAMILIES = {
    "sdxl": ("unet", UNet2DConditionModel, {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }, {"sample": (1, 4, 128, 128), "text": (1, 77, 2048), "pooled": (1, 1280)}, 3),
    "sd3": ("transformer", SD3Transformer2DModel, {
        "sample_size": 128, "num_layers": 24, "num_attention_heads": 24,
        "joint_attention_dim": 4096, "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    }, {"sample": (1, 16, 128, 128), "text": (1, 333, 4096), "pooled": (1, 2048)}, 1.5),
}

COMMON = """
import json, sys, time
from pathlib import Path
import numpy as np
part, folder, kind = sys.argv[1:]
x = np.load(folder + "/inputs.npz")
def report(y, seconds):
    np.save(f"{folder}/{kind}.npy", y)
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({"seconds": seconds, "peak": peak}))
"""

OURS = COMMON + """
from refsd.backends import find_backend
from refsd.pipelines.loading import computes
from refsd.weights.checkpoint import load_folder
loaded = load_folder(folder, part)
find_backend("numba").place(loaded.tensors)  # packed, as a pipeline does it
network = computes(part, loaded.config).of(loaded, "numba", False)
if part == "unet":
    more = {"added_cond_kwargs": {"text_embeds": x["pooled"], "time_ids": x["ids"]}}
else:
    more = {"pooled_projections": x["pooled"]}
seconds = []
for _ in range(2):  # the first compiles, and packs the weights
    begun = time.perf_counter()
    y = network(x["sample"], 500.0, x["text"], **more)
    seconds.append(time.perf_counter() - begun)
report(np.asarray(y), seconds[-1])
"""

THEIRS = COMMON + """
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
torch.set_num_threads(2)
kinds = {"unet": UNet2DConditionModel, "transformer": SD3Transformer2DModel}
model = kinds[part].from_pretrained(f"{folder}/{part}").eval()
wide = torch.float64 if kind == "truth" else torch.float32
given = {name: torch.from_numpy(x[name]).to(wide) for name in x.files}
if part == "unet":
    more = {"added_cond_kwargs": {"text_embeds": given["pooled"], "time_ids": given["ids"]}}
else:
    more = {"pooled_projections": given["pooled"]}

def widen(module, arguments):
    module.narrow = {name: p.data for name, p in module.named_parameters(recurse=False)}
    for name, p in module.named_parameters(recurse=False):
        p.data = p.data.double()

def narrow(module, arguments, output):
    for name, p in module.named_parameters(recurse=False):
        p.data = module.narrow[name]

if kind == "truth":
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(widen)
            module.register_forward_hook(narrow)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.double())
    type(model).dtype = property(lambda self: torch.float64)  # of which embeddings of time are
seconds = []
with torch.inference_mode():
    for _ in range(1 if kind == "truth" else 2):
        begun = time.perf_counter()
        y = model(given["sample"], timestep=torch.tensor([500.0], dtype=wide),
                  encoder_hidden_states=given["text"], **more).sample
        seconds.append(time.perf_counter() - begun)
report(y.numpy(), seconds[-1])
"""


def write_model(name, folder):
    """Random weights as torch begins with them, written a tensor at a time."""
    part, kind, config, shapes, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = kind(**config)
    (folder / part).mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()},
              folder / part / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    model.save_config(folder / part)
    random = np.random.default_rng(0)
    given = {key: random.standard_normal(shape).astype("f4") for key, shape in shapes.items()}
    given["ids"] = np.float32([[1024, 1024, 0, 0, 1024, 1024]])
    np.savez(folder / "inputs.npz", **given)
    return part


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_of_the_denoiser(family, tmp_path):
    part = write_model(family, tmp_path)
    figures = {}
    for kind, code in (("torch", THEIRS), ("refsd", OURS), ("truth", THEIRS)):
        child = subprocess.run([sys.executable, "-c", code, part, str(tmp_path), kind],
                               capture_output=True, text=True)
        assert child.returncode == 0, child.stderr
        figures[kind] = json.loads(child.stdout.splitlines()[-1])
    results = {kind: np.load(tmp_path / f"{kind}.npy").astype("f8") for kind in figures}

    def error(kind):
        difference = results[kind] - results["truth"]
        return float(np.sqrt((difference ** 2).mean() / (results["truth"] ** 2).mean()))

    print(f"\n{family}, one call at 1024 x 1024 pixels")
    for kind, figure in figures.items():
        print(f"  {kind}: {figure['seconds']:.2f} s, peak memory {figure['peak'] / 1e9:.2f} GB"
              + ("" if kind == "truth" else f", relative error {error(kind):.3e}"))
    ratio = figures["refsd"]["seconds"] / figures["torch"]["seconds"]
    print(f"  refsd: {ratio:.2f} of torch's time, {error('refsd') / error('torch'):.2f} of its "
          "error")
    assert figures["refsd"]["peak"] < 20e9
    assert error("refsd") <= FAMILIES[family][-1] * error("torch")
