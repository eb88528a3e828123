"""`refsd export weights`: a model's tensors as plain files, in any layout."""

import argparse

from refsd.cli.arguments import Parser, choice
from refsd.cli.report import Warnings, answer
from refsd.families import COMPONENTS

ABOUT = """\
Write a model's weights for programs in other languages: raw numbers with a list
of offsets, npy, npz or safetensors, as float32, float16 or
bfloat16.

    refsd export weights -o out --part unet --layout TILE32 --dtype float16
    refsd export weights -o out --only 'vae.decoder.*'"""
KINDS = ("raw", "npy", "npz", "safetensors")
DTYPES = ("float32", "float16", "bfloat16")


def parser() -> Parser:
    """The options of export weights."""
    parser = Parser("refsd export weights -o FOLDER [options]", ABOUT)
    add = parser.add_argument
    add("-o", "--output", metavar="FOLDER", required=True, help="a new or an empty folder")
    add("-m", "--model", metavar="MODEL", help="path or hub id (the bundled model)")
    add("--variant", metavar="NAME", help="files of a folder, such as fp16")
    add("--to", type=choice(*KINDS), metavar="KIND", default="raw",
        help=f"{', '.join(KINDS)} (raw)")
    add("--layout", metavar="NAME", default="NCHW",
        help="NCHW, NHWC, HWIO, TRANSPOSED, NC4HW4, TILE32 and others (NCHW)")
    add("--dtype", type=choice(*DTYPES), metavar="NAME", default="float32",
        help="float32, float16 or bfloat16 (float32)")
    add("--part", type=choice(*COMPONENTS), metavar="NAME", action="append",
        help=f"{', '.join(COMPONENTS)}; may be repeated (all)")
    add("--only", metavar="PATTERN", action="append", default=[],
        help="names such as 'unet.*.attn1.*'; may be repeated")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Write them."""
    from refsd.golden.porting.weights_export import export_weights
    from refsd.pipelines.loading import bundled_model
    from refsd.weights import resolve

    model = bundled_model() if options.model is None else (
        resolve(options.model, variant=options.variant))
    with Warnings(show=not options.json) as warnings:
        out = export_weights(model, options.output, options.to, layout=options.layout,
                             dtype=options.dtype, parts=options.part or COMPONENTS,
                             only=options.only, variant=options.variant)
    size = sum(tensor["bytes"] for tensor in out.tensors.values())
    return answer(
        options.json, {"folder": str(out.folder), "kind": out.kind, "layout": out.layout,
                       "tensors": len(out.tensors), "bytes": size, "warnings": warnings.said},
        f"{out.folder}: {len(out.tensors)} tensors, {size:,} bytes, as {out.kind}, {out.layout}")
