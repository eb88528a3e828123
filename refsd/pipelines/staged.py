"""What a process holds in each stage of a drawing: its texts, the steps, and decoding.

A stage has its own weights, if they are read while they are used, what its kernels work in, and
what is kept of those before. So the peak is the most of a stage, not the sum of the most of each.

On a backend that can say what its kernels ask of the allocator a whole drawing is replayed, one
stage after the other in one pool, for memory that a stage leaves serves the next; on others each
has the formulas of refsd.pipelines.memory.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import astuple, dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from refsd.backends import find_backend
from refsd.bands import compute
from refsd.contracts import Spec, array_bytes, itemsize
from refsd.graph import trace
from refsd.graph.arena import directed_memory
from refsd.graph.passes import split
from refsd.memory_models import BESIDE
from refsd.pipelines.memory import PICTURE, TILED_FROM, denoiser_bytes, weight_bytes
from refsd.pipelines.offload import order_of_use
from refsd.pipelines.planned import calls, denoiser_of, plan_networks
from refsd.pipelines.replayed import Bands, Replayed
from refsd.pipelines.vae_tiles import tiles
from refsd.pipelines.vae_tiling import coding_bytes
from refsd.planning import Asked, planning
from refsd.registry import use
from refsd.tree import flatten, to_tree
from refsd.weights.streaming import most_bytes


@dataclass(frozen=True)
class Stage:
    """The most that the process holds in a stage of a drawing, in bytes.

    libraries: Python with all that is imported and compiled, and what each weight takes beside its
    numbers; weights: those in use; ahead: those that were read before they are used; kept: keys and
    values of the text; working: results, what kernels work in, and memory that waits for more.
    """

    name: str
    libraries: int
    weights: int
    ahead: int
    kept: int
    working: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(astuple(self)[1:])


def stages(pipe: Any, asked: Asked, offload: str | None = None,
           free: int | None = None) -> list[Stage]:
    """Those of a drawing with a planned pipeline; offload is when its weights are in memory.

    A VAE that chooses how it works does so in one piece where the process fits into `free` bytes,
    and of small pictures.
    Of a model that writes texts nothing is asked, and each call is a stage.
    """
    if pipe.vae is None:
        return [*_writing(pipe)]
    vae = pipe.coder("decoder")
    directed = directed_memory(vae.backend)
    replayed = directed is not None and "layers" not in vae.tree["decoder"]  # a tiny autoencoder's
    of = partial(_replayed, directed) if replayed else _estimated
    whole = [*of(pipe, asked, offload, "off" if vae.tiling == "auto" else vae.tiling)]
    small = asked.width * asked.height * asked.downscale**2 <= TILED_FROM
    if vae.tiling != "auto" or small or free is None or whole[-1].bytes <= free:
        return whole
    banded = [*of(pipe, asked, offload, "auto")]
    return min(whole, banded, key=lambda found: found[-1].bytes)


def libraries_bytes(pipe: Any) -> int:
    """Python with all that is imported and compiled, and what each weight takes beside its bytes.
    """
    weights = sum(len(flatten(network.tree)) for network in pipe.networks.values())
    return find_backend(pipe.denoiser.backend).memory.libraries + BESIDE * weights


def _writing(pipe: Any) -> Iterator[Stage]:
    gaps, fixed = find_backend(pipe.denoiser.backend).memory.gaps, libraries_bytes(pipe)
    for name, plan in plan_networks(pipe.networks, None).items():
        yield Stage(name, fixed, weight_bytes(pipe), 0, 0, plan.with_gaps(gaps))


def _estimated(pipe: Any, asked: Asked, offload: str | None, tiling: str) -> Iterator[Stage]:
    """By formulas: the denoiser and the decoder, each with its weights."""
    fixed, vae = libraries_bytes(pipe), pipe.coder("decoder")
    sides = asked.width * asked.downscale, asked.height * asked.downscale
    decode = coding_bytes(vae, "decoder", asked.height, asked.width, tiling)
    working = {denoiser_of(pipe.networks)[0]: denoiser_bytes(pipe, *sides, asked.pictures),
               "vae": decode + _picture_bytes(vae, asked)}
    for part, size in working.items():
        leaves = [leaf.nbytes for leaf in flatten(pipe.networks[part].tree).values()]
        banded = part == "vae" and tiling != "off"  # each band needs all weights
        weights = (weight_bytes(pipe) if offload is None else sum(leaves) if banded else
                   most_bytes(offload, [leaves]))
        yield Stage("decode" if part == "vae" else part, fixed, weights, 0, 0, size)


def _replayed(directed: Any, pipe: Any, asked: Asked, offload: str | None,
              tiling: str) -> Iterator[Stage]:
    """As the allocator gives it: each call in the pool that the one before left."""
    memory, fixed, there = directed.Replay(), libraries_bytes(pipe), calls(pipe.networks, asked)
    networks, here = {**pipe.networks, "vae": pipe.coder("decoder")}, weight_bytes(pipe)
    streamer = Replayed(offload, memory, directed) if offload else None
    if streamer is not None:
        here = 0 if networks["vae"] is pipe.vae else weight_bytes(_only(networks["vae"]))
        networks |= {part: _away(streamer, part, network, pipe.sources[part], there)
                     for part, network in pipe.networks.items() if network in networks.values()}
    kept, texts = sum(text_bytes(call) for call, *_ in there.values()), {}
    for part in sorted(networks, key=lambda part: (part == "vae", not part.startswith("text_"))):
        network, memory.peak = networks[part], 0
        name, call = next(iter(network.calls(part, asked, texts).items()))
        if part == "vae":
            call = _decoding(network, call, asked, tiling)
        with planning(find_backend(network.backend).memory, directed, memory):
            result = call()
        if part.startswith("text_encoder"):
            texts[part] = (result,) if isinstance(result, Spec) else result
        weights, ahead = streamer.noted if streamer else (0, 0)
        pictures = _picture_bytes(network, asked) if part == "vae" else 0
        peak = max(memory.peak, memory.now + pictures)  # beside all that waits for more results
        yield Stage(name, fixed, here + weights, ahead, 0 if part.startswith("text_") else kept,
                    peak - weights - ahead)


def _only(vae):
    return SimpleNamespace(networks={"vae": vae})


def _decoding(vae, call, asked, tiling):
    """The call in its way of tiling."""
    if tiling in ("exact", "auto"):
        def banded():
            with use(vae.backend):
                return compute(partial(call.func, **call.keywords), *call.args, Bands)
        return banded
    if tiling == "blend":
        side = tiles(vae, "latent").size
        asked = asked._replace(height=min(asked.height, side), width=min(asked.width, side))
        return vae.calls("vae", asked, {})["decode"]
    return call


def _picture_bytes(vae, asked):
    pixels = asked.pictures * asked.width * asked.height * asked.downscale**2
    return PICTURE * pixels * itemsize(vae.dtype)


def _away(streamer, part, network, source, there):
    """The network with leaves that are away, in the order in which calls use them."""
    leaves = flatten(network.tree)
    found = streamer.take(part, leaves, *source)
    mine = {id(leaf): found[name] for name, leaf in leaves.items()}
    used = [mine[id(value)] for _, plan, _ in there.values() for planned in plan
            for value in planned.inputs.values() if id(value) in mine]
    streamer.arrange(part, order_of_use([used], found.values()))
    network = copy(network)
    network.tree = to_tree(found)
    return network


def text_bytes(call: Any) -> int:
    """Keys and values that a UNet keeps of a text from step to step (refsd.models.layers.Text).

    That is what its graph makes of the text and of weights alone. Other networks keep none.
    """
    if "down_blocks" not in call.keywords:
        return 0
    graph = trace(call)
    fixed = [n for n in graph.numbers("input") if graph.values[n].name == "encoder_hidden_states"]
    return sum(array_bytes(graph.values[n]) for n in split(graph, fixed).hoisted)
