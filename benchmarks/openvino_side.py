"""OpenVINO in a worker process: latency hint, float32 but where the variant is "own plain".

That is the precision that it takes by itself, bfloat16 where the processor multiplies such numbers.
Variant "nhwc": pictures (N, H, W, C); "convert": make the network's file and no more.
"""

import sys
from pathlib import Path

sys.modules["openvino_telemetry"] = None  # converting a model shall not tell anyone

import numpy as np  # noqa: E402
import openvino  # noqa: E402
import torch  # noqa: E402

from benchmarks import models, torch_models, torch_ops  # noqa: E402
from benchmarks.calls import make_arrays  # noqa: E402


def prepare(job, variant, threads):
    """A function that does the job's work once and returns its result."""
    torch.set_num_threads(threads)
    if job["kind"] == "bundled":
        return _bundled(threads)
    if job["kind"] == "op":
        nhwc = variant == "nhwc"
        module = torch_ops.Op(job["op"], make_arrays(job["inputs"]), job["options"], nhwc)
        inputs = module.activations
        if nhwc:
            inputs = tuple(x.permute(0, 2, 3, 1).contiguous() for x in inputs)
        run = compiled(convert(module, inputs), threads)(*(x.numpy() for x in inputs))
        return (lambda: run().transpose(0, 3, 1, 2)) if nhwc else run
    inputs = models.inputs(job["kind"]).values()
    path = converted(job["kind"], job["folder"], Path(job["cache"]))
    precision = {"float32": "f32", "own": None}[models.precision_and_form(variant)[0]]
    return None if variant == "convert" else compiled(path, threads, precision)(*inputs)


def convert(module, inputs):
    """A torch module as OpenVINO's model, with fixed shapes."""
    with torch.inference_mode():
        model = openvino.convert_model(module, example_input=tuple(inputs))
    model.reshape({port: list(x.shape) for port, x in zip(model.inputs, inputs)})
    return model


def converted(part, folder, cache):
    """The file of a part in OpenVINO's format, float32 as it is; made once."""
    path = cache / f"{part}.xml"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        inputs = [torch.from_numpy(a) for a in models.inputs(part).values()]
        save(convert(torch_models.load(part, folder), inputs), path)
        torch_models.load.cache_clear()
    return path


def save(model, path):
    """Write the weights, and the .xml last: it says that the file is whole."""
    draft = path.with_name(f"draft-{path.name}")
    openvino.save_model(model, draft, compress_to_fp16=False)
    draft.with_suffix(".bin").replace(path.with_suffix(".bin"))
    draft.replace(path)


def compiled(model, threads, precision="f32"):
    """Bind arrays -> a function that infers once; no copies in or out are timed."""
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        hints["INFERENCE_PRECISION_HINT"] = precision
    done = openvino.Core().compile_model(model, "CPU", hints)
    request = done.create_infer_request()

    def bind(*arrays):
        run.bound = [np.asarray(array, order="C") for array in arrays]  # shared: must stay alive
        for i, array in enumerate(run.bound):
            request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))

        return run

    def run():
        request.infer()
        return request.get_output_tensor().data

    run.bind = bind
    return bind


def _bundled(threads):
    """diffusers' pipeline, its three networks computed by OpenVINO."""
    pipe = torch_models.bundled_pipeline()
    side = pipe.unet.config.sample_size
    width = pipe.unet.config.cross_attention_dim
    length = pipe.tokenizer.model_max_length
    unet = _infer(torch_models.Unet(pipe.unet), threads, torch.zeros(2, 4, side, side),
                  torch.tensor(1), torch.zeros(2, length, width))
    clip = _infer(torch_models.Clip(pipe.text_encoder), threads, torch.zeros(1, length).long())
    decode = _infer(torch_models.Decode(pipe.vae), threads, torch.zeros(1, 4, side, side))

    pipe.text_encoder.forward = lambda ids, **_: (clip(ids),)
    pipe.unet.forward = lambda x, t, encoder_hidden_states, **_: (
        unet(x, t, encoder_hidden_states),)
    pipe.vae.decode = lambda z, **_: (decode(z),)
    return lambda: pipe(
        models.PROMPT, num_inference_steps=models.STEPS, guidance_scale=models.GUIDANCE,
        generator=torch.Generator().manual_seed(models.SEED), output_type="np").images


def _infer(module, threads, *examples):
    """A module that stands in a pipeline: tensors in, a tensor out."""
    bind = compiled(convert(module.eval(), examples), threads)
    run = bind(*(x.numpy() for x in examples))

    def infer(*tensors):
        run.bind(*(t.numpy() for t in tensors))
        return torch.from_numpy(run().copy())

    return infer


def numpy(result):
    return np.array(result)
