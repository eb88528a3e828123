"""What the files of a network hold against what it must have, before a tensor is read."""

import difflib
import logging
import re
from collections.abc import Mapping
from typing import NamedTuple

from refsd.errors import ModelError
from refsd.families import family_of_width
from refsd.networks import Shape
from refsd.weights.header import FLOATS, WEIGHTS, TensorInfo

logger = logging.getLogger(__name__)
# What ComfyUI, torchao and bitsandbytes store beside weights that mean something only with it.
SCALES = re.compile(r"(^|\.)(scaled_fp8|scale_weight|weight_scal\w+|comfy_quant|absmax|quant_map)$")
# Of training, or of CLIP's other half: left out without a word, no picture depends on it.
OF_TRAINING = re.compile(
    r"(^|\.)(loss\..*|model_ema\..*|logvar|logit_scale|text_projection(\.weight)?|vision_model\..*"
    r"|visual_projection\..*)$"
)


class Stored(NamedTuple):
    """What a file says of one tensor, and of the scales of its outputs, if it has them."""

    dtype: str
    shape: Shape
    scale: TensorInfo | None = None

    @property
    def readable(self) -> bool:
        """Whether it is of a type of floats, or int8 with a float32 for each output."""
        if self.scale is None:
            return self.dtype in WEIGHTS
        outputs = (self.shape[0], *[1] * (len(self.shape) - 1)) if self.shape else ()
        return self.dtype == "I8" and self.scale.dtype == "F32" and self.scale.shape == outputs


def check(stored: Mapping[str, Stored], expected: Mapping[str, Shape], where: str) -> None:
    """ModelError unless every expected tensor is there with its shape and a float dtype.

    The message names up to five missing, wrongly shaped and wrongly typed tensors each, the
    missing ones with the nearest name there. Tensors that were not expected are logged.
    """
    extra = sorted(stored.keys() - expected.keys())
    missing = [name for name in expected if name not in stored]
    shapes = [n for n, shape in expected.items() if n in stored and stored[n].shape != shape]
    dtypes = [n for n in expected if n in stored and not stored[n].readable]
    scales = [name for name in extra if SCALES.search(name)]

    problems = [
        _listed("missing", missing, lambda name: name + _nearest(name, extra)),
        _listed("of another shape", shapes,
                lambda name: f"{name} is {stored[name].shape}, expected {expected[name]}"),
        _listed("of a type that is not read", dtypes,
                lambda name: f"{name} is {stored[name].dtype}" + _scaled(stored[name].scale)),
        _listed("with scales of quantized weights, which refsd does not apply", scales, _short),
    ]  # fmt: skip
    problems = [problem for problem in problems if problem]
    if problems:
        hint = _family_hint(stored, expected, shapes)
        if dtypes or scales:
            hint += f". Save the weights as one of {', '.join(FLOATS)}, without scales"
        raise ModelError(f"{where}: {'; '.join(problems)}{hint}")
    extra = [name for name in extra if not OF_TRAINING.search(name)]
    if extra:
        logger.warning("%s: ignoring %s", where, _listed("unexpected", extra, _short))


def _listed(kind: str, names: list[str], show) -> str:
    """"2 tensors missing: a, b"; an empty string for none."""
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {noun} {kind}: {', '.join(show(name) for name in names[:5])}{more}"


def _scaled(scale: TensorInfo | None) -> str:
    return "" if scale is None else f" with a scale {scale.dtype} {scale.shape}"


def _short(name: str) -> str:
    return ascii(name)[1:-1][:200]


def _nearest(name: str, extra: list[str]) -> str:
    near = difflib.get_close_matches(name, extra[:1000], n=1, cutoff=0.8)
    return f" (nearest: {_short(near[0])})" if near else ""


def _family_hint(stored, expected, wrong: list[str]) -> str:
    for name in wrong:
        if name.endswith("attn2.to_k.weight") and len(stored[name].shape) == 2:
            theirs, ours = stored[name].shape[1], expected[name][1]
            if theirs != ours and (family := family_of_width(theirs)):
                return (f". The text width is {theirs}, not {ours}: "
                        f"these look like weights of {family}")
    return ""
