"""The stand-in port, run on the recipe of a pack made of the tiny model."""

from contextlib import suppress

import golden_port
import numpy as np
import tiny
from golden_mistakes import MISTAKES
from golden_port_ops import Ops

from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request

STEPS, GUIDANCE = 3, 5.0
CONFIGS = {**tiny.CONFIGS, "scheduler": tiny.SCHEDULER}
WEIGHTS = {part: tiny.tensors(part) for part in tiny.CONFIGS}
RECIPE = Request(prompt="red cat", negative_prompt="re", width=32, height=32, steps=STEPS,
                cfg_scale=GUIDANCE, scheduler=tiny.SCHEDULER)


def write_pack(place, level):
    """place/model, unless it is there, and place/levelN."""
    if not (place / "model").exists():
        tiny.write_model(place / "model")
    make(place / f"level{level}", RECIPE, model=place / "model", selection=Selection(level=level))


class Dump:
    """A candidate in memory."""

    def __init__(self, tensors):
        self.tensors = tensors

    def read(self, name, shape=None):
        return self.tensors.get(name)


class Enough(Exception):
    """The port has dumped what was wanted."""


def port(pack, ops, *, after=None, weights=WEIGHTS, until=None):
    """What the stand-in port dumps, given the prompts' ids and the noise, up to a tensor."""
    def watched(name, array):
        dumped, array = after(name, array) if after else (array, array)
        if name == until:
            made.dump[name] = dumped
            raise Enough
        return dumped, array

    made = golden_port.Port(ops, weights, CONFIGS, after=watched)
    ids = [pack.read(f"tokens/{i:03d}/ids") for i in range(2)]
    with suppress(Enough):
        made.draw(ids, pack.read("denoise/noise").astype("f4"), steps=STEPS, guidance=GUIDANCE)
    return made.dump


def mistaken(pack, key, kind=Ops, *, whole=True, **options):
    """What the port dumps that makes one of the mistakes, all or up to where it first shows."""
    mistake = MISTAKES[key]

    def after(name, array):
        return mistake.after(array) if name == mistake.first else (array, array)

    return port(pack, kind(mistake=key, where=mistake.where, **options),
                after=mistake.after and after, until=None if whole else mistake.first)


FUSED = ("silu", "quick_gelu", "geglu", "add", "to_tokens", "to_image", "upsample_nearest",
         "concat", "attention")


def fused(dump):
    """What a port leaves that dumps its layers and no op between them."""
    return Dump({name: array for name, array in dump.items()
                 if name.rpartition(".")[2].partition(".")[0] not in FUSED
                 and not name.endswith((".2", ".3")) and not name.endswith("/silu")})


def blocks(pack, dump):
    """The port's blocks under the names of the pack: a block is its last op's result."""
    twins = {}
    for entry in pack.entries.values():
        twins.setdefault(entry.sha256, []).append(entry.name)
    return {name: dump[other] for names in twins.values() for name in names for other in names
            if other in dump and pack.entries[name].op in ("block", None)}


def measure_spread(pack, format, seeds=(11, 12, 13)):
    """The pack with a spread as its making would measure it: of a few ports of other roundings."""
    dumps = [port(pack, Ops(format=format, seed=seed)) for seed in seeds]
    same = {}
    for name, entry in pack.entries.items():
        same.setdefault(entry.sha256, set()).add(name)
    for entry in pack.entries.values():
        name = next((one for one in same[entry.sha256] if one in dumps[0]), None)
        if name is not None and entry.dtype == "float32":
            errors = [dump[name] - pack.read(entry.name) for dump in dumps]
            entry.tolerance[format] = {"spread": {
                "rms": 3 * float(np.sqrt(np.mean(np.square(errors)))),
                "max": 3 * float(np.abs(errors).max())}}
    return pack
