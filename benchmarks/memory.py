"""The most memory of drawing with Stable Diffusion 1.5: CLIP, two steps, decode at 512 x 512.

    python -m benchmarks.memory refsd|refsd-bfloat16|refsd-int8|torch FOLDER THREADS

prints: side, peak, other forms of the weights, in bytes.
"""

import sys

from benchmarks import models
from benchmarks.child import peak_bytes

OURS = {"refsd": {}, "refsd-bfloat16": {"dtype": "bfloat16"}, "refsd-int8": {"weights": "int8"}}
SIDES = (*OURS, "torch")
PICTURE_STEPS = 2


def refsd(folder, **form):
    """Our own in a dtype or with weights of a form.

    Also the bytes of what is kept beside the weights, which the peak includes.
    """
    import refsd
    from refsd.weights import flatten

    pipe = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numba", **form)
    ids = models.inputs("clip")["ids"]
    text = pipe.text_encoder(ids).last_hidden_state
    pipe(prompt_embeds=text[:1], negative_prompt_embeds=text[1:], generator=models.SEED,
         num_inference_steps=PICTURE_STEPS, height=512, width=512)
    trees = (pipe.text_encoder.tree, pipe.unet.tree, pipe.vae.tree)
    return sum(leaf.prepared_bytes for tree in trees for leaf in flatten(tree).values())


def torch(folder):
    """diffusers', which keeps no other form of the weights."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel

    torch.set_num_threads(int(sys.argv[3]))
    pipe = StableDiffusionPipeline(
        unet=UNet2DConditionModel.from_pretrained(f"{folder}/unet"), tokenizer=None,
        vae=AutoencoderKL.from_pretrained(f"{folder}/vae"),
        text_encoder=CLIPTextModel.from_pretrained(f"{folder}/text_encoder"),
        scheduler=PNDMScheduler.from_pretrained(f"{folder}/scheduler"), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        text = pipe.text_encoder(torch.from_numpy(models.inputs("clip")["ids"]))[0]
    pipe(prompt_embeds=text[:1], negative_prompt_embeds=text[1:], height=512, width=512,
         num_inference_steps=PICTURE_STEPS, generator=torch.Generator().manual_seed(models.SEED))
    return 0


if __name__ == "__main__":
    side, folder = sys.argv[1:3]
    prepared = refsd(folder, **OURS[side]) if side in OURS else torch(folder)
    print(side, peak_bytes(), prepared)
