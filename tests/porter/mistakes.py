"""Fifty mistakes of a port, one at a time: what is wrong, where it first shows, and why.

op: the golden name of the first tensor of a full dump that is wrong; where kernels are fused it is
the end of the chain. reasons: the keys that say it rightly, none where nobody can know; asked:
whether the count of right reasons takes it. hidden: formats whose rounding is larger than it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import kernels
from .port import by_epsilon

HALVES = ("bfloat16", "float16")
DOWN, MID, UP = "unet/000/down_blocks", "unet/000/mid_block", "unet/000/up_blocks"
BLOCK = "transformer_blocks.0"


@dataclass(frozen=True)
class Mistake:
    """`others` are further names that are right: the parts of a merged tensor."""

    bugs: dict[str, Any]
    op: str
    reasons: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    asked: bool = field(default=True)
    block: str | None = ""  # None: no block is wrong; "": the one around op

    @property
    def in_unet(self):
        """Whether the first call of the UNet alone shows it."""
        return self.op.startswith("unet/000")


def gated(by, swapped=False):
    def then(y):
        left, gate = np.split(y, 2, axis=-1)
        return gate * by(left) if swapped else left * by(gate)

    return lambda right: then


def part_of(count, index, change):
    """One of the merged weights, (in, out), changed."""
    def changed(weight):
        parts = np.split(weight, count, axis=-1)
        parts[index] = change(parts[index])
        return np.concatenate(parts, axis=-1)

    return changed


def exchanged(i, j, count):
    def changed(weight):
        parts = np.split(weight, count, axis=-1)
        parts[i], parts[j] = parts[j], parts[i]
        return np.concatenate(parts, axis=-1)

    return changed


def one_off(y):
    """What a race leaves: one number that is not the right one."""
    y = y.copy()
    y[tuple(n // 2 for n in y.shape)] += 1
    return y


def overflowing(y):
    """The three largest numbers of a sum in float16 that went beyond its range on the way."""
    y = y.copy().ravel()
    largest = np.argsort(np.abs(y))[-3:]
    y[largest] = np.copysign(np.inf, y[largest])
    return y


def in_shape(change):
    return lambda y: change(y).reshape(y.shape)


def nan_in_tile(y):
    y = y.copy()
    y[:, -1, -4:, -8:] = np.nan
    return y


def as_int8(weight):
    unit = np.abs(weight).max(axis=0) / 127
    return np.rint(weight / unit) * unit


def to_64_keys(both):
    return tuple(np.pad(x, ((0, 0), (0, 64 - x.shape[1]), (0, 0))) for x in both)


def bilinear(right, h):
    """Twice as high and wide, half-pixel centres."""
    for axis in (1, 2):
        n = h.shape[axis]
        at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        part = (at - low).astype("f4").reshape([-1 if a == axis else 1 for a in range(4)])
        high = np.minimum(low + 1, n - 1)
        h = h.take(low, axis) * (1 - part) + h.take(high, axis) * part
    return h


def moved(right, h):
    """One pixel to the right, zeros from the left."""
    return np.pad(right, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]


def padded_with_0(ids):
    end = int(np.argmax(ids[0] == ids.max()))
    return np.where(np.arange(ids.shape[1]) > end, 0, ids)


LAYER = "text/000/text_model.encoder.layers"
WAVES = "unet/000/time_embedding.timestep_embedding"

MISTAKES = {
    # norms
    "resnet eps 1e-6": Mistake({"d1.r0.act1.eps": 1e-6}, f"{DOWN}.1.resnets.0.silu",
                               ("wrong_eps",), HALVES, asked=False),
    "transformer eps 1e-5": Mistake({"d1.t0.gn.eps": 1e-5}, f"{DOWN}.1.attentions.0.norm",
                                    ("wrong_eps",), HALVES, asked=False),
    "layer norm eps 1e-12": Mistake({"d1.t0.ln2.eps": 1e-12},
                                    f"{DOWN}.1.attentions.0.{BLOCK}.norm2", ("wrong_eps",), HALVES,
                                    asked=False),
    "group norm eps 1e-3": Mistake({"m.r0.act1.eps": 1e-3}, f"{MID}.resnets.0.silu",
                                   ("wrong_eps",)),
    "16 groups": Mistake({"d0.r0.act2.groups": 16}, f"{DOWN}.0.resnets.0.silu.3",
                         ("wrong_groups",)),
    "groups interleaved": Mistake({"u1.r0.act1.interleaved": True}, f"{UP}.1.resnets.0.silu",
                                  ("wrong_groups",)),
    "variance n - 1": Mistake({"m.r1.act2.ddof": 1}, f"{MID}.resnets.1.silu.3",
                              ("biased_variance",)),
    "silu forgotten": Mistake({"d2.r0.act2.then": None}, f"{DOWN}.2.resnets.0.silu.3",
                              ("missing_silu",)),
    # gates
    "tanh gelu": Mistake({"d1.t0.ff1.then": gated(kernels.gelu_tanh)},
                         f"{DOWN}.1.attentions.0.{BLOCK}.ff.geglu", ("gelu_tanh",)),
    "geglu halves": Mistake({"m.t0.ff1.then": gated(kernels.gelu, True)},
                            f"{MID}.attentions.0.{BLOCK}.ff.geglu", ("geglu_swapped",)),
    "gate silu": Mistake({"u0.t1.ff1.then": gated(kernels.silu)},
                         f"{UP}.0.attentions.1.{BLOCK}.ff.geglu", ("silu",)),
    # attention
    "scale 1/sqrt(C)": Mistake({"d2.t0.self.scale": 128**-0.5},
                               f"{DOWN}.2.attentions.0.{BLOCK}.attn1.attention",
                               ("attention_scale",)),
    "scale 1/d": Mistake({"u0.t0.cross.scale": 1 / 32},
                         f"{UP}.0.attentions.0.{BLOCK}.attn2.attention", ("attention_scale",)),
    "head order": Mistake({"m.t0.self.mixed": True},
                          f"{MID}.attentions.0.{BLOCK}.attn1.attention", ("head_order",)),
    "keys and values swapped": Mistake(
        {"d1.t0.qkv.w": exchanged(1, 2, 3)}, f"{DOWN}.1.attentions.0.{BLOCK}.attn1.attention",
        ("swapped_weights", "swapped_inputs"),
        others=(f"{DOWN}.1.attentions.0.{BLOCK}.attn1.to_k",)),
    "causal mask": Mistake({"u1.t0.self.causal": True},
                           f"{UP}.1.attentions.0.{BLOCK}.attn1.attention", ("extra_mask",)),
    "texts of keys swapped": Mistake(
        {"d2.t0.cross.kv": lambda both: tuple(x[::-1] for x in both)},
        f"{DOWN}.2.attentions.0.{BLOCK}.attn2.attention", ("swapped_guidance",)),
    "keys padded to 64": Mistake({"d2.t0.cross.kv": to_64_keys},
                                 f"{DOWN}.2.attentions.0.{BLOCK}.attn2.attention",
                                 ("extra_keys",)),
    # weights
    "to_out transposed": Mistake({"d1.t0.so.w": np.transpose},
                                 f"{DOWN}.1.attentions.0.{BLOCK}.attn1.add",
                                 ("transposed_weight",)),
    "to_q transposed": Mistake(
        {"m.t0.qkv.w": part_of(3, 0, np.transpose)}, f"{MID}.attentions.0.{BLOCK}.attn1.attention",
        ("transposed_weight",), others=(f"{MID}.attentions.0.{BLOCK}.attn1.to_q",)),
    "kernel flipped": Mistake({"d0.r0.c2.w": lambda w: w[::-1, ::-1]},
                              f"{DOWN}.0.resnets.0.add.2", ("flipped_kernel",)),
    "kernel's h and w swapped": Mistake({"u2.r1.c1.w": lambda w: w.swapaxes(0, 1)},
                                        f"{UP}.2.resnets.1.add", ("transposed_weight",)),
    "no bias (linear)": Mistake({"d1.t0.ff2.b": lambda b: 0 * b},
                                f"{DOWN}.1.attentions.0.{BLOCK}.ff.add", ("missing_bias",)),
    "no bias (conv)": Mistake({"m.r0.c1.b": lambda b: 0 * b}, f"{MID}.resnets.0.add",
                              ("missing_bias",)),
    "int8 weights": Mistake({"d2.t0.ff2.w": as_int8}, f"{DOWN}.2.attentions.0.{BLOCK}.ff.add",
                            asked=False),
    # pixels
    "downsampling pads (0, 1)": Mistake({"d0.down.pads": ((0, 1), (0, 1))},
                                        f"{DOWN}.0.downsamplers.0.conv", ("wrong_padding",)),
    "upsampled bilinearly": Mistake({"u0.up.how": bilinear}, f"{UP}.0.upsamplers.0.conv",
                                    ("half_pixel",)),
    "upsampled one pixel off": Mistake({"u1.up.how": moved}, f"{UP}.1.upsamplers.0.conv",
                                       ("half_pixel", "off_by_one", "wrong_padding")),
    "tokens by column": Mistake({"d1.t0.columns": True},
                                f"{DOWN}.1.attentions.0.{BLOCK}.norm1", ("transposed",),
                                block=None),
    # time
    "no time embedding": Mistake({"d1.r0.c1.time": None}, f"{DOWN}.1.resnets.0.add",
                                 ("no_residual",)),
    "sines first": Mistake({"time.sines_first": True}, WAVES, ("sincos_order",)),
    "freq_shift 1": Mistake({"time.shift": 1}, WAVES, ("freq_shift",)),
    "t - 1": Mistake({"time.t": lambda t: t - 1}, WAVES, ("wrong_timestep",)),
    "stale t": Mistake({"denoise.t": lambda t, step: 999}, "denoise/001/eps_uncond", asked=False),
    # residuals and skips
    "ff residual forgotten": Mistake({"u1.t1.ff2.skip": lambda skip: 0 * skip},
                                     f"{UP}.1.attentions.1.{BLOCK}.ff.add", ("no_residual",)),
    "skip order": Mistake({"u0.r1.cat": lambda both: both[::-1]}, f"{UP}.0.resnets.1.concat",
                          ("swapped_inputs",)),
    "skip of the other sample": Mistake({"u1.r0.cat": lambda both: (both[0], both[1][::-1])},
                                        f"{UP}.1.resnets.0.concat", ("swapped_guidance",)),
    # accidents
    "overflow": Mistake({"d2.r0.c1.out": in_shape(overflowing)}, f"{DOWN}.2.resnets.0.add",
                        ("overflow",)),
    "NaN in a tile": Mistake({"u2.r0.c2.out": nan_in_tile}, f"{UP}.2.resnets.0.add.2", ("nan",)),
    "race (conv)": Mistake({"u1.r1.c1.out": one_off}, f"{UP}.1.resnets.1.add", asked=False),
    "race (linear)": Mistake({"m.t0.so.out": one_off}, f"{MID}.attentions.0.{BLOCK}.attn1.add",
                             asked=False),
    # text
    "ids padded with 0": Mistake({"ids.out": padded_with_0}, "tokens/000/ids", asked=False),
    "clip not causal": Mistake({"l0.attn.causal": False}, f"{LAYER}.0.self_attn.attention",
                               ("missing_mask",)),
    "clip gelu": Mistake({"l1.fc1.then": lambda right: kernels.gelu}, f"{LAYER}.1.mlp.quick_gelu",
                         ("gelu_erf",)),
    "no final norm": Mistake({"last.left_out": True}, "text/000/last_hidden_state",
                             ("missing_norm",)),
    # sampling
    "prompts swapped": Mistake({"denoise.text": lambda both: both[::-1]}, "denoise/concat",
                               ("swapped_inputs", "swapped_guidance")),
    "guidance swapped": Mistake({"denoise.guide": lambda u, c, s: c + s * (u - c)},
                                "denoise/000/guided", ("swapped_guidance",)),
    "c + s (c - u)": Mistake({"denoise.guide": lambda u, c, s: c + s * (c - u)},
                             "denoise/000/guided", ("guidance_scale",)),
    "v taken for eps": Mistake({"denoise.step": by_epsilon}, "denoise/000/latents",
                               ("prediction_type",)),
    "set_alpha_to_one": Mistake({"denoise.last": 1.0}, "denoise/003/latents",
                                ("set_alpha_to_one",), asked=False),
}  # fmt: skip
# By erf or by tanh: float16 and bfloat16 hold too few digits to tell.
NEAR = {"clip gelu": ("gelu_tanh",), "tanh gelu": ()}
