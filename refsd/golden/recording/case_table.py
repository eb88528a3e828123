"""The cases of the pack of ops: (name, inputs, options) of an op, by its kind or its examples.

An input is (shape, kind, scale) as recording.cases.numbers takes it, a list of those, a number
or None. Shapes are those of Stable Diffusion made small, and odd: no multiples of 4, one channel
more or less than a vector holds, the padding that only the VAE has.
"""

import functools
import math
from typing import Any

from refsd.examples import below, calls, with_tensors
from refsd.kinds import Map, Pair
from refsd.registry import Op

Row = tuple[str, dict[str, Any], dict[str, Any]]
SMALL = 2.0**-3  # of weights, so that results are about as large as inputs
KINDS = ("plain", "zeros", "wide", "big")


def rows(op: Op) -> list[Row]:
    """The cases of an op: those written out below, or those of its kind, or its examples."""
    if op.name in HARD:
        return HARD[op.name]
    if isinstance(op.kind, Map):
        return _map(op.kind, calls(op)[0].options)
    if isinstance(op.kind, Pair):
        return _pairs("positive" if op.kind.divides else "plain")
    return [(f"example_{i}", with_tensors(call, functools.partial(_input, op, call)).inputs,
             call.options) for i, call in enumerate(calls(op))]


def _input(op, call, name, spec):
    """An array of an example as a row has it."""
    tensor = op.contract.tensor(name.partition(".")[0])
    return spec.shape, ("plain" if tensor.kind == "float" else
                        f"below_{below(op, call.inputs, tensor.below)}")


def _map(kind: Map, options: dict[str, Any]) -> list[Row]:
    kinds = (("positive", "big") if kind.low == 0 else
             ("plain", "zeros") if kind.high < math.inf else KINDS)
    cases = [(values, {"x": ((2, 5, 3, 7), values, kind.scale)}, options) for values in kinds]
    return [*cases, ("one", {"x": ((1,), kinds[0], kind.scale)}, options),
            ("vector_tails", {"x": ((67,), kinds[0], kind.scale)}, options)]


def _pairs(second: str) -> list[Row]:
    shapes = {"alike": (2, 5, 3, 7), "bias_of_channels": (2, 5, 1, 1), "bias_of_tokens": (7,)}
    cases = [(name, {"a": ((2, 5, 3, 7),), "b": (shape, second)}, {})
             for name, shape in shapes.items()]
    return [*cases, ("number", {"a": ((3, 13),), "b": 0.1}, {}),
            ("wide", {"a": ((3, 13), "wide"), "b": ((3, 13), "wide" if second == "plain" else
                                                      second)}, {}),
            ("big", {"a": ((3, 13), "big"), "b": ((3, 13), "big")}, {})]


def _conv(x, kernel, kind="plain", bias=True, **options: Any) -> tuple[dict, dict]:
    inputs = {"x": (x, kind), "weight": (kernel, "plain", SMALL)}
    return {**inputs, "bias": ((kernel[0],),) if bias else None}, options


CONV2D = [(name, *row) for name, row in {
    "unet_3x3": _conv((2, 33, 9, 7), (17, 33, 3, 3), padding=1),
    "conv_in": _conv((1, 4, 8, 8), (20, 4, 3, 3), padding=1),
    "conv_out": _conv((1, 20, 8, 8), (4, 20, 3, 3), padding=1),
    "shortcut_1x1": _conv((2, 19, 5, 3), (13, 19, 1, 1)),
    "downsample_unet": _conv((1, 12, 9, 10), (12, 12, 3, 3), stride=2, padding=1),
    "downsample_vae": _conv((1, 12, 8, 10), (12, 12, 3, 3), stride=2,
                            padding=((0, 1), (0, 1))),
    "no_bias": _conv((1, 5, 6, 6), (7, 5, 3, 3), bias=False, padding=1),
    "one_pixel": _conv((2, 6, 1, 1), (5, 6, 3, 3), padding=1),
    "zeros": _conv((1, 16, 7, 9), (8, 16, 3, 3), "zeros", padding=1),
    "wide": _conv((1, 16, 7, 9), (8, 16, 3, 3), "wide", padding=1),
    "big": _conv((1, 16, 7, 9), (8, 16, 3, 3), "big", padding=1),
    "border": _conv((1, 8, 9, 11), (8, 8, 3, 3), "border", padding=1),
    "uneven_padding": _conv((1, 3, 5, 6), (4, 3, 3, 2), padding=((2, 0), (0, 1))),
    "groups_and_dilation": _conv((1, 6, 9, 8), (8, 3, 3, 3), groups=2, dilation=2, padding=2),
    "long_sums": _conv((1, 259, 3, 4), (3, 259, 3, 3), padding=1),
}.items()]


def _norm(channels, positions, kinds=KINDS, *, bias=True, **options: Any) -> list[Row]:
    weights = {"weight": ((channels,),), **({"bias": ((channels,),)} if bias else {})}
    return [(kind, {"x": ((2, *positions), kind), **weights}, options) for kind in kinds]


def _attention(L, S, C, D, kind="plain", scale=1.0, mask=None, **options: Any):
    inputs = {"q": ((2, L, C), kind, scale), "k": ((2, S, C), kind, scale),
              "v": ((2, S, D), "plain" if kind == "big" else kind)}
    return {**inputs, **({"mask": (mask, "plain", 4.0)} if mask else {})}, options


ATTENTION = [(name, *row) for name, row in {
    "self": _attention(17, 17, 24, 24, heads=3),
    "text": _attention(9, 77, 16, 16, heads=2),
    "causal": _attention(13, 13, 20, 20, heads=4, causal=True),
    "vae_one_head": _attention(15, 15, 34, 34, heads=1),
    "one_key": _attention(5, 1, 8, 8, heads=2),
    "narrow_values": _attention(6, 7, 12, 6, heads=2),
    "masked": _attention(6, 7, 12, 12, heads=2, mask=(2, 1, 6, 7)),
    "sharp": _attention(9, 11, 16, 16, scale=8.0, heads=2),
    "zeros": _attention(9, 11, 16, 16, "zeros", heads=2),
    "big": _attention(6, 7, 16, 16, "big", 2.0**-6, heads=2),
}.items()]


def _linear(rows, K, out, kind="plain", bias=True) -> dict:
    return {"x": ((*rows, K), kind), "weight": ((out, K), "plain", SMALL),
            "bias": ((out,),) if bias else None}


LINEAR = [(name, inputs, {}) for name, inputs in {
    "tokens": _linear((2, 5), 40, 23), "time": _linear((2,), 67, 33),
    "no_bias": _linear((3, 7), 31, 8, bias=False), "long_sums": _linear((2,), 1283, 5),
    "one_row": _linear((1,), 9, 7), "zeros": _linear((5,), 130, 9, "zeros"),
    "wide": _linear((5,), 130, 9, "wide"), "big": _linear((5,), 130, 9, "big"),
}.items()]
LINEAR_ADD = [(name, {**inputs, "addend": ((*inputs["x"][0][:-1], inputs["weight"][0][0]),)}, {})
              for name, inputs, _ in LINEAR]
LINEAR_GEGLU = [(name, _linear(inputs["x"][0][:-1], inputs["x"][0][-1],
                               2 * inputs["weight"][0][0], inputs["x"][1],
                               inputs["bias"] is not None), {}) for name, inputs, _ in LINEAR]
MATMUL = [(name, {"a": (a, kind), "b": (b,)}, {}) for name, a, b, kind in (
    ("plain", (5, 9), (9, 17), "plain"), ("batches", (2, 1, 5, 9), (3, 9, 7), "plain"),
    ("long_sums", (3, 1029), (1029, 5), "plain"), ("zeros", (4, 33), (33, 6), "zeros"),
    ("wide", (4, 33), (33, 6), "wide"), ("big", (4, 33), (33, 6), "big"))]

_ANGLES = {"cos_first": (32, True, 0), "sin_first": (34, False, 1), "odd": (7, True, 0.5)}
TIMESTEPS = [(f"{name}_{order}", {"timesteps": ((7,), f"below_{below}")},
              {"dim": dim, "flip_sin_to_cos": flip, "freq_shift": shift, "dtype": "float32"})
             for name, below in (("steps", 1000), ("smallest", 3))
             for order, (dim, flip, shift) in _ANGLES.items()]


def _resize(**options: Any) -> list[Row]:
    sizes = {"twice": ((4, 6), (8, 12)), "odd": ((3, 5), (7, 9)), "smaller": ((8, 9), (3, 4)),
             "from_one_pixel": ((1, 1), (3, 2))}
    return [(name, {"x": ((2, 5, *before),)}, {"height": after[0], "width": after[1], **options})
            for name, (before, after) in sizes.items()] + [
        ("border", {"x": ((1, 3, 5, 7), "border")}, {"height": 10, "width": 13, **options})]


def _aligned(align_corners: bool) -> list[Row]:
    suffix = "corners" if align_corners else "half_pixel"
    return [(f"{name}_{suffix}", inputs, options)
            for name, inputs, options in _resize(align_corners=align_corners)]


HARD: dict[str, list[Row]] = {
    "geglu": [(kind, {"x": ((2, 5, 26), kind)}, {}) for kind in KINDS],
    "softmax": [*((f"{kind}_last", {"x": ((3, 5, 19), kind, 2.0)}, {"axis": -1}) for kind in
                  ("plain", "zeros", "big")),
                ("middle", {"x": ((3, 5, 19),)}, {"axis": 1}),
                ("sharp", {"x": ((4, 77), "plain", 32.0)}, {"axis": -1})],
    "linear": LINEAR, "linear_add": LINEAR_ADD, "linear_geglu": LINEAR_GEGLU, "matmul": MATMUL,
    "conv2d": CONV2D, "attention": ATTENTION,
    "group_norm": [*_norm(36, (36, 5, 7), groups=3, eps=1e-5),
                   *((f"{name}_eps_1e-6", *row) for name, *row in
                     _norm(64, (64, 3, 3), ("plain", "big"), groups=32, eps=1e-6)),
                   ("small_deviation", {"x": ((1, 8, 4, 5), "plain", 2.0**-12),
                                        "weight": ((8,),), "bias": ((8,),)},
                    {"groups": 4, "eps": 1e-6})],
    "layer_norm": [*_norm(41, (5, 41), eps=1e-5),
                   *((f"{name}_long", *row) for name, *row in
                     _norm(771, (3, 771), ("plain", "big"), eps=1e-5)),
                   ("no_weight", {"x": ((2, 5, 41),)}, {"eps": 1e-6}),
                   ("no_bias", {"x": ((2, 5, 41),), "weight": ((41,),)}, {"eps": 1e-6})],
    "rms_norm": _norm(41, (5, 41), bias=False, eps=1e-6),
    "embedding": [("tokens", {"ids": ((2, 9), "below_50"), "weight": ((50, 13),)}, {})],
    "gather": [("end_of_text", {"x": ((3, 7, 10),), "index": ((3,), "below_7")}, {})],
    "timestep_embedding": TIMESTEPS,
    "rope": [(name, {"x": ((2, 3, 9, 10),), "positions": ((9,), "below_100")},
              {"base": 10000.0, "interleaved": interleaved})
             for name, interleaved in (("halves", False), ("interleaved", True))],
    "upsample_nearest": _resize(),
    "upsample_bilinear": [*_aligned(False), *_aligned(True)],
    "to_tokens": [("odd", {"x": ((2, 13, 3, 5),)}, {}), ("one_pixel", {"x": ((2, 6, 1, 1),)}, {})],
    "to_image": [("odd", {"x": ((2, 15, 13),)}, {"height": 3, "width": 5}),
                 ("one_pixel", {"x": ((2, 17),)}, {"height": 1, "width": 1})],
    "concat": [("skip", {"arrays": [((2, 13, 3, 5),), ((2, 6, 3, 5),)]}, {"axis": 1}),
               ("batch", {"arrays": [((1, 4, 3, 5),), ((1, 4, 3, 5),)]}, {"axis": 0}),
               ("three", {"arrays": [((2, 3),), ((2, 1),), ((2, 5),)]}, {"axis": -1})],
    "slice": [("halves", {"x": ((2, 8, 3, 5),)}, {"axis": 1, "start": 4, "stop": 8}),
              ("inside", {"x": ((3, 17),)}, {"axis": -1, "start": 3, "stop": 10})],
    "pad": [("vae", {"x": ((1, 3, 4, 5),)}, {"widths": ((0, 0), (0, 0), (0, 1), (0, 1))}),
            ("around", {"x": ((2, 3, 4, 5),)}, {"widths": ((1, 0), (2, 3), (1, 1), (0, 2))})],
    "transpose": [("channels_last", {"x": ((2, 5, 3, 7),)}, {"axes": (0, 2, 3, 1)}),
                  ("reversed", {"x": ((2, 5, 3, 7),)}, {"axes": (3, 2, 1, 0)})],
    "reshape": [("heads", {"x": ((2, 5, 21),)}, {"shape": (2, 5, 3, 7)}),
                ("merged", {"x": ((2, 5, 3, 7),)}, {"shape": (10, 21)})],
}  # fmt: skip
