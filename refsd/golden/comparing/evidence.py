"""What is at hand to say why a tensor is wrong: the op's inputs, its weights, the step before."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from refsd.errors import RefsdError
from refsd.golden.comparing.diagnose import Finding, diagnose
from refsd.golden.comparing.variants import ACTIVATIONS
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording import names
from refsd.golden.recording.pipeline_ops import PIPELINE_OPS
from refsd.golden.recording.replay import TENSOR, arrays_of, replay, weights
from refsd.registry import ops

LARGE = 1 << 25  # elements; to look into more would take gigabytes


class Evidence:
    """Reasons for one candidate's mistakes, from the pack and from what the candidate dumped."""

    def __init__(self, pack: Any, candidate: Any, model: Any = None):
        self.pack, self.candidate, self._weight = pack, candidate, weights(pack, model)
        factor = pack.manifest.model.get("scaling_factor")
        self._factors = (factor,) if type(factor) is float and factor > 0 else ()

    def findings(self, entry: Entry, golden: np.ndarray, got: np.ndarray,
                 format: str) -> tuple[tuple[Finding, ...], str]:
        """What the mistake looks like, the likeliest first, and why its op could not be computed.

        That may be a model that is not here; then the tensor is only fitted to the golden one.
        """
        if golden.size > LARGE:
            return (), ""
        inputs, doubt, truth = None, "", golden
        try:
            inputs = self.inputs(entry)
        except RefsdError as error:
            doubt = str(error)
        if inputs is not None and got.shape == golden.shape:
            try:
                truth = np.asarray(replay(entry, inputs))
            except (IndexError, RefsdError) as error:  # ids that are in no table, say
                doubt, inputs = f"it does not take the port's own inputs ({error})", None
        upstream = self.upstream(entry) if inputs is not None else None
        return tuple(diagnose(entry, truth, got, inputs, format=format, factors=self._factors,
                              previous=previous(self.pack, entry), upstream=upstream)), doubt

    def inputs(self, entry: Entry) -> dict[str, Any] | None:
        """The op's inputs, the candidate's own where it dumped them; None if it is no op.

        Raises a RefsdError if one cannot be read, such as the weights of a model that is not here.
        """
        if not entry.inputs or entry.op not in ops() and entry.op not in PIPELINE_OPS:
            return None
        return arrays_of(entry, tensor=self._tensor, weight=self._weight)

    def _tensor(self, name: str) -> np.ndarray:
        shape = self.pack.entries[name].shape
        found = self.candidate.read(name, shape)
        usable = found is not None and found.shape == shape and np.isfinite(found).all()
        return found if usable else self.pack.read(name)

    def upstream(self, entry: Entry) -> dict[str, tuple[Entry, Mapping[str, Any]]]:
        """The ops that made this one's inputs, with their own inputs."""
        found = {}
        for name, value in entry.inputs.items():
            if isinstance(value, str) and value.startswith(TENSOR):
                source = self.pack.entries[value.removeprefix(TENSOR)]
                given = self.inputs(source) if source.op in ACTIVATIONS else None
                if given is not None:
                    found[name] = source, given
        return found


def previous(pack: Any, entry: Entry) -> np.ndarray | None:
    """The same tensor one step earlier, where the pack has it."""
    if not entry.step:
        return None
    path = entry.name.removeprefix(names.full(entry.stage, entry.step, ""))
    earlier = names.full(entry.stage, entry.step - 1, path)
    return pack.read(earlier) if earlier in pack.entries else None
