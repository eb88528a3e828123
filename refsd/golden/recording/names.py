"""What a golden tensor is called: STAGE/STEP/PATH, from the order in which the ops run.

An op with weights has the checkpoint's path of its weight: unet/000/down_blocks.0.resnets.0.conv1.
An op without is named PARENT.OP, PARENT the block around the layer that it belongs to: the next
one if it prepares that layer's input and no other op comes before, else the last one. The second of
a name in a step is .2.
"""

import re
from typing import NamedTuple

from refsd.families import COMPONENTS

# Ops that make the next layer's input out of what is there.
PREPARING = ("concat", "pad", "reshape", "silu", "timestep_embedding", "upsample_bilinear",
             "upsample_nearest")

# Lists within a block that no block is named after: to_out.0, net.0.proj, net.2.
_INSIDE = re.compile(r"\.(?:to_out|net(?:\.\d+)?)\Z")
_BLOCK = re.compile(r"(?:[a-z]\w*\.(?:\d+\.)?)*?(?:(?:resnets|attentions|downsamplers|upsamplers|"
                    r"layers|transformer_blocks|block|h)\.\d+|time_embedding|time_text_embed|"
                    r"pos_embed|norm_out|embeddings)(?=\.)")
# Layers between the blocks, which count as blocks.
_ALONE = ("conv_in", "conv_norm_out", "conv_out", "post_quant_conv", "quant_conv",
          "final_layer_norm", "text_projection", "shared", "context_embedder", "proj_out", "wte",
          "wpe", "ln_f")
# What is called in every step.
DENOISERS = tuple(part for part in COMPONENTS if part != "vae" and not part.startswith("text_"))


def full(stage: str, step: int | None, path: str) -> str:
    """unet, 3, conv_in -> unet/003/conv_in; without a step unet/conv_in."""
    return f"{stage}/{path}" if step is None else f"{stage}/{step:03d}/{path}"


def stage_of(part: str) -> str:
    """The stage of a model's part: text_encoder_2 -> text_2, tokenizer -> tokens, unet -> unet."""
    word, number = re.fullmatch(r"(.*?)(_\d+)?", part).groups("")
    return {"text_encoder": "text", "tokenizer": "tokens", "vae": "decode"}.get(word, word) + number


def parent(layer: str) -> str:
    """The block around a layer: a.attn1.to_out.0 -> a.attn1, conv_in -> the empty path."""
    return _INSIDE.sub("", layer.rpartition(".")[0])


def block_of(path: str) -> str | None:
    """The outermost block that an op's path lies in, None outside of all blocks.

    down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q -> down_blocks.0.attentions.1
    """
    match = _BLOCK.match(path)
    return match[0] if match else None


def is_alone(path: str) -> bool:
    """Whether a layer stands between the blocks, such as conv_in."""
    return block_of(path) is None and path.rpartition(".")[2] in _ALONE


class Waiting(NamedTuple):
    """An op that is not named yet, with whatever the caller wants to know again."""

    op: str
    event: object


class Namer:
    """Names the ops of one call of a network, in their order.

    `add` and `end` give (path, event) of those ops whose names are now certain.
    """

    def __init__(self) -> None:
        self._layer: str | None = None
        self._waiting: list[Waiting] = []
        self._count: dict[str, int] = {}

    def add(self, op: str, layer: str | None, event: object) -> list[tuple[str, object]]:
        """An op has run; `layer` is the checkpoint's path of its weights, if it has any."""
        if layer is None:
            self._waiting.append(Waiting(op, event))
            follows = op not in PREPARING and self._layer is not None
            return self._named(self._layer) if follows else []
        self._layer = layer
        return [*self._named(layer), (self._once(layer), event)]

    def end(self) -> list[tuple[str, object]]:
        """Nothing comes any more: what still waits belongs to the last layer."""
        return self._named(self._layer or "")

    def _named(self, layer):
        beside = parent(layer)
        named = [(self._once(f"{beside}.{w.op}".lstrip(".")), w.event) for w in self._waiting]
        self._waiting = []
        return named

    def _once(self, path):
        self._count[path] = count = self._count.get(path, 0) + 1
        return path if count == 1 else f"{path}.{count}"
