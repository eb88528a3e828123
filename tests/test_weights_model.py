"""Diffusers folders: found, checked against their configs, refused when anything is wrong."""

import json

import numpy as np
import pytest
from weights_samples import STEM, TINY, entry, file_of, refused, tiny_tensors, write_folder

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.families import SD1
from refsd.networks import shapes_of, validate
from refsd.weights import (
    checkpoint,
    load_checkpoint,
    load_folder,
    memory,
    write_safetensors,
)
from refsd.weights.found import Stored, check


@pytest.fixture
def unread(monkeypatch):
    """Reading a tensor fails the test: the refusal must come before."""
    monkeypatch.setattr(checkpoint, "read_tensors", lambda *a, **k: pytest.fail("tensors read"))


def assert_equal(component, expected):
    assert component.tensors.keys() == expected.keys()
    for name, array in expected.items():
        mine = component.tensors[name]
        assert mine.dtype == np.float32 and mine.shape == array.shape and (mine == array).all()


def test_a_folder_gives_its_tensors_as_trees(tmp_path):
    found = load_checkpoint(write_folder(tmp_path))
    for name in TINY:
        assert_equal(found[name], tiny_tensors(name))
        assert found[name].source == str(tmp_path / name)
    unet = found["unet"]
    assert unet.tree["up_blocks"][1]["resnets"][0]["norm1"]["bias"] is (
        unet.tensors["up_blocks.1.resnets.0.norm1.bias"]
    )
    assert set(unet.tree["mid_block"]["attentions"][0]["transformer_blocks"][0]["ff"]["net"]) == {
        "0", "2",
    }  # fmt: skip
    assert unet.config["norm_eps"] == 1e-5  # a default of diffusers, which the file does not say
    with pytest.raises(ValueError, match="read-only"):  # backends keep what they make of weights
        unet.tree["conv_in"]["weight"][...] *= 2
    wide = load_checkpoint(tmp_path, dtype="float64")["vae"]
    assert all(array.dtype == np.float64 for array in wide.tensors.values())
    assert_equal(load_folder(tmp_path, "vae"), tiny_tensors("vae"))


def test_plain_files_come_before_variants(tmp_path):
    other = {name: tiny_tensors(name, seed=1) for name in TINY}
    write_folder(tmp_path, variant="fp16", **other)
    assert_equal(load_checkpoint(tmp_path)["unet"], other["unet"])
    write_folder(tmp_path)
    assert_equal(load_checkpoint(tmp_path)["unet"], tiny_tensors("unet"))
    assert_equal(load_checkpoint(tmp_path, variant="fp16")["unet"], other["unet"])
    refused(lambda: load_checkpoint(tmp_path, variant="bf16"), "no part has weights of the variant",
            "'bf16'", "there are plain ones")  # fmt: skip
    refused(lambda: load_folder(tmp_path, "vae", variant="bf16"), "no part has weights")
    refused(lambda: load_checkpoint(tmp_path, variant="../x"), "variant", error=UsageError)


def test_old_names_and_kernels_of_the_vae_are_read(tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, array in tiny_tensors("vae").items():
        for new, older in old.items():
            if f"attentions.0.{new}." in name:
                array = array[..., None, None] if name.endswith("weight") else array
                name = name.replace(new, older)
        tensors[name] = array
    write_folder(tmp_path, vae=tensors)
    assert_equal(load_checkpoint(tmp_path)["vae"], tiny_tensors("vae"))


def test_the_text_encoder_is_read_as_transformers_5_writes_it(tmp_path):
    bare = {n.removeprefix("text_model."): t for n, t in tiny_tensors("text_encoder").items()}
    bare["embeddings.position_ids"] = np.arange(8)[None]
    write_folder(tmp_path, text_encoder=bare)
    assert_equal(load_checkpoint(tmp_path)["text_encoder"], tiny_tensors("text_encoder"))


# 7, 10, 11: what is in the files.


def test_nan_weights_are_loaded_with_a_warning(tmp_path, caplog):
    tensors = tiny_tensors("unet")
    tensors["conv_in.bias"][0] = np.nan
    load_checkpoint(write_folder(tmp_path, unet=tensors))
    assert "NaN or infinite weights in conv_in.bias" in caplog.text and str(tmp_path) in caplog.text


def test_missing_tensors_are_named_with_the_nearest(tmp_path, unread):
    tensors = tiny_tensors("unet")
    tensors["conv_inn.weight"] = tensors.pop("conv_in.weight")
    write_folder(tmp_path, unet=tensors)
    refused(lambda: load_checkpoint(tmp_path), str(tmp_path / "unet"),
            "1 tensor missing: conv_in.weight (nearest: conv_inn.weight)")  # fmt: skip


def test_at_most_five_names_are_listed(tmp_path, unread):
    tensors = {n: t for n, t in tiny_tensors("unet").items() if not n.startswith("mid_block")}
    count = len(tiny_tensors("unet")) - len(tensors)
    write_folder(tmp_path, unet=tensors)
    refused(lambda: load_checkpoint(tmp_path), f"{count} tensors missing: mid_block.resnets",
            f"and {count - 5} more")  # fmt: skip


def test_wrong_shapes_and_types_are_named(tmp_path, unread):
    tensors = tiny_tensors("vae")
    tensors["quant_conv.weight"] = tensors["quant_conv.weight"][:3]
    tensors["quant_conv.bias"] = np.zeros(8, "i4")
    write_folder(tmp_path, vae=tensors)
    refused(lambda: load_checkpoint(tmp_path), str(tmp_path / "vae"),
            "quant_conv.weight is (3, 8, 1, 1), expected (8, 8, 1, 1)",
            "quant_conv.bias is I32")  # fmt: skip


def test_weights_in_8_bits_are_read_and_those_with_many_scales_refused(tmp_path):
    """A model in fp8, each tensor its own codes; ComfyUI's scaled fp8 would need its scales."""
    path = write_folder(tmp_path) / "unet" / f"{STEM['unet']}.safetensors"
    shapes = {name: array.shape for name, array in tiny_tensors("unet").items()}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    ends = np.cumsum(list(sizes.values()))
    header = {name: entry("F8_E4M3", shape, (int(end) - sizes[name], int(end)))
              for (name, shape), end in zip(shapes.items(), ends)}  # fmt: skip
    path.write_bytes(file_of(header, b"\x39" * int(ends[-1])))
    found = load_checkpoint(tmp_path)["unet"].tensors
    assert all((array == 1.125).all() and array.dtype == "f4" for array in found.values())

    end = int(ends[-1])
    for name in ("conv_in.scale_weight", "scaled_fp8", "conv_in.weight_scale"):
        more = {**header, name: entry("F32", (2,), (end, end + 8))}
        path.write_bytes(file_of(more, b"\x39" * end + bytes(8)))
        refused(lambda: load_checkpoint(tmp_path), name, "does not apply", "F8_E4M3")
    integers = {n: {**info, "dtype": "I8"} for n, info in header.items()}
    path.write_bytes(file_of(integers, bytes(end)))
    refused(lambda: load_checkpoint(tmp_path), "conv_in.weight is I8", "Save the weights as one of")


def test_extra_tensors_are_logged_and_not_loaded(tmp_path, caplog):
    tensors = {**tiny_tensors("unet"), "extra.weight": np.ones(2, "f4")}
    found = load_checkpoint(write_folder(tmp_path, unet=tensors))
    assert_equal(found["unet"], tiny_tensors("unet"))
    assert "ignoring 1 tensor unexpected: extra.weight" in caplog.text


def test_weights_of_stable_diffusion_2_under_a_config_of_1_are_recognised():
    config = {**SD1.configs["unet"], "cross_attention_dim": 1024}
    found = {name: Stored("F16", shape) for name, shape in shapes_of("unet", config).items()}
    expected = shapes_of("unet", SD1.configs["unet"])
    refused(lambda: check(found, expected, "unet"), "The text width is 1024, not 768",
            "Stable Diffusion 2.x")  # fmt: skip


def test_linear_and_convolutional_projections_are_told_apart():
    found = {name: Stored("F32", shape) for name, shape in shapes_of("unet", TINY["unet"]).items()}
    linear = shapes_of("unet", {**TINY["unet"], "use_linear_projection": True})
    check(found, shapes_of("unet", TINY["unet"]), "unet")
    refused(lambda: check(found, linear, "unet"), "proj_in.weight is (8, 8, 1, 1), expected (8, 8)")


# 15: shards.


def shard(folder, **changes):
    """The tiny UNet in two shards; changes: tensors that the index says to lie elsewhere."""
    tensors = tiny_tensors("unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    weight_map = {}
    for i, part in enumerate((list(tensors)[:20], list(tensors)[20:])):
        file = f"part-{i}.safetensors"
        write_safetensors(folder / "unet" / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map | changes}
    file = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    file.write_text(json.dumps(index))
    return file


def test_shards_are_read_together(tmp_path):
    shard(write_folder(tmp_path))
    assert_equal(load_checkpoint(tmp_path)["unet"], tiny_tensors("unet"))


def test_what_is_not_read_does_not_matter(tmp_path):
    """Damaged files and links of what nobody asked for lie beside the good ones."""
    write_folder(tmp_path)
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin",
                 "diffusion_pytorch_model.safetensors.index.fp16.json", "notes.json",
                 "diffusion_pytorch_model.bf16-00001-of-00002.safetensors"):  # fmt: skip
        (tmp_path / "unet" / name).write_bytes(b"damaged")
    (tmp_path / "unet" / "diffusion_pytorch_model.ema.safetensors").symlink_to("nowhere")
    # an index that an earlier save left behind, without its shards
    stale = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    stale.write_text(json.dumps({"weight_map": {"conv_in.weight": "gone.safetensors"}}))
    assert_equal(load_checkpoint(tmp_path)["unet"], tiny_tensors("unet"))


def test_an_index_comes_before_a_whole_file_as_in_diffusers(tmp_path):
    write_folder(tmp_path, unet=tiny_tensors("unet", seed=1))
    whole = (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    shard(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(whole)
    assert_equal(load_checkpoint(tmp_path)["unet"], tiny_tensors("unet"))


OUTSIDE = {
    "parent": "../vae/diffusion_pytorch_model.safetensors",
    "far parent": "../../../../etc/passwd",
    "absolute": "/etc/passwd",
    "absolute safetensors": "/tmp/x.safetensors",
    "below": "sub/x.safetensors",
    "backslash": "..\\x.safetensors",
    "drive": "C:x.safetensors",
    "NUL": "x\0.safetensors",
    "dots": "..",
    "hidden": ".safetensors",
    "empty": "",
    "pickle": "x.bin",
    "long": "x" * 300 + ".safetensors",
    "number": 7,
    "list": ["part-0.safetensors"],
}


@pytest.mark.parametrize("place", OUTSIDE.values(), ids=OUTSIDE)
def test_shards_outside_the_folder_are_refused(tmp_path, unread, place):
    index = shard(write_folder(tmp_path), **{"conv_in.weight": place})
    refused(lambda: load_checkpoint(tmp_path), str(index), "'conv_in.weight' lies in")


def test_a_shard_that_is_a_link_out_of_the_model_is_refused(tmp_path, unread):
    outside = tmp_path / "outside.safetensors"
    shard(write_folder(tmp_path / "model"))
    inside = tmp_path / "model" / "unet" / "part-0.safetensors"
    inside.rename(outside)
    inside.symlink_to(outside)
    refused(lambda: load_checkpoint(tmp_path / "model"), "part-0.safetensors", "is not followed")
    inside.unlink()
    inside.symlink_to(inside)
    refused(lambda: load_checkpoint(tmp_path / "model"), "part-0.safetensors")


def test_links_within_the_model_and_into_the_hubs_blobs_are_followed(tmp_path):
    model = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    shard(write_folder(model))
    blobs.mkdir()
    for i, place in enumerate((model / "unet" / "stored.safetensors", blobs / "abcd")):
        file = model / "unet" / f"part-{i}.safetensors"
        file.rename(place)
        file.symlink_to(place)
    assert_equal(load_checkpoint(model)["unet"], tiny_tensors("unet"))


def test_damaged_indices_are_refused(tmp_path, unread):
    index = shard(write_folder(tmp_path), more="part-0.safetensors")
    refused(lambda: load_checkpoint(tmp_path), str(index), "differ in 1 tensors, first 'more'")
    shard_map = json.loads(index.read_text())["weight_map"]
    for content, word in (
        ("[]", "expected an object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "lists y.safetensors"),
        (json.dumps({"weight_map": {f"w{i}": f"{i}.safetensors" for i in range(1001)}}), "1001"),
        (json.dumps({"weight_map": {**shard_map, "w": "gone.safetensors"}}), "no such file"),
    ):
        index.write_text(content)
        refused(lambda: load_checkpoint(tmp_path), str(index.parent), word)


# What is absent, and what is of another kind.


def test_incomplete_folders_are_refused(tmp_path, unread):
    write_folder(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    weights.with_name("diffusion_pytorch_model.ema_only.safetensors").write_bytes(b"")
    refused(lambda: load_checkpoint(tmp_path), str(tmp_path / "unet"), "ema_only, non_ema",
            "variant=")  # fmt: skip
    for file in weights.parent.glob("*.safetensors"):
        file.unlink()
    refused(lambda: load_checkpoint(tmp_path), "Is the download complete?")
    weights.with_name("diffusion_pytorch_model.bin").write_bytes(b"")
    refused(lambda: load_checkpoint(tmp_path), "weights of the unet are there only as", ".bin",
            "can run any code")  # fmt: skip
    weights.with_name("mine.safetensors").write_bytes(b"")
    refused(lambda: load_checkpoint(tmp_path), "but mine.safetensors. Rename the right one")
    (tmp_path / "unet" / "config.json").unlink()
    refused(lambda: load_checkpoint(tmp_path), "config.json", "Is the model complete?")
    refused(lambda: load_checkpoint(tmp_path / "none"), "no such file or folder", error=UsageError)
    refused(lambda: load_folder(tmp_path, "controlnet"), "component", error=UsageError)


def test_a_label_of_another_pipeline_gets_a_line(tmp_path, caplog):
    """The parts decide: test_model_index.py has more."""
    write_folder(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionSAGPipeline"}')
    load_checkpoint(tmp_path)
    assert "made for 'StableDiffusionSAGPipeline'" in caplog.text


@pytest.mark.parametrize(
    "component, changes, words",
    [
        ("unet", {"cross_attention_dim": 24}, ("text of width 24", "gives 12")),
        ("unet", {"in_channels": 6}, ("takes 6 channels", "latents have 4")),
        ("vae", {"latent_channels": 8}, ("gives 4 channels", "latents have 8")),
    ],
)
def test_networks_that_do_not_fit_each_other_are_refused(component, changes, words):
    configs = {name: validate(name, config) for name, config in TINY.items()}
    configs[component] |= changes
    refused(lambda: checkpoint.check_together(configs, "model"), "model: ", *words)


@pytest.mark.parametrize("channels, words", [
    (4, "a text-to-image model.* StableDiffusionPipeline"),
    (8, "InstructPix2Pix.* takes 8 channels. Take StableDiffusionInstructPix2PixPipeline; .*-img"),
    (9, "an inpainting model.*Take StableDiffusionInpaintPipeline; for refsd draw .*--mask")])
def test_what_a_unet_reads_says_which_pipeline_draws_with_it(channels, words):
    configs = {name: validate(name, config) for name, config in TINY.items()}
    configs["unet"] |= {"in_channels": channels}
    checkpoint.check_together(configs, "model")
    others = {4: "mask", 8: "latents", 9: "image"}
    with pytest.raises(ModelError, match=words):
        checkpoint.check_together(configs, "model", (others[channels],))


def test_a_text_encoder_of_another_model_is_refused(tmp_path, unread):
    write_folder(tmp_path)
    config = {**TINY["text_encoder"], "hidden_size": 16}
    tensors = {n: np.zeros(s, "f4") for n, s in shapes_of("text_encoder", config).items()}
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "text_encoder" / "model.safetensors", tensors)
    refused(lambda: load_checkpoint(tmp_path), str(tmp_path), "text of width 12", "gives 16")


def test_options_without_meaning_are_refused(tmp_path):
    write_folder(tmp_path)
    refused(lambda: load_checkpoint(tmp_path, ema=True), "ema", error=UsageError)
    file = tmp_path / "vae" / f"{STEM['vae']}.safetensors"
    refused(lambda: load_checkpoint(file, variant="fp16"), "variant", error=UsageError)
    refused(lambda: load_checkpoint(file, configs={}), "configs", error=UsageError)


def test_a_model_larger_than_the_memory_is_refused_before_reading(tmp_path, monkeypatch, unread):
    write_folder(tmp_path)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    refused(lambda: load_checkpoint(tmp_path), str(tmp_path), "force", error=ResourceError)
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    assert_equal(load_checkpoint(tmp_path, force=True)["vae"], tiny_tensors("vae"))
