"""What another dtype, or form of the weights, costs the bundled model, beside float32.

    python -m training.quality --dtype bfloat16
    python -m training.quality --weights int8 --prompts 40

Held-out prompts of one and of two solids in turn, 20 steps, guidance 3, all from float32's noise.
It prints how many pictures are right (training/fidelity.py) and how many verdicts change, the peak
signal to noise ratio of the pictures, and the relative error of the latents, both root mean square.
"""

import argparse

import numpy as np

import refsd
from refsd.random import draw_noise
from training.fidelity import judge
from training.pictures import prompts


def draw(pipe, text, seed, noise=None):
    """Latents, and the picture (H, W, 3) in uint8."""
    latents = pipe(text, num_inference_steps=20, guidance_scale=3.0, generator=seed, latents=noise,
                   output_type="latent").images
    picture = pipe.to_output(latents, "np")[0]
    return np.asarray(latents, "f8"), (255.0 * picture + 0.5).astype(np.uint8)


def compare(pipe, exact, caption, seed):
    """(verdict in float32, verdict, PSNR in dB, relative error of the latents) of a prompt."""
    truth, picture = draw(exact, caption.text, seed)
    noise = draw_noise(truth.shape, "float32", pipe.make_generator(seed))
    latents, ours = draw(pipe, caption.text, seed, noise)
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(255**2 / np.mean((ours.astype("f8") - picture) ** 2))
    error = np.sqrt(np.mean((latents - truth) ** 2) / np.mean(truth**2))
    return judge(picture, caption)["right"], judge(ours, caption)["right"], psnr, error


def main(words=None):
    """Compare, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m training.quality")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--weights")
    parser.add_argument("--prompts", type=int, default=200)
    asked = parser.parse_args(words)
    load = refsd.StableDiffusionPipeline.from_pretrained
    exact, pipe = load(), load(dtype=asked.dtype, weights=asked.weights)

    half = -(-asked.prompts // 2)
    captions = [(seed, caption) for seed, pair in enumerate(zip(prompts(half, 1), prompts(half, 2)))
                for caption in pair]
    rows = [compare(pipe, exact, caption, seed) for seed, caption in captions[:asked.prompts]]
    before, after, psnr, error = map(np.array, zip(*rows))
    print(f"{len(rows)} prompts, {asked.dtype}, weights {asked.weights or 'as computed'}: "
          f"right {after.mean():.1%}, in float32 {before.mean():.1%}, "
          f"won {np.sum(after > before)}, lost {np.sum(after < before)}")
    print(f"PSNR: median {np.median(psnr):.1f} dB, nine in ten above {np.quantile(psnr, 0.1):.1f}, "
          f"the worst {psnr.min():.1f}")
    print(f"latents: median {np.median(error):.2%}, mean {error.mean():.2%}, "
          f"nine in ten below {np.quantile(error, 0.9):.2%}, at most {error.max():.0%}")


if __name__ == "__main__":
    main()
