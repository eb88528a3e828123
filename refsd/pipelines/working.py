"""What a drawing takes on top of its weights, by replaying what kernels ask of the allocator.

`refsd plan` says this. The check before each drawing takes the formulas of refsd.pipelines.memory,
which are quicker and right within a factor; so do backends that cannot say what they allocate.
"""

import math
from typing import Any

from refsd.backends import find_backend
from refsd.contracts import array_bytes, itemsize
from refsd.graph import trace
from refsd.graph.arena import directed_memory
from refsd.graph.passes import split
from refsd.pipelines.memory import PICTURE, working_bytes
from refsd.pipelines.planned import calls
from refsd.pipelines.vae_tiling import coding_bytes
from refsd.planning import Asked, planning


def planned_bytes(pipe: Any, width: int, height: int, pictures: int) -> int:
    """The larger of a call of the denoiser and decoding a picture, with the texts that are kept.

    The VAE works as its tiling says, "auto" in one piece.
    """
    vae = pipe.coder("decoder")
    directed = directed_memory(vae.backend)
    if directed is None or "layers" in vae.tree["decoder"]:  # a tiny autoencoder's
        return working_bytes(pipe, width, height, pictures)
    factor = vae.config.downscale
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    asked = Asked(pictures, pipe.copies, rows, columns, factor)
    networks = {part: network for part, network in pipe.networks.items() if part != "vae"}
    there = calls(networks, asked)
    if vae.tiling in ("off", "auto"):
        call = vae.calls("vae", asked, {})["decode"]
        with planning(find_backend(vae.backend).memory, directed) as plan:
            call()
        decode = plan.peak
    else:
        decode = coding_bytes(vae, "decoder", rows, columns, vae.tiling)
    decode += PICTURE * pictures * width * height * itemsize(vae.dtype)
    kept = sum(text_bytes(call) for call, *_ in there.values())
    return kept + max(decode, *(plan.peak for _, plan, _ in there.values()))


def text_bytes(call: Any) -> int:
    """Keys and values that a UNet keeps of a text from step to step (refsd.models.layers.Text).

    That is what its graph makes of the text and of weights alone. Other networks keep none.
    """
    if "down_blocks" not in call.keywords:
        return 0
    graph = trace(call)
    fixed = [n for n in graph.numbers("input") if graph.values[n].name == "encoder_hidden_states"]
    return sum(array_bytes(graph.values[n]) for n in split(graph, fixed).hoisted)
