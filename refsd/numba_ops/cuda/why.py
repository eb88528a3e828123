"""Which kernel an op takes on a GPU of some capability, and why. Nothing is computed, none needed.

Each op's rule is `choose_...` beside it, a pure function of shapes, dtype and capability. It says
by its parameters what it looks at, and gets that of a call.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from refsd.contracts import Output, Spec
from refsd.errors import UsageError
from refsd.numba_ops.cuda import attention, conv, linear, norm, softmax
from refsd.numba_ops.cuda.plan import TURING
from refsd.ops.conv import pair, sides
from refsd.registry import ops


class Explanation(NamedTuple):
    """A kernel, the constants that it is made with, parts of each sum, the reason, the result."""

    kernel: str
    constants: tuple
    pieces: int
    why: str
    capability: int
    output: Output


def explain(op: str, shapes: Sequence[tuple], *, dtype: str, capability: int,
            **options: Any) -> Explanation:
    """The kernel of op(*arrays of these shapes, **options) on a GPU of that capability, 80 for 8.0.

    Weights of norms need no shape. UsageError for what the op refuses, or an op with one kernel.

    >>> explain("layer_norm", [(2, 4096, 320)], dtype="float16", capability=80, eps=1e-5).why
    'rows of 320: a warp holds one in registers'
    """
    if op not in RULES:
        raise UsageError(f"{op} has one kernel for all calls on a GPU; ask about one of: "
                         f"{', '.join(RULES)}")
    if capability < TURING:
        raise UsageError(f"capability is {capability}; give {TURING} (for 7.5) or more")
    shapes = [*shapes, *_weights(op, shapes)]
    named = dict(zip(ops()[op].signature.parameters, shapes))
    wanted = [name for name, parameter in ops()[op].signature.parameters.items()
              if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    required = [name for name in wanted if ops()[op].signature.parameters[name].default is not None]
    if not len(required) <= len(shapes) <= len(wanted):
        raise UsageError(f"{op} is of the arrays {', '.join(wanted)}, {len(shapes)} shapes were "
                         "given; give one each")
    arrays = [Spec(shape, dtype) for shape in shapes]
    masked = options.pop("masked", False)
    output = ops()[op].contract(*arrays, **options)
    rule, known = RULES[op](named, options, output.shape)
    known |= {"dtype": dtype, "capability": capability, "masked": masked}
    choice = rule(**{name: known[name] for name in inspect.signature(rule).parameters})
    return Explanation(choice.factory.name, choice.constants, choice.pieces, choice.why, capability,
                       output)


def _weights(op, shapes):
    """The shapes of a norm's weight and bias."""
    count = {"group_norm": 2, "layer_norm": 2, "rms_norm": 1}.get(op, 0)
    return [shapes[0][1:2] if op == "group_norm" else shapes[0][-1:]] * count * (len(shapes) == 1)


def _convolution(shapes, options, result) -> tuple[Callable, dict[str, Any]]:
    stride, padding, groups = (options.get("stride", 1), options.get("padding", 0),
                               options.get("groups", 1))
    (N, _, Ho, Wo), weight = result, shapes["weight"]
    if weight[2:] == pair(stride) == (1, 1) and groups == 1 and sides(padding) == ((0, 0), (0, 0)):
        return linear.choose_linear, {"x": (N, Ho * Wo, weight[1]), "weight": weight[:2]}
    return conv.choose_conv2d, {"result": result, "weight": weight, "groups": groups}


def _attention(shapes, options, result):
    heads = options["heads"]
    return attention.choose_attention, {"d": shapes["q"][-1] // heads, "e": result[-1] // heads}


def _softmax(shapes, options, result):
    return softmax.choose_softmax, {"K": shapes["x"][options["axis"]]}


# op: a function of shapes, options and the result's shape -> its rule, and what that may look at
RULES: dict[str, Callable] = {
    "conv2d": _convolution, "attention": _attention, "softmax": _softmax,
    "linear": lambda shapes, *_: (linear.choose_linear, shapes),
    "matmul": lambda shapes, *_: (linear.choose_matmul, shapes),
    "group_norm": lambda shapes, options, _: (norm.choose_group_norm, {
        "shape": shapes["x"], "groups": options["groups"]}),
    "layer_norm": lambda shapes, *_: (norm.choose_layer_norm, {"shape": shapes["x"]}),
    "rms_norm": lambda shapes, *_: (norm.choose_rms_norm, {"shape": shapes["x"]}),
}
