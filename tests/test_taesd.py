"""Tiny autoencoders: what the layers do, the files they come in, and VAEs replaced by them.

tests/parity compares with diffusers.
"""

import json

import numpy as np
import pytest
import tiny
from model_samples import values

import refsd
from refsd.errors import ModelError, UsageError
from refsd.models import taesd
from refsd.networks import shapes_of
from refsd.pipelines.memory import working_bytes
from refsd.pipelines.taesd import TinyVAE
from refsd.weights import to_tree, write_safetensors
from refsd.weights.taesd import is_taesd, plan_taesd

CONFIG = {"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [6] * 4,
          "decoder_block_out_channels": [5] * 4, "num_encoder_blocks": [1, 1, 1, 1],
          "num_decoder_blocks": [1, 1, 1, 1], "block_out_channels": [5] * 4}


def tensors(config=CONFIG, seed=0):
    random = np.random.default_rng(seed)
    shapes = shapes_of("taesd", config)
    return {name: tiny._weight(name, shape, random) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """The same network as a folder, a file with diffusers' names, and as two of madebyollin's."""
    root, found = tmp_path_factory.mktemp("nets"), tensors()
    for name in ("folder", "own"):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(root / "folder" / "diffusion_pytorch_model.safetensors", found)
    for half, before in (("encoder", 0), ("decoder", 1)):
        mine = {name.removeprefix(f"{half}.layers."): array for name, array in found.items()
                if name.startswith(half)}
        write_safetensors(root / "own" / f"taesd_{half}.safetensors", {
            f"{int(name.split('.')[0]) + before}.{name.partition('.')[2]}": array
            for name, array in mine.items()})
    return root


def opened(path, **options):
    return TinyVAE.open(path, **{"backend": "numpy", "dtype": "float32"} | options)


@pytest.mark.parametrize("file", ["folder/diffusion_pytorch_model.safetensors",
                                  "own/taesd_decoder.safetensors", "own/taesd_encoder.safetensors"])
def test_files_of_all_names_are_the_same_network(nets, file):
    found, folder = opened(nets / file), opened(nets / "folder")
    assert found.config == folder.config and found.config.downscale == 8
    z, image = values(1, 2, 4, 3, 2), values(2, 2, 3, 16, 8)
    assert np.array_equal(found.decode(z), folder.decode(z))
    assert np.array_equal(found.encode(image).latents, folder.encode(image).latents)
    assert found.decode(z).shape == (2, 3, 24, 16)


def test_half_a_network(tmp_path):
    """TAESD's own sizes, which such a file does not say; the decoder's latents have 16 channels."""
    for half, before, channels in (("encoder", 0, 4), ("decoder", 1, 16)):
        found = tensors({"latent_channels": channels})
        write_safetensors(tmp_path / f"only_{half[:3]}.safetensors", {
            f"{int(name.split('.')[2]) + before}.{name.split('.', 3)[3]}": array
            for name, array in found.items() if name.startswith(half)})
    decoder = opened(tmp_path / "only_dec.safetensors")
    assert decoder.decode(values(1, 1, 16, 1, 1)).shape == (1, 3, 8, 8)
    with pytest.raises(UsageError, match="no encoder"):
        decoder.encode(values(1, 1, 3, 8, 8))
    with pytest.raises(UsageError, match="the encoder alone"):
        opened(tmp_path / "only_enc.safetensors")


@pytest.mark.parametrize("held", [{}, {"foo.weight": np.ones((2, 2), np.float32)}])
def test_a_file_of_something_else(tmp_path, held):
    write_safetensors(tmp_path / "other.safetensors", held)
    assert not is_taesd(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="there is no tiny autoencoder in it"):
        opened(tmp_path / "other.safetensors")


def test_latents_beyond_three_are_held_and_blocks_of_zeros_pass_what_is_positive():
    """Convolutions that copy their channels: what is left is the clamp, ReLU and upsampling."""
    tree = to_tree(tensors({**CONFIG, "decoder_block_out_channels": [4] * 4}))["decoder"]["layers"]
    copy = np.zeros((4, 4, 3, 3), "f4")
    copy[range(4), range(4), 1, 1] = 1
    for layer in tree.values():
        for conv in layer["conv"].values() if "conv" in layer else (layer,):
            conv["weight"] = copy if "conv" not in layer else np.zeros_like(copy)
            if "bias" in conv:
                conv["bias"] = np.zeros_like(conv["bias"])
    tree[max(tree, key=int)]["weight"] = copy[:3]
    tree[max(tree, key=int)]["bias"] = np.zeros(3, "f4")
    z = np.float32([1e4, -5, 0.3, 1]).reshape(1, 4, 1, 1)
    y = taesd.decode(z, layers=tree)
    expected = 2 * np.maximum(3 * np.tanh(z[0, :3] / 3), 0) - 1
    assert y.shape == (1, 3, 8, 8)
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


def test_the_encoder_reads_0_to_1_and_halves_without_a_bias():
    """Convolutions that add up their channels' centres: one grey pixel of four is left."""
    centre = np.zeros((3, 3, 3, 3), "f4")
    centre[range(3), range(3), 1, 1] = 1
    layers = [{"weight": centre, "bias": np.zeros(3, "f4")}, {"weight": centre},
              {"weight": centre, "bias": np.zeros(3, "f4")}]
    image = values(1, 1, 3, 4, 6)
    y = taesd.encode(image, layers=layers)
    np.testing.assert_array_equal(y, (image[:, :, ::2, ::2] + 1) / 2)


def test_it_draws_in_the_place_of_the_vae(nets, tmp_path):
    folder = tiny.write_model(tmp_path / "model")
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folder, vae=nets / "folder",
                                                         backend="numpy")
    assert pipe("a", 32, 32, num_inference_steps=1).images[0].size == (32, 32)
    assert pipe.preview(values(1, 1, 4, 2, 2), vae=True)[0].size == (16, 16)
    assert working_bytes(pipe, 512, 512, 1) > 512 * 512 * 4 * 5
    with pytest.raises(UsageError, match="one piece"):
        pipe.vae.enable_tiling()
    plain = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")
    for part in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / "vae" / part).write_bytes((nets / "folder" / part).read_bytes())
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderTiny"]}))
    own = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")
    assert isinstance(own.vae, TinyVAE) and not isinstance(plain.vae, TinyVAE)
    assert is_taesd(folder) and opened(folder).config == own.vae.config
    (folder / "model_index.json").unlink()
    assert is_taesd(folder) and is_taesd(folder / "vae")
    with pytest.raises(UsageError, match="no such file or folder"):
        opened(tmp_path / "nowhere")


@pytest.mark.parametrize("changed, message", [
    ({"act_fn": "silu"}, "act_fn"), ({"upsample_fn": "bilinear"}, "upsample_fn"),
    ({"decoder_block_out_channels": [5, 6, 5, 5]}, "one width"),
    ({"num_encoder_blocks": [1, 1]}, "one width"), ({"shift_factor": "0.1"}, "shift_factor"),
    ({"encoder_block_out_channels": [7] * 4}, "of another shape")])
def test_configs_that_are_not_computed(tmp_path, changed, message):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", tensors())
    with pytest.raises(ModelError, match=message):
        plan_taesd(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(nets, dtype):
    found = opened(nets / "folder", dtype=dtype)
    assert str(found.decode(values(1, 1, 4, 2, 2)).dtype) == dtype
