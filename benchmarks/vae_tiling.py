"""The memory and the time of decoding one picture, by a random VAE of Stable Diffusion 1's size.

    python -m benchmarks.vae_tiling off|exact|blend SIDE

prints: tiling, side in pixels, bytes above the loaded weights, seconds, SHA-256 of the picture.
"""

import hashlib
import sys
import time

import numpy as np

from benchmarks.child import peak_bytes
from refsd.backends import find_backend
from refsd.families import sd1
from refsd.leaf import Weight
from refsd.models.config import VAEConfig
from refsd.networks import shapes_of
from refsd.pipelines.autoencoder import VAE
from refsd.registry import make_ready
from refsd.weights import to_tree


def held_bytes():
    """The physical memory that this process holds now."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def random_vae():
    """In float32, packed, with outputs about as large as inputs."""
    random, tensors = np.random.default_rng(0), {}
    for name, shape in shapes_of("vae", sd1.VAE).items():
        values = random.standard_normal(shape, "f4") / np.float32(max(np.prod(shape[1:]), 1))**0.5
        tensors[name] = Weight(np.ones(shape, "f4") if "norm" in name else values, name)
    find_backend("numba").place(tensors)
    return VAE(to_tree(tensors), VAEConfig.from_json(sd1.VAE), "numba")


def main(tiling, side):
    vae, random = random_vae(), np.random.default_rng(1)
    make_ready("numba", "float32")
    small, latents = (random.standard_normal((1, vae.config.latent_channels, n, n)).astype("f4")
                      for n in (16, side // vae.config.downscale))
    vae.decode(small, tiling=tiling)
    find_backend("numba").release()
    with open("/proc/self/clear_refs", "w") as peaks:
        peaks.write("5")  # the peak so far is forgotten
    before, begun = held_bytes(), time.perf_counter()
    picture = vae.decode(latents, tiling=tiling)
    seconds, most = time.perf_counter() - begun, peak_bytes() - before
    digest = hashlib.sha256(np.ascontiguousarray(picture)).hexdigest()[:16]
    print(tiling, side, most, f"{seconds:.1f}", digest, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
