"""SD 3's transformer with random weights against diffusers' SD3Transformer2DModel.

float32 and float64 are judged as in test_models.py, halves as in test_halves.py. In float64
diffusers computes its RMSNorm's mean square, and its sinusoids, in float32: the truth does not.
"""

import diffusers
import numpy as np
import pytest
import torch
from bounds import rms
from mmdit_truth import LARGE_35, MEDIUM_3, MEDIUM_35
from test_halves import as_array, inputs, judge, narrowed
from test_models import WAYS, compare, normal, randomised, tree

from refsd import functional as F
from refsd.errors import ModelError
from refsd.half import HALVES, to_float32
from refsd.models import mmdit
from refsd.networks import shapes_of
from refsd.networks.mmdit import MMDIT
from refsd.registry import use


def config(heads, width, layers, **more):
    return {"num_attention_heads": heads, "attention_head_dim": width, "num_layers": layers,
            "caption_projection_dim": heads * width, "joint_attention_dim": 40,
            "pooled_projection_dim": 24, "sample_size": 16, "in_channels": 16,
            "pos_embed_max_size": 24, **more}


# configuration, size of the latents, batch, timestep, blocks left out
MMDITS = {
    "SD 3, small": (config(4, 16, 3), (16, 16), 2, 500.0, None),
    "SD 3.5 medium, small": (config(4, 16, 4, qk_norm="rms_norm", dual_attention_layers=[0, 1],
                                    pos_embed_max_size=48), (16, 24), 2, 981.25, None),
    "SD 3.5 large, small": (config(5, 24, 3, qk_norm="rms_norm"), (24, 16), 1, 1000.0, None),
    "odd crops, skipped layers": (config(3, 32, 5, qk_norm="rms_norm", dual_attention_layers=[2],
                                         pos_embed_max_size=15), (18, 26), 2, 21.5, [1, 3]),
    "odd widths, patches of 3": (config(4, 7, 2, patch_size=3, in_channels=5, out_channels=4,
                                        pos_embed_max_size=7), (21, 15), 1, 250.0, None),
    "dual attention without norms, the last block skipped": (
        config(2, 16, 3, dual_attention_layers=[0, 2]), (2, 6), 3, 3.5, [2]),
    "one block": (config(2, 8, 1), (8, 8), 1, 700.0, None),
}  # fmt: skip


@pytest.fixture(params=WAYS)
def allowed(request):
    backend, exact, ratio = WAYS[request.param]
    with use(backend, exact=exact):
        yield ratio


def model_of(name):
    """Gates are of the size that training gives them: adaLN's linear layers begin anywhere."""
    torch.manual_seed(0)
    return randomised(diffusers.SD3Transformer2DModel(**MMDITS[name][0]))


def arrays_of(name, tokens=13):
    found, size, batch, _, _ = MMDITS[name]
    return (normal(1, batch, found["in_channels"], *size),
            normal(2, batch, tokens, found["joint_attention_dim"]),
            normal(3, batch, found["pooled_projection_dim"]))


def steps_of(name):
    """A time for each sample, the first as the table has it."""
    _, _, batch, step, _ = MMDITS[name]
    return np.float32([step, 310.7, 42.0][:batch])


def ask(model, sample, steps, text, pooled, skipped, dtype=None):
    dtype = dtype or next(model.parameters()).dtype
    sample, text, pooled = (torch.from_numpy(x).to(dtype) for x in (sample, text, pooled))
    with torch.no_grad():
        return model(sample, timestep=torch.from_numpy(steps), encoder_hidden_states=text,
                     pooled_projections=pooled, skip_layers=skipped).sample


def ours(weights, sample, steps, text, pooled, skipped, model):
    found = mmdit.MMDiTConfig.from_json(model.config)
    return mmdit.mmdit(sample, steps, text, pooled, **weights, config=found,
                       skip_layers=tuple(skipped or ()))


def widened(model):
    """The model in float64, its RMSNorms too."""
    for module in model.double().modules():
        if type(module).__name__ == "RMSNorm":
            module.forward = lambda x, norm=module: torch.nn.functional.rms_norm(
                x, norm.dim, norm.weight, norm.eps)
    return model


def with_our_sinusoids(model, steps):
    y = F.timestep_embedding(steps, dim=256, dtype="float64", flip_sin_to_cos=True, freq_shift=0)
    model.time_text_embed.time_proj.forward = lambda timesteps: torch.from_numpy(y)
    return model


@pytest.mark.parametrize("name", MMDITS)
def test_mmdit(name, allowed):
    model, arrays, steps, skipped = model_of(name), arrays_of(name), steps_of(name), MMDITS[name][4]

    def mine(dtype):
        sample, text, pooled = (x.astype(dtype) for x in arrays)
        return ours(tree(model, dtype), sample, steps, text, pooled, skipped, model)

    sample, text, pooled = arrays
    narrow, wide = mine("float32"), mine("float64")
    torch32 = ask(model, sample, steps, text, pooled, skipped).numpy()
    torch64 = ask(widened(model), sample, steps, text, pooled, skipped).numpy()
    same64 = ask(with_our_sinusoids(model, steps), sample, steps, text, pooled, skipped).numpy()
    # Torch's frequencies are up to an ulp off, which t = 700 makes as large as all else together:
    # each is judged by the float64 that has its own.
    compare(name, allowed, narrow, torch32 + (same64 - torch64), same64, wide, same64)


@pytest.mark.parametrize("found", [{}, MEDIUM_3, MEDIUM_35, LARGE_35, *(
    found for found, *_ in MMDITS.values()), config(4, 8, 2, in_channels=3, out_channels=None)])
def test_names_and_shapes(found):
    """Also the number of parameters, without the table of places."""
    found = {key: value for key, value in found.items() if key != "_class_name"}
    with torch.device("meta"):
        model = diffusers.SD3Transformer2DModel(**found)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes_of("transformer", found) == shapes
    assert shapes_of("transformer", model.config) == shapes


@pytest.mark.parametrize("option", MMDIT.options)
def test_null(option):
    """It is refused, or read as diffusers reads it."""
    found = {**config(2, 8, 1), option: None}
    try:
        shapes = shapes_of("transformer", found)
    except ModelError as problem:
        assert f"{option} is None" in str(problem)
        return
    model = diffusers.SD3Transformer2DModel.from_config(found)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", HALVES)
def test_halves(dtype, backend):
    errors = []
    for name in MMDITS:
        model, weights = narrowed(model_of(name), dtype)
        arrays, steps, skipped = inputs(dtype, *arrays_of(name)), steps_of(name), MMDITS[name][4]
        with use(backend):
            mine = ours(weights, arrays[0], steps, *arrays[1:], skipped, model)
        assert mine.dtype == HALVES[dtype]
        wide = [to_float32(x) for x in arrays]
        theirs = as_array(ask(model, wide[0], steps, *wide[1:], skipped))
        truth = as_array(ask(widened(model), wide[0], steps, *wide[1:], skipped))
        errors.append((rms(to_float32(mine) - truth), rms(theirs - truth)))
        print(f"  {name}: {errors[-1][0] / errors[-1][1]:.3f}")
    judge(f"MMDiTs, {dtype}, {backend}", errors)
