"""The names and shapes of the tensors in published single files: facts, written down compactly.

A line of published/NAME.txt is a name and a shape ("-" is a number alone); {0..3} in a name stands
for each of these numbers, {q,k} for each of these words. Where each comes from:

sd1: whole models of Stable Diffusion 1, from sd1-ldm.yaml of github.com/ljleb/sd-mecha, whose names
    are those of toolkit/keymaps/stable_diffusion_sd1.json of github.com/ostris/ai-toolkit and
    position_ids: 1,131 tensors together with vae_4_channels, less averages and the noise's own.
sd2: whole models of Stable Diffusion 2: names of ai-toolkit's stable_diffusion_sd2*.json, shapes of
    the modules of diffusers that it pairs them with, the text encoder's from OpenCLIP's widths:
    1,228 tensors together with vae_4_channels, less averages and the noise's own.
sdxl_base, vae_4_channels: sd_xl_base_1.0.safetensors, as listed with shapes in sd-mecha's
    sdxl-sgm.yaml (less what it marks as of training or of other models), whose names are
    those of ai-toolkit's stable_diffusion_sdxl*.json: 2,515 tensors together.
sdxl_refiner: sd_xl_refiner_1.0.safetensors; names of ai-toolkit's stable_diffusion_refiner*.json,
    shapes of the modules of diffusers that it pairs them with, built from the published
    config.json; 1,858 tensors together with vae_4_channels.
sd3_medium, vae_16_channels: sd3_medium.safetensors, as in sd-mecha's sd3-comfyui.yaml: 735 tensors.
sd3_text_encoders: those of sd3_medium_incl_clips_t5xxlfp16.safetensors: names of sd3_sgm_keys.txt
    (sd-mecha at 450532e), shapes of sd3-comfyui.yaml; T5's, of which the list lacks five, are those
    of transformers' T5EncoderModel of the published config.json.
sd3.5_large: names of sd35_keys.txt (sd-mecha at 450532e), shapes of the modules of Stability AI's
    mmdit.py (github.com/Stability-AI/sd3.5) at depth 38, built by hand.
sd3.5_medium: names and shapes of the same modules at depth 24 with a second attention in blocks
    0..12, a table of 384 x 384 positions; both are read by diffusers' converter without a rest
    (tests/parity/test_families_published.py).
"""

import itertools
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "published"


def published(*names):
    """name -> shape of all tensors of these lists."""
    found = {}
    for name in names:
        for line in (FOLDER / f"{name}.txt").read_text().splitlines():
            pattern, shape = line.split()
            sizes = () if shape == "-" else tuple(int(size) for size in shape.split("x"))
            found |= dict.fromkeys(_expanded(pattern), sizes)
    return found


def _expanded(pattern):
    pieces = re.split(r"\{(.*?)\}", pattern)
    return ("".join(choice) for choice in itertools.product(
        *[_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]))


def _choices(piece):
    first, dots, last = piece.partition("..")
    return [str(i) for i in range(int(first), int(last) + 1)] if dots else piece.split(",")
