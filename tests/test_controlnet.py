"""ControlNets: what the network is made of, the files they come in, and what may be asked of them.

tests/parity compares with diffusers.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from model_samples import values

import refsd
from refsd import functional as F
from refsd.errors import ModelError, UsageError
from refsd.families import CONTROLNET
from refsd.models.controlnet import ControlNetConfig, controlnet, embed_hint
from refsd.models.unet import down, embed_time, middle
from refsd.networks import shapes_of
from refsd.pipelines.control import Active, Asked, Control, check_nets, check_wishes
from refsd.pipelines.controlnet import ControlNet
from refsd.weights import to_tree, write_safetensors
from refsd.weights.control import plan_controlnet

CONFIG = {key: value for key, value in tiny.UNET.items()
          if key not in ("sample_size", "up_block_types")} | {
    "_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [3, 4, 5, 6]}


def tensors(seed=0, config=CONFIG):
    random = np.random.default_rng(seed)
    shapes = shapes_of("controlnet", config)
    return {name: tiny._weight(name, shape, random) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """The same ControlNet as a folder, and as files of both kinds of names."""
    root = tmp_path_factory.mktemp("nets")
    found = tensors()
    (root / "folder").mkdir()
    (root / "folder" / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(root / "folder" / "diffusion_pytorch_model.safetensors", found)
    places = CONTROLNET.locate(to_tree(found))
    for name, prefix in (("ldm", "control_model."), ("bare", ""), ("whole", "control_model.")):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(CONFIG))
        more = {"model.diffusion_model.out.2.bias": np.zeros(4, "f4")} if name == "whole" else {}
        write_safetensors(root / name / "net.safetensors", more | {
            prefix + place.name: found[ours] for ours, place in places.items()})
    return root


@pytest.fixture(scope="module")
def net(nets):
    return ControlNet.from_pretrained(nets / "folder", backend="numpy")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, net):
    folder = tiny.write_model(tmp_path_factory.mktemp("model") / "tiny")
    return refsd.StableDiffusionControlNetPipeline.from_pretrained(
        folder, controlnet=net, backend="numpy")


@pytest.mark.parametrize("file", ["ldm/net.safetensors", "bare/net.safetensors",
                                  "whole/net.safetensors",
                                  "folder/diffusion_pytorch_model.safetensors"])
def test_files_of_both_kinds_of_names(nets, net, file, caplog):
    found = ControlNet.from_pretrained(nets / file, backend="numpy")
    assert found.config == net.config
    sample, text, picture = values(1, 2, 4, 4, 4), values(2, 2, 5, 16), values(3, 1, 3, 32, 32)
    for a, b in zip(found(sample, 7, text, picture)[0], net(sample, 7, text, picture)[0]):
        assert np.array_equal(a, b)
    assert ("1 tensors are not the ControlNet's" in caplog.text) == file.startswith("whole")


def test_it_is_the_unets_way_down_seen_through_its_convolutions(net):
    """With 1 x 1 convolutions that change nothing: the UNet's skips; conv_in's has the picture.
    """
    tree = to_tree(tensors())
    for block in (*tree["controlnet_down_blocks"], tree["controlnet_mid_block"]):
        block["weight"] = np.eye(len(block["bias"]), dtype="f4")[:, :, None, None]
        block["bias"] = np.zeros_like(block["bias"])
    sample, text, hint = values(1, 2, 4, 4, 4), values(2, 2, 5, 16), values(3, 1, 8, 4, 4)
    trunk = {key: block for key, block in tree.items() if key != "controlnet_cond_embedding"}
    residuals, mid = controlnet(sample, np.array([3.0, 981.0]), text, hint, **trunk,
                                config=net.config)

    temb = embed_time(np.array([3.0, 981.0]), None, **tree["time_embedding"], config=net.config,
                      dim=8, dtype="float32")
    skips = [F.conv2d(sample, **tree["conv_in"], padding=1) + hint]
    h = skips[0]
    for block, heads in zip(tree["down_blocks"], net.config.heads):
        h = down(h, temb, text, skips, **block, heads=heads, config=net.config)
    h = middle(h, temb, text, **tree["mid_block"], heads=net.config.heads[-1], config=net.config)
    assert len(residuals) == len(skips)
    for found, wanted in zip((*residuals, mid), (*skips, h)):
        np.testing.assert_array_equal(found, wanted)


def test_every_second_convolution_halves_the_picture_and_bgr_turns_it(net):
    tree = to_tree(tensors())["controlnet_cond_embedding"]
    picture = values(5, 1, 3, 16, 24)
    assert embed_hint(picture, **tree, config=net.config).shape == (1, 8, 2, 3)
    other = ControlNetConfig(**{**vars(net.config), "channel_order": "bgr"})
    np.testing.assert_array_equal(embed_hint(picture[:, ::-1], **tree, config=other),
                                  embed_hint(picture, **tree, config=net.config))


def test_residuals_of_zeros_change_no_bit_and_others_each_skip(pipe):
    sample, text = values(1, 1, 4, 4, 4), values(2, 1, 5, 16)
    plain = pipe.unet(sample, 7, text)
    shapes = [(1, 8, 4, 4), (1, 8, 4, 4), (1, 8, 2, 2), (1, 16, 2, 2), (1, 16, 2, 2)]
    zeros = [np.zeros(shape, "f4") for shape in shapes]
    def ask(residuals):
        return pipe.unet(sample, 7, text, down_block_additional_residuals=residuals[:-1],
                         mid_block_additional_residual=residuals[-1])
    assert np.array_equal(ask(zeros), plain)
    for i, shape in enumerate(shapes):
        changed = [*zeros[:i], np.ones(shape, "f4"), *zeros[i + 1:]]
        assert not np.array_equal(ask(changed), plain), i
    with pytest.raises(UsageError, match="3 down_block_additional_residuals for 4 skips"):
        ask(zeros[1:])
    with pytest.raises(UsageError, match="belong together"):
        pipe.unet(sample, 7, text, mid_block_additional_residual=zeros[-1])


def test_a_step_outside_of_its_part_asks_nothing(net, monkeypatch):
    asked = []
    monkeypatch.setattr(ControlNet, "__call__", lambda self, *a: asked.append(a) or ([1], 2))
    hint = net.embed(values(1, 1, 3, 32, 32))
    control = Control([Active(net, hint, 1.0, 0.25, 0.75)], batch=1, steps=8, guess_mode=False)
    x = values(2, 1, 4, 4, 4)
    found = [bool(control(x, 7, None, i)) for i in range(8)]
    assert found == [False, False, True, True, True, True, False, False] and len(asked) == 4


def test_the_scale_is_a_factor_and_guess_mode_rises_to_it(net):
    sample, text, picture = values(1, 1, 4, 4, 4), values(2, 1, 5, 16), values(3, 1, 3, 32, 32)
    one, half, guess = (net(sample, 7, text, picture, *more)
                        for more in ((), (0.5,), (2.0, True)))
    for a, b in zip((*one[0], one[1]), (*half[0], half[1])):
        np.testing.assert_array_equal(a * np.float32(0.5), b)
    assert len(guess[0]) == 4
    for a, b, scale in zip((*one[0], one[1]), (*guess[0], guess[1]), 2 * np.logspace(-1, 0, 5)):
        np.testing.assert_allclose(b, a * scale, rtol=2.01 * 2.0**-24)  # the factor, the product


ODD = {
    "Control-LoRA": ({"lora_controlnet": np.zeros(0, "f4")}, "Control-LoRA"),
    "difference": ({"difference": np.zeros(1, "f4")}, "difference from the UNet"),
    "T2I": ({"body.0.in_conv.weight": np.zeros(1, "f4")}, "T2I-Adapter"),
    "a VAE": ({"decoder.conv_in.weight": np.zeros(1, "f4")}, "there is no ControlNet in it"),
    "half of one": ({"input_hint_block.0.weight": np.zeros((16, 3, 3, 3), "f4")}, "missing"),
    "of diffusers' names": ({"controlnet_cond_embedding.conv_in.weight":
                             np.zeros((16, 3, 3, 3), "f4")}, "missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_other_files_are_refused_by_name(tmp_path, name):
    found, message = ODD[name]
    write_safetensors(tmp_path / "x.safetensors", found)
    with pytest.raises(ModelError, match=message) as refused:
        ControlNet.from_pretrained(tmp_path / "x.safetensors")
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="no such file or folder"):
        plan_controlnet(tmp_path / "nowhere")


@pytest.mark.parametrize("key, value", [
    ("class_embed_type", "timestep"), ("mid_block_type", None), ("layers_per_block", [1, 2]),
    ("controlnet_conditioning_channel_order", "grb"), ("_class_name", "ControlNetUnionModel"),
    ("conditioning_embedding_out_channels", [3, 1 << 20])])
def test_configs_that_are_not_computed(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, key: value}))
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", tensors())
    with pytest.raises(ModelError, match=key.replace("_class_name", "the class is")):
        ControlNet.from_pretrained(tmp_path)


P = np.zeros((1, 3, 32, 32), "f4")


@pytest.mark.parametrize("options, message", [
    ({}, "image is None"), ({"image": P[0, 0]}, "image has shape"),
    ({"image": np.zeros((3, 3, 32, 32), "f4"), "prompt": ["a", "b"]}, "3 control pictures for 2"),
    ({"image": P, "controlnet_conditioning_scale": [1, 2]}, "2 numbers for 1 ControlNets"),
    ({"image": P, "controlnet_conditioning_scale": "much"}, "controlnet_conditioning_scale is"),
    ({"image": P, "control_guidance_start": 0.5, "control_guidance_end": 0.5}, "start before"),
    ({"image": P, "control_guidance_end": 1.5}, "control_guidance_end is 1.5"),
    ({"image": P, "guess_mode": 1}, "guess_mode is 1"), ({"image": P, "height": 33}, "height"),
    ({"image": P, "control_scale": 1}, "control_scale"),
    ({"image": P, "control_guidance_ends": 1},
     "^StableDiffusionControlNetPipeline has no .* did you mean control_guidance_end"),
    ({"image": P, "clip_skp": 1}, "did you mean clip_skip")], ids=str)  # fmt: skip
def test_what_cannot_be_asked(pipe, options, message):
    with pytest.raises(UsageError, match=message):
        pipe(**{"prompt": "a", "num_inference_steps": 1} | options)


def test_parts_that_do_not_fit(pipe, net, nets):
    for wrong, message in (([], "empty"), ("canny", "from_pretrained"),
                           (ControlNet.from_pretrained(nets / "folder", backend="numpy",
                                                       dtype="float64"), "dtype is float64")):
        with pytest.raises(UsageError, match=message):
            pipe.controlnet = wrong
    with pytest.raises(UsageError, match="controlnet is missing"):
        refsd.StableDiffusionControlNetPipeline.from_pretrained(backend="numpy")
    assert pipe.controlnet is net
    both = refsd.StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=[net, net])
    with pytest.raises(UsageError, match="1 pictures for 2"):
        both("a", [P])
    with pytest.raises(UsageError, match="2 sizes"):
        both("a", [P, P[:, :, :16]])
    assert refsd.StableDiffusionControlNetPipeline.from_pipe(both).controlnet == [net, net]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(nets, dtype):
    """What is computed with stays a half, also where it is scaled, added up and pooled."""
    found = ControlNet.from_pretrained(nets / "folder", backend="numpy", dtype=dtype)
    pooled = ControlNet(found.tree, ControlNetConfig(**{**vars(found.config), "global_pool": True}),
                        "numpy")
    sample, text, picture = values(1, 1, 4, 4, 4), values(2, 1, 5, 16), values(3, 1, 3, 32, 32)
    for one in (found, pooled):
        skips, middle = one(sample, 7, text, picture, 0.7)
        assert {str(x.dtype) for x in (*skips, middle)} == {dtype}


def test_a_unet_reads_no_intrablock_residuals(pipe):
    with pytest.raises(UsageError, match="T2I-Adapter"):
        pipe.unet(values(1, 1, 4, 4, 4), 7, values(2, 1, 5, 16),
                  down_intrablock_additional_residuals=[1])


def test_a_folder_that_diffusers_saved_has_its_own(nets, tmp_path, net):
    folder = tiny.write_model(tmp_path / "model")
    for name in ("controlnet", "controlnet_1"):
        shutil.copytree(nets / "folder", folder / name)
    pipe = refsd.StableDiffusionControlNetPipeline.from_pretrained(folder, backend="numpy",
                                                                   dtype="float64")
    assert [one.dtype for one in pipe.controlnet] == ["float64", "float64"]
    with pytest.raises(UsageError, match="StableDiffusionControlNetPipeline takes it"):
        refsd.StableDiffusionPipeline.from_pretrained(folder, controlnet=net)


def test_with_a_picture_and_with_a_mask(pipe):
    image, mask = np.full((1, 3, 32, 32), 0.75, "f4"), np.ones((1, 1, 32, 32), "f4")
    other = refsd.StableDiffusionControlNetImg2ImgPipeline.from_pipe(pipe)
    drawn = other("a", image, P, num_inference_steps=2, generator=1, output_type="np").images
    plain = refsd.StableDiffusionImg2ImgPipeline.from_pipe(pipe)(
        "a", image, num_inference_steps=2, generator=1, output_type="np").images
    silent = other("a", image, P, num_inference_steps=2, generator=1, output_type="np",
                   controlnet_conditioning_scale=0.0).images
    assert np.array_equal(silent, plain) and not np.array_equal(drawn, plain)
    with pytest.raises(UsageError, match="image is 32 x 32, control_image 16 x 32"):
        other("a", image, P[..., :16])
    assert other.controlled is None, "after an error too"
    with pytest.raises(UsageError, match="pictures are 32 x 32, what is drawn 16 x 16; give them"):
        Asked([pipe.controlnet], [P], check_wishes([pipe.controlnet], 1, 0, 1, False)).begin(
            1, 1, (2, 2))
    other = refsd.StableDiffusionControlNetInpaintPipeline.from_pipe(pipe)
    assert other("a", image, mask, P, num_inference_steps=1).images[0].size == (32, 32)
    with pytest.raises(UsageError, match="padding_mask_crop"):
        other("a", image, mask, P, padding_mask_crop=8)


def test_what_is_added_decides_how_a_drawing_is_resumed(net):
    """Another picture, scale or part of the steps, and a saved drawing is not gone on with."""
    from refsd.pipelines.resume import _hash

    hints = [net.embed(values(seed, 1, 3, 32, 32)) for seed in (1, 2)]
    hashes = {_hash(*Control([Active(net, *how)], batch=1, steps=8, guess_mode=guess).arrays())
              for how, guess in (((hints[0], 1.0, 0.0, 1.0), False), ((hints[1], 1.0, 0.0, 1.0),
                                 False), ((hints[0], 0.9, 0.0, 1.0), False),
                                 ((hints[0], 1.0, 0.5, 1.0), False),
                                 ((hints[0], 1.0, 0.0, 1.0), True))}
    assert len(hashes) == 5


def test_it_reads_latents_whatever_else_the_unet_reads(net):
    """An inpainting UNet of nine channels takes the ControlNets of any other."""
    unet = SimpleNamespace(backend=net.backend, dtype=net.dtype, text_width=net.text_width,
                           in_channels=9)
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=4, downscale=8))
    pipe = SimpleNamespace(unet=unet, vae=vae)
    assert check_nets(pipe, net) == [net]
    vae.config.latent_channels = 16
    with pytest.raises(UsageError, match="in_channels is 4, latents have 16 channels; give one"):
        check_nets(pipe, net)


def test_recorders_have_the_checkpoints_names(net):
    """Golden packs, the audit and the profiler name a tensor by its layer."""
    from refsd.leaf import layer_of

    layers = []
    with refsd.watch(lambda op, inputs, options, output: layers.append(layer_of(inputs))):
        net(values(1, 1, 4, 4, 4), 7, values(2, 1, 5, 16), values(3, 1, 3, 32, 32))
    named = [layer for layer in layers if layer]
    assert all(layer.startswith("controlnet.") for layer in named)
    assert {"controlnet.conv_in", "controlnet.controlnet_cond_embedding.blocks.0",
            "controlnet.controlnet_down_blocks.3", "controlnet.controlnet_mid_block",
            "controlnet.mid_block.attentions.0.proj_in"} <= set(named)
