"""A weight of an adapter for each block of a UNet, as diffusers' set_adapters takes them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from refsd.arguments import as_number, refuse_unknown, shown
from refsd.errors import UsageError

LARGEST = 100


@dataclass(frozen=True)
class Blocks:
    """Weights by the beginning of transformers' names, such as down_blocks.1.attentions.0.

    As in diffusers a layer outside of them has that of the transformer of its number in its block
    (resnets.1 that of attentions.1), and 1 where there is none.
    """

    weights: Mapping[str, float]
    factor: float = 1.0

    def of(self, weight: str) -> float:
        """That of a weight of the UNet, by its name."""
        first, second, *rest = [*weight.split("."), "", ""]
        if first == "mid_block":
            own = f"mid_block.attentions.{rest[0]}" if second == "attentions" else ""
        else:
            own = f"{first}.{second}.attentions.{rest[1] if rest[1:] else ''}"
        return self.factor * self.weights.get(own, 1.0)

    def __rmul__(self, factor: float) -> "Blocks":
        return replace(self, factor=factor * self.factor)


def blocks(given: Mapping[str, Any], tree: Mapping[str, Any], where: str) -> Blocks:
    """Of {"down": x, "mid": x, "up": {"block_1": x, "block_2": [x, y, z]}}; what is left out is 1.

    A list has a weight for each transformer of a block, or one for all. Raises UsageError.
    """
    refuse_unknown(where, given, ("down", "mid", "up"), "block")
    middle, weight = given.get("mid", 1.0), f"{where}: a weight"
    found = {"mid_block.attentions.0": number_of(
        middle[0] if isinstance(middle, list) and len(middle) == 1 else middle, weight)}
    for side in ("down", "up"):
        counts = {f"block_{i}": len(block["attentions"])
                  for i, block in enumerate(tree[f"{side}_blocks"]) if "attentions" in block}
        own = given.get(side, 1.0)
        own = own if isinstance(own, Mapping) else dict.fromkeys(counts, own)
        refuse_unknown(f"{where}: {side}", own, counts, "block with attentions")
        for block, count in counts.items():
            each = own.get(block, 1.0)
            each = each if isinstance(each, list) else [each]
            if len(each) not in (1, count):
                raise UsageError(f"{where}: {side}.{block} has {len(each)} weights; give one, or "
                                 f"{count}")
            for i, x in enumerate(each * count if len(each) == 1 else each):
                number = block.removeprefix("block_")
                found[f"{side}_blocks.{number}.attentions.{i}"] = number_of(x, weight)
    return Blocks(found)


def number_of(value: Any, what: str) -> float:
    """A weight, or a factor of weights; UsageError, naming what it is, for what is none."""
    number = as_number(value)
    if number is None or not -LARGEST <= number <= LARGEST:
        raise UsageError(f"{what} is {shown(value)}; give a number from -{LARGEST} to {LARGEST}")
    return float(number)
