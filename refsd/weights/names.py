"""Older names of the same tensors, brought to the names that refsd.models takes apart."""

import re
from collections.abc import Iterable

from refsd.errors import ModelError
from refsd.networks import Shape

# diffusers before 0.14 named the VAE's attention so.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")
CLIP = ("text_encoder", "text_encoder_2")
# Its projections are 1x1 convolutions in the first checkpoints, matrices in the later ones.
_PIXEL_PROJECTION = re.compile(r"\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")


def canonical(component: str, name: str) -> str | None:
    """Today's name of a tensor of a part of a model; None for one to leave out.

    CLIP's text encoders keep the prefix "text_model." of the published checkpoints, which
    transformers 5 writes without; their position_ids are 0, 1, 2, .. and no weights. T5's table of
    embeddings is in some files under two names, of which transformers too reads the first alone.
    """
    if component == "vae":
        return _OLD.sub(lambda match: OLD_ATTENTION[match[0]], name)
    if component in CLIP:
        if name.endswith("embeddings.position_ids"):
            return None
        if not name.startswith(("text_model.", "text_projection.")):
            return f"text_model.{name}"
    if component == "text_encoder_3" and name == "encoder.embed_tokens.weight":
        return None
    return name


def canonical_names(component: str, names: Iterable[str], where: str) -> dict[str, str]:
    """Today's name -> the name in the file; ModelError when two tensors claim one name."""
    found: dict[str, str] = {}
    for name in names:
        new = canonical(component, name)
        if new in found:
            raise ModelError(f"{where}: {ascii(name)[:200]} and {found[new]!r} are the same "
                             "tensor. Leave one out")
        if new is not None:
            found[new] = name
    return found


def is_pixel_projection(name: str) -> bool:
    """Whether a tensor is a projection of the VAE's attention: a 1x1 kernel in old files."""
    return _PIXEL_PROJECTION.search(name) is not None


def without_kernel(name: str, shape: Shape) -> Shape:
    """(O, I, 1, 1) -> (O, I) for the projections of the VAE's attention; anything else as it is."""
    return shape[:2] if is_pixel_projection(name) and shape[2:] == (1, 1) else shape
