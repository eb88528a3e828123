"""Pictures with ControlNets against diffusers, by the criterion of test_pipelines.py."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from test_controlnet import without_zeros
from test_pipelines import PROMPT, SD1, SIZE, folder, same_picture  # noqa: F401  a fixture

import refsd
from refsd import schedulers
from refsd.families import CONTROLNET
from refsd.weights import read_safetensors, to_tree, write_safetensors


@pytest.fixture(scope="module")
def nets(folder, tmp_path_factory):  # noqa: F811
    """Three ControlNets of the tiny model, as diffusers saves them: plain, bgr, pooled."""
    root = tmp_path_factory.mktemp("nets")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    for i, name in enumerate(("plain", "bgr", "pooled")):
        torch.manual_seed(i)
        order = "bgr" if name == "bgr" else "rgb"
        net = without_zeros(ControlNetModel.from_unet(
            unet, controlnet_conditioning_channel_order=order, load_weights_from_unet=i == 0,
            conditioning_embedding_out_channels=(8, 16, 16, 24)))
        net.register_to_config(global_pool_conditions=name == "pooled")
        net.save_pretrained(root / name)
    return root


def picture(seed, width=SIZE, height=SIZE):
    levels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), "uint8")
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def pair(folder, nets, *names, kind="", **options):  # noqa: F811
    theirs = [ControlNetModel.from_pretrained(nets / name) for name in names]
    ours = [refsd.ControlNet.from_pretrained(nets / name, **options) for name in names]
    if len(names) == 1:
        theirs, ours = theirs[0], ours[0]
    kind = f"StableDiffusionControlNet{kind}Pipeline"
    theirs = getattr(diffusers, kind).from_pretrained(folder, controlnet=theirs)
    theirs.set_progress_bar_config(disable=True)
    ours = getattr(refsd, kind).from_pretrained(folder, controlnet=ours, **options)
    config = {**SD1, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    theirs.scheduler = diffusers.DDIMScheduler(**config)
    ours.scheduler = schedulers.DDIMScheduler(**config)
    return theirs, ours


ONE = {
    "plain": {},
    "numbers and a part of the steps": {"controlnet_conditioning_scale": 0.6, "guidance_scale": 3.0,
                                        "control_guidance_start": 0.2,
                                        "control_guidance_end": [0.8]},
    "guess mode": {"guess_mode": True, "num_images_per_prompt": 2},
    "guess mode, unguided": {"guess_mode": True, "guidance_scale": 1.0, "eta": 0.5},
    "its own size": {"image": picture(2, 100, 76), "height": None, "width": None},
    "a picture a prompt": {"prompt": [PROMPT, "a bowl of soup"], "num_images_per_prompt": 2,
                           "image": [picture(2), picture(3)]},
    "numbers for a picture": {"image": np.asarray(picture(4), "f4")[None, :32] / 255},
}  # fmt: skip


@pytest.fixture(scope="module")
def one(folder, nets):  # noqa: F811
    return pair(folder, nets, "plain")


@pytest.mark.parametrize("name", ONE)
def test_one_controlnet(one, name):
    options = {"prompt": PROMPT, "image": picture(1), "num_inference_steps": 4}
    same_picture(*one, **options | ONE[name])


def test_it_changes_the_picture(one):
    with_and_without = [one[1](PROMPT, picture(1), num_inference_steps=2, generator=1,
                               controlnet_conditioning_scale=scale, output_type="np").images
                        for scale in (0.0, 1.0)]
    assert np.abs(np.subtract(*with_and_without)).max() > 0.05


@pytest.mark.parametrize("name, options", [
    ("pooled", {}), ("bgr", {"controlnet_conditioning_scale": 2.0})])
def test_other_kinds(folder, nets, name, options):  # noqa: F811
    same_picture(*pair(folder, nets, name), prompt=PROMPT, image=picture(1), **options)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_several(folder, nets, backend):  # noqa: F811
    same_picture(*pair(folder, nets, "plain", "bgr", backend=backend), prompt=PROMPT,
                 image=[picture(1), picture(2)], controlnet_conditioning_scale=[0.7, 1.5],
                 control_guidance_start=[0.0, 0.4], control_guidance_end=[0.6, 1.0],
                 negative_prompt="blurry")


@pytest.mark.parametrize("options", [
    {}, {"strength": 0.5, "guess_mode": True, "control_guidance_end": 0.5},
    {"image": picture(5, 40, 30), "control_image": picture(6, 100, 50)}],
    ids=["plain", "guess mode", "pictures of other sizes"])
def test_from_a_picture(folder, nets, options):  # noqa: F811
    same_picture(*pair(folder, nets, "plain", kind="Img2Img"), **{
        "prompt": PROMPT, "image": picture(3), "control_image": picture(1),
        "num_inference_steps": 4} | options)


@pytest.mark.parametrize("options", [{}, {"strength": 0.6, "num_images_per_prompt": 2}], ids=str)
def test_with_a_mask(folder, nets, options):  # noqa: F811
    mask = Image.fromarray(np.uint8(255) * (np.arange(SIZE) > SIZE // 2)[None].repeat(SIZE, 0))
    same_picture(*pair(folder, nets, "plain", kind="Inpaint"), **{
        "prompt": PROMPT, "image": picture(3), "mask_image": mask, "control_image": picture(1),
        "num_inference_steps": 4} | options)


def test_diffusers_reads_the_training_codes_names_alike(nets, tmp_path):
    """A file with the names that refsd looks for is, to diffusers too, the folder's ControlNet."""
    tensors = read_safetensors(nets / "plain" / "diffusion_pytorch_model.safetensors")
    places = CONTROLNET.locate(to_tree(dict.fromkeys(tensors)))
    path = tmp_path / "control_sd15_any.safetensors"
    write_safetensors(path, {CONTROLNET.prefix + place.name: tensors[name]
                             for name, place in places.items()})
    found = ControlNetModel.from_single_file(str(path), config=str(nets / "plain"))
    assert found.state_dict().keys() == tensors.keys()
    for name, tensor in found.state_dict().items():
        assert np.array_equal(tensor.numpy(), tensors[name]), name
