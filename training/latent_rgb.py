"""python -m training.latent_rgb: the bundled model's linear map from latents to colours.

    minimise | z M + b - mean of the 8 x 8 decoded pixels |^2

over all latents z of pictures of training, encoded and decoded by the VAE that ships. It is what
`refsd --preview` shows. Written into refsd/data/latent_rgb.json; how much of the decoded pictures'
variance it explains is printed, on pictures that no training step has seen. Needs refsd, not torch.
"""

import json
from importlib import resources

import numpy as np

from refsd import StableDiffusionPipeline
from training.pictures import HELD_OUT
from training.raytrace import render
from training.scenes import sample_scene

COUNT = 96  # pictures of 256 latents each, for the 15 numbers of the map
WHAT = "the model that comes with refsd"


def samples(pipe, seeds):
    """Latents, as the diffusion has them, and the colours of their 8 x 8 pixels.   (n, 4), (n, 3)

    Colours are in [-1, 1].
    """
    latents, colours = [], []
    for seed in seeds:
        pixels = render(sample_scene(seed))[None].transpose(0, 3, 1, 2)
        z = pipe.vae.encode(pixels.astype(np.float32) / 127.5 - 1).mode()
        picture = np.clip(pipe.vae.decode(z), -1, 1)
        n, c, h, w = z.shape
        f = pipe.vae.config.downscale
        blocks = picture.reshape(n, 3, h, f, w, f).mean((3, 5))
        latents.append(z.transpose(0, 2, 3, 1).reshape(-1, c) * pipe.vae.config.scaling_factor)
        colours.append(blocks.transpose(0, 2, 3, 1).reshape(-1, 3))
    return np.concatenate(latents).astype(float), np.concatenate(colours).astype(float)


def fit(latents, colours):
    """M (4, 3) and b (3,) of the least squares, to four decimals."""
    with_one = np.column_stack([latents, np.ones(len(latents))])
    found = np.linalg.lstsq(with_one, colours, rcond=None)[0].round(4)
    return found[:-1], found[-1]


def explained(matrix, bias, latents, colours):
    """The share of the colours' variance that the map gives: 1 is all."""
    rest = colours - np.clip(latents @ matrix + bias, -1, 1)
    return 1 - np.square(rest).sum() / np.square(colours - colours.mean(0)).sum()


def main():
    pipe = StableDiffusionPipeline.from_pretrained()
    matrix, bias = fit(*samples(pipe, range(COUNT)))
    path = resources.files("refsd") / "data" / "latent_rgb.json"
    spaces = [space for space in json.loads(path.read_text("utf-8")) if space["what"] != WHAT]
    spaces.append({"what": WHAT, "source": "python -m training.latent_rgb",
                   "latent_channels": pipe.vae.config.latent_channels,
                   "scaling_factor": pipe.vae.config.scaling_factor,
                   "matrix": matrix.tolist(), "bias": bias.tolist()})
    lines = [",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}"
                        for key, value in space.items()) for space in spaces]
    path.write_text("[\n" + ",\n".join(f"  {{\n{each}\n  }}" for each in lines) + "\n]\n", "utf-8")
    share = explained(matrix, bias, *samples(pipe, range(HELD_OUT, HELD_OUT + 16)))
    print(f"{path}: explains {share:.1%} of the variance of held-out pictures")


if __name__ == "__main__":
    main()
