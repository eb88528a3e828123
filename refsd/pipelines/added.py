"""What a network with an add_embedding reads beside the text: it as one vector, and time ids."""

from collections.abc import Mapping
from typing import Any

from refsd.arguments import shown
from refsd.backends import BACKENDS
from refsd.errors import UsageError
from refsd.pipelines.tensors import shaped

NAMES = ("text_embeds", "time_ids")


def added_inputs(name: str, network: Any, count: int, text_embeds: Any, time_ids: Any,
                 added_cond_kwargs: Any) -> tuple[Any, Any]:
    """text_embeds (N, P), and time_ids (N, K) in float32, where the network computes.

    None twice for a network without add_embedding. They may come in diffusers'
    added_cond_kwargs. Raises UsageError for what is missing, too much, or of other sizes.
    """
    given = _given(name, text_embeds, time_ids, added_cond_kwargs)
    if network.added_width is None:
        if given:
            raise UsageError(f"{name}: {' and '.join(given)} given, but this model has no "
                             "add_embedding: leave them out")
        return None, None
    dim = network.config.addition_time_embed_dim
    if missing := [key for key in NAMES if key not in given]:
        raise UsageError(f"{name}: {' and '.join(missing)} missing; this model has an "
                         f"add_embedding: give text_embeds (N, P) and time_ids (N, K) with "
                         f"P + {dim} K = {network.added_width}")
    vector = shaped(f"{name}: text_embeds", given["text_embeds"], (count, "P"), network.dtype)
    ids = shaped(f"{name}: time_ids", given["time_ids"], (count, "K"), "float32")
    (_, P), (_, K) = vector.shape, ids.shape
    if P + dim * K != network.added_width:
        raise UsageError(f"{name}: text_embeds {tuple(vector.shape)} and time_ids "
                         f"{tuple(ids.shape)} make {P} + {dim} x {K} numbers a sample; "
                         f"add_embedding reads {network.added_width}: give others")
    put = BACKENDS[network.backend].put
    return put(vector), put(ids)


def _given(name, text_embeds, time_ids, added_cond_kwargs):
    """What is not None of both, wherever it stands."""
    given = {"text_embeds": text_embeds, "time_ids": time_ids}
    if not isinstance(added_cond_kwargs, Mapping | None):
        raise UsageError(f"{name}: added_cond_kwargs={shown(added_cond_kwargs, 40)} has no meaning "
                         "here; give a dict with text_embeds and time_ids")
    for key, value in (added_cond_kwargs or {}).items():
        if value is not None and key not in NAMES:
            raise UsageError(f"{name}: added_cond_kwargs has {shown(key)}; give text_embeds and "
                             "time_ids alone")
        if value is not None and given[key] is not None:
            raise UsageError(f"{name}: {key} is given, and in added_cond_kwargs too; give it once")
        given[key] = value if given.get(key) is None else given[key]
    return {key: value for key, value in given.items() if value is not None}
