"""What the port leaves on the disk, and the maps of its names that its author would write."""

import json

import numpy as np

BYTES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8"}

RESNET = {"silu": "act1", "time_emb_proj": "time", "add": "c1", "silu.3": "act2",
          "conv_shortcut": "short", "add.2": "c2"}
TRANSFORMER = {"norm": "gn", "proj_in": "pin", "transformer_blocks.0.norm1": "ln1",
               # One matrix product makes several projections, of 128 channels in each of the model.
               "transformer_blocks.0.attn1.to_q": "qkv[..., :128]",
               "transformer_blocks.0.attn1.to_k": "qkv[..., 128:256]",
               "transformer_blocks.0.attn1.to_v": "qkv[..., 256:]",
               "transformer_blocks.0.attn1.attention": "self",
               "transformer_blocks.0.attn1.add": "so", "transformer_blocks.0.norm2": "ln2",
               "transformer_blocks.0.attn2.to_q": "q",
               "transformer_blocks.0.attn2.to_k": "kv[..., :128]",
               "transformer_blocks.0.attn2.to_v": "kv[..., 128:]",
               "transformer_blocks.0.attn2.attention": "cross",
               "transformer_blocks.0.attn2.add": "co", "transformer_blocks.0.norm3": "ln3",
               "transformer_blocks.0.ff.geglu": "ff1", "transformer_blocks.0.ff.add": "ff2",
               "add": "pout"}
PLACES = {"down_blocks.*.resnets.*": "d*.r*", "mid_block.resnets.*": "m.r*",
          "up_blocks.*.resnets.*": "u*.r*"}
RUN = {"tokens/*/ids": "clip.*.ids", "denoise/noise": "denoise.noise",
       "denoise/initial": "denoise.noise", "denoise/concat": "denoise.text",
       "denoise/*/concat": "denoise.*.pair", "denoise/*/scaled": "denoise.*.scaled",
       "denoise/*/eps_uncond": "denoise.*.u", "denoise/*/eps_cond": "denoise.*.c",
       "denoise/*/guided": "denoise.*.v", "denoise/*/latents": "denoise.*.x"}
UNET = {"unet/*/time_embedding.timestep_embedding": "unet.*.waves",
        "unet/*/time_embedding.silu": "unet.*.time1",
        "unet/*/time_embedding.linear_2": "unet.*.time2", "unet/*/conv_in": "unet.*.first",
        **{f"unet/*/{path}.{golden}": f"unet.*.{place}.{mine}" for path, place in PLACES.items()
           for golden, mine in RESNET.items()},
        **{f"unet/*/{path}.{golden}".replace("resnets", "attentions"):
           f"unet.*.{place}.{mine}".replace(".r*", ".t*") for path, place in PLACES.items()
           for golden, mine in TRANSFORMER.items()},
        "unet/*/up_blocks.*.resnets.*.concat": "unet.*.u*.r*.cat",
        "unet/*/down_blocks.*.downsamplers.0.conv": "unet.*.d*.down",
        "unet/*/up_blocks.*.upsamplers.0.conv": "unet.*.u*.up",
        "unet/*/silu": "unet.*.act", "unet/*/conv_out": "unet.*.last"}
LAYER = "text/*/text_model.encoder.layers.*"
TEXT = {"text/*/text_model.embeddings.add": "clip.*.emb",
        **{f"{LAYER}.{golden}": f"clip.*.l*.{mine}" for golden, mine in {
            "layer_norm1": "ln1", "self_attn.q_proj": "qkv[..., :128]",
            "self_attn.k_proj": "qkv[..., 128:256]", "self_attn.v_proj": "qkv[..., 256:]",
            "self_attn.attention": "attn", "self_attn.add": "proj", "layer_norm2": "ln2",
            "mlp.quick_gelu": "fc1", "mlp.add": "fc2"}.items()},
        "text/*/last_hidden_state": "clip.*.last"}
BLOCKS = {"text/*/text_model.embeddings": "clip.*.emb", LAYER: "clip.*.l*.fc2",
          "text/*/last_hidden_state": "clip.*.last", "unet/*/time_embedding": "unet.*.time2",
          **{f"unet/*/{path}": f"unet.*.{place}.c2" for path, place in PLACES.items()},
          **{f"unet/*/{path}".replace("resnets", "attentions"):
             f"unet.*.{place}.pout".replace(".r*", ".t*") for path, place in PLACES.items()},
          "unet/*/down_blocks.*.downsamplers.0": "unet.*.d*.down",
          "unet/*/up_blocks.*.upsamplers.0": "unet.*.u*.up", "unet/*/conv_out": "unet.*.last"}

KINDS = ("full", "blocks", "unet")
MAPS = {"full": {**RUN, **TEXT, **UNET}, "blocks": {**RUN, **BLOCKS}, "unet": UNET}


def part(kind, dump, steps=(0,)):
    """The tensors that a dump of a kind has: all; blocks and latents; a UNet's first step."""
    ends = {".".join(mine.split(".")[-1:]) for mine in MAPS["blocks"].values()}
    opened = {f"unet.{step}." for step in steps}

    def kept(name):
        if name.startswith("unet.") and not name.startswith(tuple(opened)):
            return False
        if kind == "unet":
            return name.startswith("unet.")
        return kind == "full" or name.startswith("denoise.") or name.rpartition(".")[2] in ends

    return {name: array for name, array in dump.items() if kept(name)}


def write_raw(folder, dump, format):
    """acts.bin and index.json; images as they lie in memory, with the shape that they mean."""
    folder.mkdir(parents=True)
    entries, offset = {}, 0
    with open(folder / "acts.bin", "wb") as file:
        for name, array in dump.items():
            dtype = _dtype(array, format)
            data = _bytes(array, dtype)
            shape, layout = list(array.shape), {}
            if array.ndim == 4:
                N, H, W, C = shape
                shape, layout = [N, C, H, W], {"layout": "NHWC"}
            entries[name] = {"file": "acts.bin", "offset": offset, "shape": shape, "dtype": dtype,
                             **layout}
            offset += file.write(data)
    (folder / "index.json").write_text(json.dumps({"tensors": entries}))


def write_npz(file, dump):
    """Everything as float32 and channels first, as a script in Python would leave it."""
    np.savez(file, **{name: array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
                      for name, array in dump.items()})


def _dtype(array, format):
    """A short format where the tensor's numbers are of it: float32 latents stay that."""
    if array.dtype.kind == "i":
        return "int64"
    return format if np.array_equal(_back(_bytes(array, format), format).reshape(array.shape),
                                    array, equal_nan=True) else "float32"


def _bytes(array, dtype):
    if dtype == "bfloat16":
        return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array).astype(BYTES[dtype]).tobytes()


def _back(data, dtype):
    found = np.frombuffer(data, BYTES[dtype])
    return (found.astype("<u4") << 16).view("<f4") if dtype == "bfloat16" else found.astype("f4")
