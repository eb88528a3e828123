"""refsd, the reference Stable Diffusion.

    >>> import refsd
    >>> pipe = refsd.StableDiffusionPipeline.from_pretrained()
    >>> image = pipe("a red sphere left of a blue cube", num_inference_steps=20, guidance_scale=3,
    ...              generator=7).images[0]
    >>> image.size
    (128, 128)

`refsd.F` holds the ops, `refsd.use(backend)` chooses who computes them, `refsd.threads(n)` on how
many threads, `refsd.watch` listens.
Importing this package imports neither NumPy nor SciPy: what is used is imported when it is used.
"""

import importlib

from refsd.registry import use, watch
from refsd.version import __version__

__all__ = ["GPT2", "AutoPipelineForImage2Image", "AutoPipelineForInpainting",
           "AutoPipelineForText2Image", "ControlNet", "F", "StableDiffusion3Img2ImgPipeline",
           "StableDiffusion3InpaintPipeline", "StableDiffusion3Pipeline",
           "StableDiffusionControlNetImg2ImgPipeline",
           "StableDiffusionControlNetInpaintPipeline", "StableDiffusionControlNetPipeline",
           "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
           "StableDiffusionInstructPix2PixPipeline", "StableDiffusionPipeline",
           "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
           "StableDiffusionXLPipeline", "__version__",
           "threads", "use", "watch"]

_LAZY = {
    **{name: ("refsd.pipelines.auto", name) for name in (
        "AutoPipelineForImage2Image", "AutoPipelineForInpainting", "AutoPipelineForText2Image")},
    "ControlNet": ("refsd.pipelines.controlnet", "ControlNet"),
    "ControlNetModel": ("refsd.pipelines.controlnet", "ControlNet"),
    "F": ("refsd.functional", None),
    "GPT2": ("refsd.pipelines.gpt2", "GPT2"),
    "StableDiffusionImg2ImgPipeline": ("refsd.pipelines.img2img", "StableDiffusionImg2ImgPipeline"),
    **{name: ("refsd.pipelines.stable_diffusion_controlnet", name) for name in (
        "StableDiffusionControlNetPipeline", "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline")},
    "StableDiffusionInpaintPipeline": ("refsd.pipelines.inpaint", "StableDiffusionInpaintPipeline"),
    "StableDiffusionInstructPix2PixPipeline": ("refsd.pipelines.pix2pix",
                                               "StableDiffusionInstructPix2PixPipeline"),
    "StableDiffusionPipeline": ("refsd.pipelines.stable_diffusion", "StableDiffusionPipeline"),
    "StableDiffusionXLImg2ImgPipeline": ("refsd.pipelines.xl_img2img",
                                         "StableDiffusionXLImg2ImgPipeline"),
    "StableDiffusionXLInpaintPipeline": ("refsd.pipelines.xl_inpaint",
                                         "StableDiffusionXLInpaintPipeline"),
    "StableDiffusionXLPipeline": ("refsd.pipelines.stable_diffusion_xl",
                                  "StableDiffusionXLPipeline"),
    "StableDiffusion3Pipeline": ("refsd.pipelines.stable_diffusion_3", "StableDiffusion3Pipeline"),
    **{name: ("refsd.pipelines.stable_diffusion_3_pictures", name) for name in (
        "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")},
    "threads": ("refsd.parallel", "threads"),
}


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'refsd' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = importlib.import_module(module)
    return value if attribute is None else getattr(value, attribute)
