"""A small pack, candidates for it, and what comparing them gives."""

import numpy as np

from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.packs.pack import Pack, Writer

RANDOM = np.random.default_rng(4)
X, W, B = (RANDOM.standard_normal(shape).astype("float32") for shape in ((5, 16), (16, 16), (16,)))
Y = (X.astype("float64") @ W.T.astype("float64") + B).astype("float32")
IDS = np.array([[49406, 320, 49407]])
# Four right ports would be off by about 1e-3 in the network's tensor.
SPREAD = {"float32": {"likely": 1e-6, "spread": {"rms": 1e-3, "max": 4e-3, "runs": 4,
                                                 "confidence": 0.99}}}
NETWORK = RANDOM.standard_normal((2, 4, 8, 6)).astype("float32")


def write_pack(folder):
    with Writer(folder, recipe={}, model={}) as pack:
        pack.add("tokens/000/ids", IDS, stage="tokens", step=0)
        pack.add("unet/000/proj:x", X, stage="unet", step=0)
        pack.add("unet/000/proj:weight", W, stage="unet", step=0)
        pack.add("unet/000/proj:bias", B, stage="unet", step=0)
        pack.add("unet/000/proj", Y, op="linear", stage="unet", step=0,
                 inputs={n: f"tensor:unet/000/proj:{n}" for n in ("x", "weight", "bias")})
        pack.add("unet/000/mid_block", NETWORK, op="block", stage="unet", step=0,
                 tolerance=SPREAD)
        pack.add("unet/000/conv_out", 2 * NETWORK, op="block", stage="unet", step=0)
        pack.add("unet/001/conv_out", 3 * NETWORK, op="block", stage="unet", step=1,
                 tolerance=SPREAD)
    return folder


def right():
    """What a port without a mistake could give."""
    return {"tokens/000/ids": IDS, "unet/000/proj": np.nextafter(Y, np.float32(9)),
            "unet/000/mid_block": NETWORK + np.float32(5e-4), "unet/001/conv_out": 3 * NETWORK}


def compared(pack, tmp_path, **options):
    """The comparison of the candidate that `right` makes, with some of its tensors changed."""
    changed = {key: options.pop(key) for key in list(options) if "/" in key}
    arrays = {**right(), **changed}
    np.savez(tmp_path / "c.npz", **arrays)
    with Candidate.open(tmp_path / "c.npz", layout=options.pop("layout", None)) as candidate:
        return compare(pack, candidate, **options)


def verdict(found, name):
    return next(v for v in found.verdicts if v.entry.name == name)


def changed_at(x, place, value):
    x = x.copy()
    x[place] = value
    return x


def opened(folder, arrays, **options):
    """The comparison of a pack in `folder`/p with these arrays."""
    np.savez(folder / "c.npz", **arrays)
    with Pack.open(folder / "p") as pack, Candidate.open(folder / "c.npz") as candidate:
        return compare(pack, candidate, **options)
