"""A picture of a model with two text encoders by the kernels: what lies between the networks."""

import numpy as np
import plain_kernels
import tiny_xl

import refsd

NAMES = ("add_text_embeds", "add_time_ids", "negative_pooled_prompt_embeds")


def test_it_is_what_numpy_draws(tmp_path, monkeypatch):
    """With rows that a callback replaces, and guidance that ends: within 300 ops' roundings.

    Each errs by 2^-24 of numbers up to 16, as latents of two steps are.
    """
    plain_kernels.choose(monkeypatch)
    folder, found = tiny_xl.write_model(tmp_path / "x"), {}

    def change(pipe, index, timestep, tensors):
        pipe._guidance_scale = 0.5
        return {name: tensors[name] * 0.5 for name in NAMES}

    for backend in ("cuda", "numpy"):
        pipe = refsd.StableDiffusionXLPipeline.from_pretrained(folder, backend=backend)
        found[backend] = pipe(
            "red", height=8, width=8, num_inference_steps=2, generator=7, output_type="latent",
            callback_on_step_end=change, callback_on_step_end_tensor_inputs=NAMES).images
    assert np.abs(found["numpy"]).max() < 16
    assert np.abs(found["cuda"] - found["numpy"]).max() < 300 * 2**-24 * 16
