"""`refsd golden export`: a pack's tensors in another kind of file and another layout."""

import argparse

from refsd.cli.arguments import Parser, choice
from refsd.cli.report import answer
from refsd.errors import UsageError

ABOUT = """\
Write the tensors of a golden pack for programs in other languages.

    refsd golden export PACK -o out --to raw --layout NHWC --only 'unet/000/*'
    refsd golden export PACK -o out --to onnx
    refsd golden export PACK -o out --to onnx-networks --only unet
    refsd golden export PACK -o out --to polygraphy --map names.json
    refsd golden export PACK -o pack.zip --to pack

onnx writes each recorded op as CASE/model.onnx, CASE/test_data_set_0/input_0.pb
and output_0.pb, with call.json beside them; onnx-networks likewise each network
with its weights and recorded calls, and the JSON for Polygraphy. Both need pip install refsd[onnx].
polygraphy writes inputs.json and outputs.json for its --load-inputs and
--load-outputs. pack is the pack itself as one .zip or .tar.zst."""
KINDS = ("raw", "npy", "npz", "safetensors", "onnx", "onnx-networks", "polygraphy", "pack")


def parser() -> Parser:
    """The options of golden export."""
    parser = Parser("refsd golden export PACK -o FOLDER [options]", ABOUT)
    add = parser.add_argument
    add("pack", metavar="PACK", help="a folder, .zip or .tar.zst")
    add("-o", "--output", metavar="FOLDER", required=True,
        help="a new or an empty folder; a file for --to pack")
    add("--to", type=choice(*KINDS), metavar="KIND", default="raw",
        help=f"{', '.join(KINDS)} (raw)")
    add("--layout", metavar="NAME", default="NCHW",
        help="NCHW, NHWC, HWIO, TRANSPOSED, NC4HW4, TILE32 and others (NCHW)")
    add("--only", metavar="PATTERN", action="append", default=[],
        help="names such as 'unet/000/*'; may be repeated")
    add("--map", metavar="FILE", help="for polygraphy: JSON of the names that your graph has for "
        "the pack's, as golden compare takes it")
    add("-m", "--model", metavar="MODEL", help="where the pack's model is, for onnx and "
        "onnx-networks; its files must be the same")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Write it."""
    from refsd.golden.packs.pack import Pack
    from refsd.golden.porting.export import export_pack
    from refsd.golden.porting.onnx import export_onnx
    from refsd.golden.porting.onnx_networks import export_networks
    from refsd.golden.porting.polygraphy import export_polygraphy
    from refsd.golden.recording.replay import weights

    if options.map is not None and options.to != "polygraphy":
        raise UsageError("--map names the tensors of --to polygraphy; leave it out")
    if options.to == "pack":
        return _pack_up(options)
    if options.to.startswith("onnx") and options.layout.upper() != "NCHW":
        raise UsageError(f"--to {options.to} keeps the logical layout, NCHW; leave --layout out")
    with Pack.open(options.pack) as pack:
        if options.to == "onnx":
            written = export_onnx(pack, options.output, only=options.only,
                                  read_weight=weights(pack, options.model))
        elif options.to == "onnx-networks":
            written = export_networks(pack, options.output, only=options.only,
                                      model=options.model)
        elif options.to == "polygraphy":
            written = export_polygraphy(pack, options.output, layout=options.layout,
                                        only=options.only, name_map=options.map)
        else:
            written = export_pack(pack, options.output, options.to, layout=options.layout,
                                  only=options.only).tensors
    what = {"onnx": "op", "onnx-networks": "network"}.get(options.to, "tensor")
    what += "s" * (len(written) != 1)
    return answer(
        options.json, {"folder": options.output, "kind": options.to,
                       "layout": options.layout.upper(), "tensors": list(written)},
        f"{options.output}: {len(written)} {what} as {options.to}")


def _pack_up(options: argparse.Namespace) -> int:
    from refsd.golden.packs.archive import pack_up
    from refsd.golden.packs.pack import Pack

    if options.layout.upper() != "NCHW" or options.only:
        raise UsageError("--to pack keeps the pack as it is; leave --layout and --only out")
    with Pack.open(options.pack) as pack:
        pack_up(pack.folder, options.output)
    return answer(
        options.json, {"file": options.output, "kind": "pack", "tensors": list(pack.entries)},
        f"{options.output}: the pack, {len(pack.entries):,} tensor"
        + ("" if len(pack.entries) == 1 else "s"))
