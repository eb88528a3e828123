"""The networks of models, as checkpoints of diffusers hold them."""

from typing import NamedTuple


class Network(NamedTuple):
    """A network's name in messages, its classes, how its files begin, and tensors that it has.

    whole_first: whether a whole file is taken before an index of shards, as transformers does.
    """

    word: str
    classes: tuple[str, ...]
    stems: tuple[str, ...]
    landmarks: tuple[str, ...]
    whole_first: bool = False


NETWORKS = {
    "unet": Network("UNet", ("UNet2DConditionModel",), ("diffusion_pytorch_model",),
                    ("time_embedding.linear_1.weight",)),
    "vae": Network("VAE", ("AutoencoderKL",), ("diffusion_pytorch_model",),
                   ("decoder.mid_block.resnets.0.conv1.weight",)),
    "text_encoder": Network("text encoder", ("CLIPTextModel", "CLIPTextModelWithProjection"),
                            ("model", "pytorch_model"),
                            ("text_model.embeddings.token_embedding.weight",
                             "embeddings.token_embedding.weight"), whole_first=True),
    # not of a model, but added to one
    "controlnet": Network("ControlNet", ("ControlNetModel",), ("diffusion_pytorch_model",),
                          ("controlnet_cond_embedding.conv_in.weight",)),
    # in the place of a VAE
    "taesd": Network("tiny autoencoder", ("AutoencoderTiny",), ("diffusion_pytorch_model",),
                     ("decoder.layers.0.weight",)),
}  # fmt: skip
