"""Making golden packs: the float64 run of the reference, recorded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refsd import parallel
from refsd.errors import UsageError
from refsd.golden.packs.manifest import Manifest, read_manifest
from refsd.golden.packs.writer import MANIFEST, Writer
from refsd.golden.recording.record import Recorder, Selection


def make(folder: str | Path, request: Any, *, pipe: Any = None, model: str | Path | None = None,
         variant: str | None = None, selection: Selection | None = None, resume: bool = False,
         title: str = "", tolerance: Callable | None = None,
         about_model: Mapping[str, Any] | None = None,
         on_step: Callable | None = None) -> Manifest:
    """Run a request of either kind (kinds.py) in float64 and record it as a pack in `folder`.

    pipe is the model as the request loads it (None: it does so); model says where it was loaded
    from. One BLAS thread works, so that the same pack comes of any number of processors. Raises
    ModelError with the tensor's name at the first NaN or infinity, UsageError, ResourceError.
    tolerance: see Recorder; about_model: what model_of has said, for who makes several packs (it
    reads all weights); on_step(index) is called when a step is done.
    """
    pipe = request.load(model, variant=variant) if pipe is None else pipe
    selection, calls = selection or Selection(), request.check(pipe)
    late = [step for step in selection.steps or () if step >= calls]
    if late and selection.level >= 2:
        raise UsageError(f"step {late[0]} is to be opened; the run has the steps 0 to {calls - 1}")
    request = request.settled(pipe)
    about = {**request.plain(), "selection": vars(selection)}
    about_model = about_model or request.model_of(pipe, model, variant=variant)
    with parallel.limited(1), Writer(folder, recipe=about, model=about_model, kind="run",
                                     resume=resume, title=title) as writer:
        recorder = Recorder(writer, selection, tolerance=tolerance)
        request.record(pipe, recorder, on_step)
        recorder.worst.write(writer)
    return read_manifest((Path(folder) / MANIFEST).read_bytes())
