"""The parts of Stable Diffusion as diffusers has them, as modules from tensors to one tensor."""

from functools import cache

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from refsd.pipelines.loading import bundled_model


class Clip(torch.nn.Module):
    """ids -> last hidden state"""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, return_dict=False)[0]


class Unet(Clip):
    """sample, timestep, text -> noise"""

    def forward(self, sample, timestep, text):
        return self.model(sample, timestep, text, return_dict=False)[0]


class Decode(Clip):
    """latents -> picture"""

    def forward(self, latents):
        return self.model.decode(latents, return_dict=False)[0]


class Encode(Clip):
    """picture -> the mean of the latents"""

    def forward(self, picture):
        return self.model.encode(picture, return_dict=False)[0].mean


LOADED = {"clip": (Clip, CLIPTextModel, "text_encoder"),
          "unet": (Unet, UNet2DConditionModel, "unet"),
          "decode": (Decode, AutoencoderKL, "vae"), "encode": (Encode, AutoencoderKL, "vae")}


@cache
def load(part, folder, dtype=torch.float32):
    """A part of the model in a folder."""
    wrapper, kind, component = LOADED[part]
    model = kind.from_pretrained(f"{folder}/{component}", torch_dtype=dtype)
    return wrapper(model.eval()).eval()


def bundled_pipeline():
    """diffusers' pipeline with the model that ships with refsd, whose file is float16."""
    pipe = StableDiffusionPipeline.from_pretrained(bundled_model(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe
