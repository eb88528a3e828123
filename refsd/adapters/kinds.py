"""The kinds of adapters: which tensors each is made of, and what it adds to a weight.

A kind's tensors have letters for their sizes: those with one letter are equal, and the capital ones
are of the result. A matrix may be stored as a 1 x 1 kernel, and the last letter of one stands for
all that follows ("rI" of a kernel (r, C, 3, 3) is I = 9 C), but where "..." says that they stay.

    LoRA   up down                                 Hu et al. 2021, "LoRA: Low-Rank Adaptation ..."
           with a core: sum_rs up[O, r] mid[r, s, ...] down[s, I]       LyCORIS' LoCon
    LoHa   (w1_a w1_b) * (w2_a w2_b), elementwise  Hyeon-Woo et al. 2021, "FedPara ..."
    LoKr   w1 (x) w2, Kronecker                    Yeh et al. 2023, "Navigating Text-To-Image ..."
    (IA)3  w W, w on outputs or inputs             Liu et al. 2022, "Few-Shot Parameter-..."
    full   diff                                    as LyCORIS writes it; norms are w_norm there
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from refsd.errors import ModelError

Shape = tuple[int, ...]


def lora(*, lora_up: np.ndarray, lora_down: np.ndarray,
         lora_mid: np.ndarray | None = None) -> np.ndarray:
    """up down, or sum_rs up[O, r] mid[r, s, ...] down[s, I].   -> (O, I) or (O, I, ...)

    Outputs are innermost in memory, as kernels have weights: what is added to those is added fast.
    """
    if lora_mid is not None:
        return _core(lora_mid, lora_up.T, lora_down)
    return (lora_down.T @ lora_up.T).T


def loha(*, hada_w1_a: np.ndarray, hada_w1_b: np.ndarray, hada_w2_a: np.ndarray,
         hada_w2_b: np.ndarray, hada_t1: np.ndarray | None = None,
         hada_t2: np.ndarray | None = None) -> np.ndarray:
    """(w1_a w1_b) * (w2_a w2_b), each with its core if it has one.   -> (O, I) or (O, I, ...)"""
    return (_factors(hada_w1_a, hada_w1_b, hada_t1)
            * _factors(hada_w2_a, hada_w2_b, hada_t2))


def lokr(*, lokr_w1: np.ndarray | None = None, lokr_w1_a: np.ndarray | None = None,
         lokr_w1_b: np.ndarray | None = None, lokr_w2: np.ndarray | None = None,
         lokr_w2_a: np.ndarray | None = None, lokr_w2_b: np.ndarray | None = None,
         lokr_t2: np.ndarray | None = None) -> np.ndarray:
    """w1 (x) w2; either may be a product of factors.   (A, C), (B, D, ...) -> (A B, C D, ...)"""
    w1 = lokr_w1_a @ lokr_w1_b if lokr_w1 is None else lokr_w1
    w2 = _factors(lokr_w2_a, lokr_w2_b, lokr_t2) if lokr_w2 is None else lokr_w2
    return np.kron(w1.reshape(w1.shape + (1,) * (w2.ndim - w1.ndim)), w2)


def full(*, diff: np.ndarray) -> np.ndarray:
    """diff, as it is."""
    return diff


@dataclass(frozen=True)
class Kind:
    """A name; tensors with the letters of their sizes; those of outputs, inputs, and the rank."""

    name: str
    tensors: Mapping[str, str]
    outputs: str
    rank: str
    formula: Callable[..., np.ndarray]

    def sizes(self, shapes: Mapping[str, Shape], where: str) -> dict[str, int]:
        """The letters' sizes; ModelError where they do not fit each other."""
        found: dict[str, int] = {}
        for name, letters in self.tensors.items():
            shape = shapes[name]
            if not letters.endswith("..."):
                shape = _folded(shape, letters)
            named = letters.removesuffix("...")
            if len(shape) < len(named) or not math.prod(shape):
                raise ModelError(f"{where}: its {name} has shape {shapes[name]}, {self.name} has "
                                 f"{len(named)} sizes there. Fetch the file again")
            rest = math.prod(shape[len(named):])
            for letter, size in [*zip(named, shape), *([("K", rest)] if rest != 1 else [])]:
                if found.setdefault(letter, size) != size:
                    told = ", ".join(f"{name} {shapes[name]}" for name in self.tensors)
                    raise ModelError(f"{where}: the tensors of its {self.name} do not fit each "
                                     f"other: {told}. Fetch the file again")
        return found

    def value(self, tensors: Mapping[str, Any]) -> np.ndarray:
        """What the tensors make, a new array in float64."""
        wide = {name: np.array(tensors[name], np.float64) for name in self.tensors}
        return self.formula(**{name: array if self.tensors[name].endswith("...") else
                               array.reshape(_folded(array.shape, self.tensors[name]))
                               for name, array in wide.items()})

    def check(self, shapes: Mapping[str, Shape], weight: Shape, where: str) -> int:
        """The rank; ModelError where the result is not of a weight's shape."""
        sizes = self.sizes(shapes, where)
        outputs = math.prod(sizes[letter] for letter in self.outputs)
        count = math.prod(size for letter, size in sizes.items() if letter.isupper())
        if outputs != weight[0] or count != math.prod(weight):
            raise ModelError(f"{where}: its {self.name} is for a weight of {outputs} x "
                             f"{count // max(outputs, 1)}, the model's is {weight}. Give an "
                             "adapter for such a model (refsd lora inspect says which it is for)")
        return sizes.get(self.rank, 0)


def _folded(shape, letters):
    """As many sizes as letters: the last is all that follow"""
    return (*shape[:len(letters) - 1], math.prod(shape[len(letters) - 1:]))


_W1 = [({"lokr_w1": "AC"}, "-"), ({"lokr_w1_a": "Ar", "lokr_w1_b": "rC"}, "r")]
_W2 = [({"lokr_w2": "BD..."}, "-"), ({"lokr_w2_a": "Bs", "lokr_w2_b": "sD"}, "s"),
       ({"lokr_t2": "st...", "lokr_w2_a": "sB", "lokr_w2_b": "tD"}, "t")]
KINDS = (
    Kind("LoRA", {"lora_up": "Or", "lora_down": "rI"}, "O", "r", lora),
    Kind("LoRA", {"lora_up": "Or", "lora_down": "sI", "lora_mid": "rs..."}, "O", "s", lora),
    Kind("LoHa", {"hada_w1_a": "Or", "hada_w1_b": "rI", "hada_w2_a": "Os", "hada_w2_b": "sI"},
         "O", "r", loha),
    Kind("LoHa", {"hada_t1": "rs...", "hada_w1_a": "rO", "hada_w1_b": "sI",
                  "hada_t2": "tu...", "hada_w2_a": "tO", "hada_w2_b": "uI"}, "O", "s", loha),
    *(Kind("LoKr", w1 | w2, "AB", own if own != "-" else other, lokr)
      for (w1, other), (w2, own) in product(_W1, _W2)),
    Kind("full", {"diff": "O..."}, "O", "-", full),
)
IA3 = ("ia3", "on_input")  # what multiplies, and whether it is the inputs
OTHERS = {"a1": "GLoRA", "a2": "GLoRA", "b1": "GLoRA", "b2": "GLoRA", "oft_blocks": "OFT",
          "oft_diag": "OFT", "oft_R": "OFT", "bias_values": "a LoRA with sparse biases"}


def kind_of(tensors: Collection[str]) -> Kind | None:
    """The kind that has just these tensors; None where none has."""
    return next((kind for kind in KINDS if set(kind.tensors) == set(tensors)), None)


@dataclass(frozen=True)
class Change:
    """What an adapter adds to one weight: `delta(W, strength)`, in float64.

    scale is alpha / rank. A DoRA (Liu et al. 2024) has the magnitude m that each output, or each
    input, is to have: W becomes m (W + dW) / |W + dW|. The strength scales dW where PEFT made it
    (`inside`), and what becomes of W where LyCORIS did, as A1111 and ComfyUI apply it.
    """

    kind: Kind | None  # None: (IA)3
    tensors: Mapping[str, Any]
    scale: float = 1.0
    magnitude: np.ndarray | None = None
    inside: bool = False

    def delta(self, weight: np.ndarray, strength: float) -> np.ndarray:
        """What is added, a new array.   (O, ...) -> the same in float64"""
        if self.kind is None:
            axis = int(bool(self.tensors["on_input"].item()))
            factors = strength * self.tensors["ia3"].astype(np.float64)
            return weight * _along(factors, weight, axis)
        change = self.kind.value(self.tensors).reshape(weight.shape)
        if self.magnitude is None or self.inside:
            change *= self.scale * strength
            return change if self.magnitude is None else self._decomposed(change + weight) - weight
        change *= self.scale
        return strength * (self._decomposed(change + weight) - weight)

    def _decomposed(self, weight):
        """m W / |W|; where W is nothing but zeros it stays so"""
        axis = magnitude_axis(self.magnitude.shape, weight.shape, self.inside)
        others = tuple(i for i in range(weight.ndim) if i != axis)
        norm = np.sqrt((weight * weight).sum(axis=others, keepdims=True))
        norm[norm == 0] = 1
        return weight * (_along(self.magnitude.astype(np.float64), weight, axis) / norm)


def magnitude_axis(magnitude: Shape, weight: Shape, inside: bool = False) -> int | None:
    """Whether magnitudes are of outputs (0) or inputs (1); None where they are of neither.

    PEFT's are of outputs, however stored; LyCORIS' are (O, 1, ...) or (1, I, ...).
    """
    count = math.prod(magnitude)
    if count == weight[0] and (inside or magnitude[0] == count):
        return 0
    return 1 if not inside and len(weight) > 1 and count == weight[1] else None


def _along(vector, weight, axis):
    """(N,) as (1, N, 1, ...) with N on that axis"""
    return vector.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def _factors(a, b, core):
    """a b; or sum_rs core[r, s, ...] a[r, O] b[s, I]"""
    return a @ b if core is None else _core(core, a, b)


def _core(core, a, b):
    """sum_rs core[r, s, ...] a[r, O] b[s, I].   -> (O, I, ...)"""
    return np.einsum("rs...,ro,si->oi...", core, a, b, optimize=True)
