"""Whole pipelines against diffusers: the same folder, seed and options must give the same picture.

The criterion: every grey level (of 3 a pixel) within one of diffusers', 99.9 % of them identical.
The model is tiny and its weights are random, so the pictures show nothing; that is no matter here.
"""

import inspect
import re

import diffusers
import numpy as np
import pytest
import tiny_diffusers
import torch
from diffusers import StableDiffusionPipeline
from tiny_diffusers import PROMPT, SD1, SIZE, write_model

import refsd
from refsd import schedulers
from refsd.pipelines import from_diffusers, stages
from refsd.pipelines.generators import as_generators
from refsd.random import TorchGenerator

SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
    "ddim-trailing-v": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False,
                                          "prediction_type": "v_prediction",
                                          "rescale_betas_zero_snr": True}),
    "ddim-sample": ("DDIMScheduler", {"prediction_type": "sample", "clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "pndm-prk": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {"steps_offset": 1}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++2m-sde-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++",
                                                           "use_karras_sigmas": True}),
    "dpm++2m-sde-heun": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++",
                                                         "solver_type": "heun",
                                                         "use_exponential_sigmas": True}),
    "dpm-solver-3": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver",
                                                     "final_sigmas_type": "sigma_min",
                                                     "solver_order": 3}),
    "dpm++2s": ("DPMSolverSinglestepScheduler", {}),
    "dpm++2s-sde": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc-karras-v": ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True,
                                                   "prediction_type": "v_prediction"}),
    "lcm": ("LCMScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun-karras-v": ("HeunDiscreteScheduler", {"use_karras_sigmas": True,
                                                "prediction_type": "v_prediction"}),
    "dpm2": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    "dpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "leading",
                                                           "steps_offset": 1}),
    "lms": ("LMSDiscreteScheduler", {"use_exponential_sigmas": True}),
    "dpm++sde": ("DPMSolverSDEScheduler", {"noise_sampler_seed": 5}),
    "tcd": ("TCDScheduler", {}),
    "ddim-inverse": ("DDIMInverseScheduler", {"clip_sample": False, "steps_offset": 1}),
    "edm-euler": ("EDMEulerScheduler", {}),
    "edm-dpm++2m": ("EDMDPMSolverMultistepScheduler", {"sigma_max": 14.6}),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion 1.x as diffusers saves it, with CLIP's whole vocabulary."""
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def theirs(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    # transformers 5 took the level `text_model` away where diffusers 0.42.1 looks for it when
    # clip_skip is given (AttributeError). Put a plain reference back.
    object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return pipe


@pytest.fixture(scope="session")
def ours(folder):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")


def same_picture(theirs, ours, **options):
    """Draw with both, in few steps, and hold the pictures against each other."""
    options = {"num_inference_steps": 6, "height": SIZE, "width": SIZE} | options
    tiny_diffusers.same_picture(theirs, ours, **options)


TAKE_ETA = ("ddim", "tcd")  # the others are given it too: one of them shows that they do not mind


@pytest.mark.parametrize("name, eta", [
    *((name, 0.0) for name in SCHEDULERS),
    *((name, 0.7) for name in SCHEDULERS if name.startswith(TAKE_ETA)), ("euler", 0.7)])
def test_every_scheduler(theirs, ours, name, eta):
    kind, options = SCHEDULERS[name]
    if "beta_start" in getattr(schedulers, kind).DEFAULTS:
        options = SD1 | options
    theirs.scheduler = getattr(diffusers, kind)(**options)
    ours.scheduler = getattr(schedulers, kind)(**options)
    same_picture(theirs, ours, prompt=PROMPT, negative_prompt="blurry, low quality", eta=eta)


@pytest.mark.parametrize("options", [
    {"prompt": [PROMPT, "a bowl of soup", ""]},
    {"prompt": [PROMPT, "a bowl of soup"], "negative_prompt": ["red", "green, blue"]},
    {"prompt": [PROMPT, "a bowl of soup"], "num_images_per_prompt": 2, "eta": 0.3},
    {"prompt": PROMPT, "guidance_scale": 1.0},
    {"prompt": PROMPT, "guidance_scale": 0.0},
    {"prompt": PROMPT, "guidance_rescale": 0.7},
    {"prompt": PROMPT, "clip_skip": 1},
    {"prompt": PROMPT + " 🐎 été" * 40},
    {"prompt": PROMPT, "height": 64, "width": 96},
    {"prompt": PROMPT, "height": 72, "width": 56},
    {"prompt": PROMPT, "num_inference_steps": 1},
], ids=str)
def test_every_option(folder, theirs, ours, options):
    config = {**SD1, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    theirs.scheduler = diffusers.DDIMScheduler(**config)
    ours.scheduler = schedulers.DDIMScheduler(**config)
    same_picture(theirs, ours, **options)


def test_a_generator_for_each_picture(theirs, ours):
    same_picture(theirs, ours, seeds=[1, 2**40 + 5, 3], prompt=[PROMPT, "a cat", "a dog"], eta=0.5)


def test_scheduler_of_the_folder(folder):
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    ours = refsd.StableDiffusionPipeline.from_pretrained(folder)
    assert ours.scheduler.config["_class_name"] == "PNDMScheduler"
    same_picture(theirs, ours, prompt=PROMPT)


def test_switching_the_scheduler_as_people_do(folder):
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    ours = refsd.StableDiffusionPipeline.from_pretrained(folder)
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    ours.scheduler = schedulers.EulerDiscreteScheduler.from_config(ours.scheduler.config)
    same_picture(theirs, ours, prompt=PROMPT)


def test_given_latents_and_embeddings(theirs, ours):
    theirs.scheduler = diffusers.DDIMScheduler(**SD1, clip_sample=False)
    ours.scheduler = schedulers.DDIMScheduler(**SD1, clip_sample=False)
    random = np.random.default_rng(0)
    given = {"latents": random.standard_normal((2, 4, 8, 8)).astype("f4"),
             "prompt_embeds": random.standard_normal((2, 77, 32)).astype("f4"),
             "negative_prompt_embeds": random.standard_normal((2, 77, 32)).astype("f4")}
    expected = theirs(**{k: torch.tensor(v) for k, v in given.items()}, num_inference_steps=4,
                      output_type="np").images
    found = ours(**given, num_inference_steps=4, output_type="np").images
    assert np.abs(found - expected).max() < 0.5 / 255


def test_callback_replaces_the_latents(theirs, ours):
    theirs.scheduler = diffusers.DDIMScheduler(**SD1, clip_sample=False)
    ours.scheduler = schedulers.DDIMScheduler(**SD1, clip_sample=False)

    def halve(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * 0.5} if step == 2 else {}

    same_picture(theirs, ours, prompt=PROMPT, callback_on_step_end=halve)


def test_posterior_of_the_vae_is_drawn_from_the_same_stream(theirs, ours):
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, SIZE, SIZE)).astype("f4")
    with torch.no_grad():
        posterior = theirs.vae.encode(torch.tensor(image)).latent_dist
    expected = posterior.sample(torch.Generator().manual_seed(3)).numpy()
    found = ours.vae.encode(image)
    # The posterior is a network's output (its error is bounded in test_models); the noise is exact.
    np.testing.assert_allclose(found.sample(TorchGenerator(3)), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.mode(), posterior.mode().numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_torch_generator_serves_and_moves_on(theirs, ours, count):
    """The same generator twice: another picture the second time, and the same as diffusers'."""
    theirs.scheduler = diffusers.DDIMScheduler(**SD1, clip_sample=False)
    ours.scheduler = schedulers.DDIMScheduler(**SD1, clip_sample=False)
    options = {"prompt": [PROMPT] * count, "num_inference_steps": 2, "output_type": "np",
               "eta": 0.5, "height": SIZE, "width": SIZE}
    pairs = [[torch.Generator().manual_seed(seed) for seed in range(7, 7 + count)]
             for _ in range(2)]
    pairs = [pair if count > 1 else pair[0] for pair in pairs]
    first, second = ([theirs(generator=pairs[0], **options).images,
                      ours(generator=pairs[1], **options).images] for _ in range(2))
    for expected, found in (first, second):
        assert np.abs(found - expected).max() < 0.5 / 255
    assert np.abs(first[0] - second[0]).max() > 0.01
    last = [pair if count == 1 else pair[-1] for pair in pairs]
    assert torch.equal(last[0].get_state(), last[1].get_state())


@pytest.mark.parametrize("taken", [0, 1, 5, 16, 999])
@pytest.mark.parametrize("shape, dtype", [((1, 4, 8, 8), "float32"), ((3,), "float32"),
                                          ((2, 9), "float64")])
def test_a_torch_generator_in_any_state(taken, shape, dtype):
    kinds = [torch.Generator().manual_seed(3) for _ in range(2)]
    for generator in kinds:
        torch.randn(taken, generator=generator)
    expected = torch.randn(shape, generator=kinds[0], dtype=getattr(torch, dtype)).numpy()
    found = as_generators(kinds[1], TorchGenerator, 1).randn(shape, dtype)
    assert np.array_equal(found, expected)
    assert torch.equal(kinds[0].get_state(), kinds[1].get_state())


def test_torch_tensors_and_numbers_at_every_argument(theirs, ours):
    """With gradients, in bfloat16, transposed: as a float32 array of the same numbers."""
    ours.scheduler = schedulers.DDIMScheduler(**SD1, clip_sample=False)
    random = np.random.default_rng(0)
    given = {"latents": (1, 4, 8, 8), "prompt_embeds": (1, 77, 32),
             "negative_prompt_embeds": (1, 77, 32)}
    tensors = {k: torch.tensor(random.standard_normal(v), dtype=torch.bfloat16)
               for k, v in given.items()}
    options = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 3}
    expected = ours(**{k: v.float().numpy() for k, v in tensors.items()}, **options).images
    ways = [lambda x: x, lambda x: x.half(), lambda x: x.double(), lambda x: x.clone(
        ).requires_grad_(), lambda x: x.mT.contiguous().mT, lambda x: torch.nn.Parameter(x)]
    rounded = {k: v.half().to(torch.bfloat16) for k, v in tensors.items()}
    assert all(torch.equal(rounded[k], v) for k, v in tensors.items())  # float16 holds them
    for way in ways:
        found = ours(**{k: way(v) for k, v in tensors.items()}, **options).images
        assert np.array_equal(found, expected)
    numbers = {"num_inference_steps": torch.tensor(1), "guidance_scale": torch.tensor(
        3, dtype=torch.bfloat16), "height": torch.tensor(64), "output_type": "latent"}
    arrays = {k: v.numpy() for k, v in ((k, v.float()) for k, v in tensors.items())}
    assert np.array_equal(ours(**arrays, **numbers).images, expected)
    with pytest.raises(refsd.errors.UsageError, match="latents: a Tensor cannot be read"):
        ours(**tensors | {"latents": torch.zeros(1, 4, 8, 8, device="meta")}, **options)


@pytest.mark.parametrize("name, options, own", [
    ("DDPM", {}, {"timesteps": [900, 600, 300, 0]}),
    ("DPMSolverMultistep", {}, {"timesteps": [999, 700, 400, 100]}),
    ("EulerDiscrete", {}, {"timesteps": [999, 500, 100]}),
    ("EulerDiscrete", {}, {"sigmas": [14.0, 5.0, 1.0, 0.0]}),
    ("LCM", {}, {"timesteps": [999, 759, 499, 259]}),
    ("DPMSolverSinglestep", {"solver_order": 3}, {"timesteps": [999, 759, 499, 259]}),
    ("HeunDiscrete", {}, {"timesteps": [999, 500, 100]}),
    ("TCD", {}, {"timesteps": [999, 759, 499, 259]}),
])
def test_own_timesteps_and_sigmas(theirs, ours, name, options, own):
    theirs.scheduler = getattr(diffusers, f"{name}Scheduler")(**SD1, **options)
    ours.scheduler = getattr(schedulers, f"{name}Scheduler")(**SD1, **options)
    same_picture(theirs, ours, prompt=PROMPT, **own)


@pytest.mark.parametrize("name", sorted(schedulers.SCHEDULERS))
@pytest.mark.parametrize("own", ["timesteps", "sigmas"])
def test_own_schedules_are_refused_where_diffusers_refuses_them(theirs, ours, name, own):
    takes = own in inspect.signature(getattr(diffusers, name).set_timesteps).parameters
    # The one takes a tensor alone, and it is not of sigmas, the other flow sigmas alone.
    takes &= name not in ("EDMEulerScheduler", "UniPCMultistepScheduler") or own == "timesteps"
    kind = getattr(schedulers, name)
    assert (own in inspect.signature(kind.set_timesteps).parameters) == takes
    if not takes:
        with pytest.raises(refsd.errors.UsageError, match=f"{own} of the caller's own"):
            stages.make_schedule(kind(), None, **{own: [5, 1, 0]})


@pytest.mark.parametrize("change", [{"_interrupt": True}, {"_guidance_scale": 0.0}], ids=str)
def test_what_a_callback_sets_on_the_pipeline(theirs, ours, change):
    """As the examples of diffusers' documentation do."""
    theirs.scheduler = diffusers.DDIMScheduler(**SD1, clip_sample=False)
    ours.scheduler = schedulers.DDIMScheduler(**SD1, clip_sample=False)
    (attribute, value), = change.items()

    def callback(pipe, step, timestep, tensors):
        if step == 2:
            setattr(pipe, attribute, value)
            if attribute == "_guidance_scale":
                tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
        return tensors

    same_picture(theirs, ours, prompt=PROMPT, callback_on_step_end=callback,
                 callback_on_step_end_tensor_inputs=["prompt_embeds", "latents"])


def test_every_argument_of_diffusers_is_known():
    """In the same order as far as positions reach; those that refsd has not are answered."""
    theirs = list(inspect.signature(StableDiffusionPipeline.__call__).parameters)[1:-1]
    ours = list(inspect.signature(refsd.StableDiffusionPipeline.__call__).parameters)[1:]
    assert theirs[:14] == ours[:14]
    assert set(theirs) <= set(ours) | set(from_diffusers.CALLING)
    source = inspect.getsource(StableDiffusionPipeline.from_pretrained)
    source += inspect.getsource(StableDiffusionPipeline.from_single_file)
    asked = set(re.findall(r'kwargs\.pop\("(\w+)"', source))
    assert len(asked) > 20
    known = set(inspect.signature(refsd.StableDiffusionPipeline.from_pretrained).parameters)
    assert asked <= known | set(from_diffusers.LOADING) | {"cache_dir", "revision", "token"}
