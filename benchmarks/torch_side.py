"""PyTorch and diffusers in a worker process: "contiguous" and "channels_last", in a precision.

"bfloat16 contiguous" has weights and activations in bfloat16, "autocast contiguous" float32 weights
and PyTorch's choice of what is computed in bfloat16.
"""

import copy

import torch

from benchmarks import models, torch_models, torch_ops
from benchmarks.calls import make_arrays

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def prepare(job, variant, threads):
    """A function that does the job's work once and returns its result."""
    torch.set_num_threads(threads)
    precision, form = models.precision_and_form(variant)
    layout = LAYOUTS[form]
    if job["kind"] == "bundled":
        pipe = torch_models.bundled_pipeline()
        pipe.unet.to(memory_format=layout)
        pipe.vae.to(memory_format=layout)
        return lambda: pipe(
            models.PROMPT, num_inference_steps=models.STEPS, guidance_scale=models.GUIDANCE,
            generator=torch.Generator().manual_seed(models.SEED), output_type="np").images

    if job["kind"] == "op":
        module = torch_ops.Op(job["op"], make_arrays(job["inputs"]), job["options"])
        inputs = module.activations
        if form == "channels_last":
            module = copy.deepcopy(module).to(memory_format=layout)
    else:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        module = torch_models.load(job["kind"], job["folder"], dtype)
        inputs = tuple(torch.from_numpy(a) for a in models.inputs(job["kind"]).values())
        inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    inputs = tuple(x.to(memory_format=layout) if x.dim() == 4 else x for x in inputs)

    @torch.inference_mode()
    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            return module(*inputs)

    if job["kind"] != "op":
        run.before = lambda: _to_layout(module, form)
    return run


def _to_layout(module, form):
    """A whole network has one copy of its weights; they are packed before a turn, not timed."""
    if getattr(module, "layout", "contiguous") != form:
        module.to(memory_format=LAYOUTS[form])
        module.layout = form


def numpy(result):
    return result if not torch.is_tensor(result) else result.float().contiguous().numpy()
