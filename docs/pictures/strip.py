"""python docs/pictures/strip.py: noise becoming four pictures, drawn by the model in refsd.

    docs/pictures/strip.webp     an animation, a frame a denoising step: the latents, decoded

Four prompts, drawn at once; the last frame stays a while. Below 600 kB, which a test holds it to.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from refsd import StableDiffusionPipeline
from refsd.schedulers import DDIMScheduler

PICTURES = {  # prompt -> seed
    "a glossy red sphere left of a small blue cube": 2,
    "a matte green cone in front of a large yellow torus": 1,
    "a small pink ball, a large cyan cube and an orange can in a row": 4,
    "a shiny purple torus behind a small yellow sphere on a dark background": 3,
}
STEPS = 24
GAP = 8  # pixels between two pictures
MILLISECONDS, AT_THE_END = 110, 2600
QUALITY = 85
FILE = Path(__file__).with_suffix(".webp")


def frames() -> list[Image.Image]:
    """The four beside each other: as noise, and after each step."""
    pipe = StableDiffusionPipeline.from_pretrained(scheduler=DDIMScheduler)
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(pipe.preview(tensors["latents"], vae=True))

    pipe(list(PICTURES), num_inference_steps=STEPS, guidance_scale=3,
         generator=list(PICTURES.values()), callback_on_step_end=look)
    return [beside(pictures) for pictures in seen]


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in a row, on white."""
    arrays = [np.asarray(picture) for picture in pictures]
    gap = np.full((arrays[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for array in arrays for part in (array, gap)]
    return Image.fromarray(np.concatenate(parts[:-1], axis=1))


def main() -> None:
    first, *rest = frames()
    times = [MILLISECONDS] * len(rest) + [AT_THE_END]
    first.save(FILE, save_all=True, append_images=rest, duration=times, loop=0, quality=QUALITY,
               method=6)
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
