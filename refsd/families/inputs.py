"""What a UNet reads beside the latents, told by its channels, and which pipeline gives it that."""

# What it reads -> what such a model is, pipelines that draw with it, and options of refsd draw.
INPUTS = {
    "latents": ("a text-to-image model",
                "StableDiffusionPipeline or StableDiffusionImg2ImgPipeline", "no --img-cfg-scale"),
    "image": ("InstructPix2Pix, which edits a picture", "StableDiffusionInstructPix2PixPipeline",
              "--init-img PICTURE and no --mask"),
    "mask": ("an inpainting model", "StableDiffusionInpaintPipeline",
             "--init-img PICTURE and --mask PICTURE"),
}


def input_of(channels: int, latent: int) -> str | None:
    """"latents" alone, with an "image" or with a "mask" and what it leaves of one; None: others."""
    return {latent: "latents", 2 * latent: "image", 2 * latent + 1: "mask"}.get(channels)


def not_drawn(channels: int, latent: int) -> str:
    """What a model is whose UNet reads more than refsd has an input for; empty for what is unknown.
    """
    return {latent + 1: "a depth model", latent + 3: "an upscaler"}.get(channels, "")
