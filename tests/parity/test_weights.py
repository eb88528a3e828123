"""Names, shapes and bits of checkpoints against diffusers, transformers, torch and safetensors."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from refsd.families import SD1, sd1, sd2, sdxl
from refsd.networks import shapes_of
from refsd.weights import load_checkpoint, load_folder, read_safetensors, write_safetensors
from refsd.weights.ldm import ema_name, ldm_locations, to_ldm

torch.set_num_threads(1)

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNETS = {
    "SD 1.5": {k: v for k, v in sd1.UNET.items() if k != "_class_name"},
    "SD 2 like": {"use_linear_projection": True, "cross_attention_dim": 1024,
                  "attention_head_dim": [5, 10, 20, 20]},
    "SDXL base": {k: v for k, v in sdxl.UNET.items() if k != "_class_name"},
    "SDXL refiner": {k: v for k, v in sdxl.REFINER_UNET.items() if k != "_class_name"},
    "SD 2.1": {k: v for k, v in sd2.UNET.items() if k != "_class_name"},
    "SD 2 inpainting": {"use_linear_projection": True, "cross_attention_dim": 1024,
                        "attention_head_dim": [5, 10, 20, 20], "in_channels": 9},
    "depths a layer": {"block_out_channels": [32, 64], "cross_attention_dim": 8,
                       "down_block_types": [CROSS_DOWN] * 2, "up_block_types": [CROSS_UP] * 2,
                       "layers_per_block": [2, 1], "attention_head_dim": [2, 4],
                       "transformer_layers_per_block": [[1, 3], [2]],
                       "reverse_transformer_layers_per_block": [[4, 1], [2, 1, 5]],
                       "addition_embed_type": "text_time", "addition_time_embed_dim": 6,
                       "projection_class_embeddings_input_dim": 50},
    "small, LCM": {"block_out_channels": [32, 64], "cross_attention_dim": 8, "layers_per_block": 1,
                   "down_block_types": [CROSS_DOWN, "DownBlock2D"], "norm_num_groups": 8,
                   "up_block_types": ["UpBlock2D", CROSS_UP], "time_cond_proj_dim": 24,
                   "attention_head_dim": 4},
    "odd levels": {"block_out_channels": [32, 64, 96], "attention_head_dim": [2, 4, 8],
                   "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
                   "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
                   "layers_per_block": [1, 2, 3], "cross_attention_dim": [8, 16, 24],
                   "time_embedding_dim": 100, "in_channels": 9, "out_channels": 5},
    "BK-SDM-Tiny": {"block_out_channels": [320, 640, 1280], "cross_attention_dim": 768,
                    "down_block_types": [CROSS_DOWN] * 3, "up_block_types": [CROSS_UP] * 3,
                    "layers_per_block": 1, "mid_block_type": None},
    "a middle block without text": {"mid_block_type": "UNetMidBlock2D"},
    "one level": {"block_out_channels": [64], "down_block_types": [CROSS_DOWN],
                  "up_block_types": [CROSS_UP], "cross_attention_dim": 8},
    "no attention": {"block_out_channels": [32, 32], "down_block_types": ["DownBlock2D"] * 2,
                     "up_block_types": ["UpBlock2D"] * 2, "cross_attention_dim": 8},
}  # fmt: skip
VAES = {
    "SD 1.5": {k: v for k, v in sd1.VAE.items() if k != "_class_name"},
    "defaults": {},
    "small": {"block_out_channels": [32, 96], "down_block_types": ["DownEncoderBlock2D"] * 2,
              "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 7,
              "mid_block_add_attention": False, "use_quant_conv": False},
}  # fmt: skip
TEXTS = {
    "OpenCLIP bigG": {k: v for k, v in sdxl.TEXT_ENCODER_2.items() if k != "architectures"},
    "SD 1.5": {k: v for k, v in sd1.TEXT_ENCODER.items() if k != "architectures"},
    "small": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "vocab_size": 50,
              "num_attention_heads": 4, "max_position_embeddings": 16, "projection_dim": 10},
}  # fmt: skip


def saved_shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_unet_names_and_shapes(config):
    with init_empty_weights():
        model = UNet2DConditionModel(**config)
    assert shapes_of("unet", config) == saved_shapes(model)
    assert shapes_of("unet", model.config) == saved_shapes(model)


@pytest.mark.parametrize("config", VAES.values(), ids=VAES)
def test_vae_names_and_shapes(config):
    with init_empty_weights():
        model = AutoencoderKL(**config)
    assert shapes_of("vae", config) == saved_shapes(model)
    assert shapes_of("vae", model.config) == saved_shapes(model)


@pytest.mark.parametrize("config", TEXTS.values(), ids=TEXTS)
def test_text_encoder_names_and_shapes(config):
    with init_empty_weights():
        plain = CLIPTextModel(CLIPTextConfig(**config))
        projected = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    found = {name.removeprefix("text_model."): s
             for name, s in shapes_of("text_encoder", config).items()}
    assert found == saved_shapes(plain)
    config = {**config, "architectures": ["CLIPTextModelWithProjection"]}
    assert shapes_of("text_encoder", config) == saved_shapes(projected)


def test_stable_diffusion_15_counts():
    """686 + 248 + 196 tensors; 859,520,964 + 83,653,863 + 123,060,480 parameters."""
    counts = {
        name: (len(shapes), sum(int(np.prod(s)) for s in shapes.values()))
        for name, shapes in (
            ("unet", shapes_of("unet", sd1.UNET)),
            ("vae", shapes_of("vae", sd1.VAE)),
            ("text_encoder", shapes_of("text_encoder", sd1.TEXT_ENCODER)),
        )
    }
    assert counts == {
        "unet": (686, 859_520_964),
        "vae": (248, 83_653_863),
        "text_encoder": (196, 123_060_480),
    }


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    unet = {**UNETS["small, LCM"], "cross_attention_dim": 24, "sample_size": 8}
    vae = {**VAES["small"], "latent_channels": 4, "mid_block_add_attention": True}
    return {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXTS["small"])),
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**vae),
    }


def assert_equal_bits(ours, state, dtype):
    """Names as in the state, and every value the float32 of the stored one, to the bit."""
    ours = {name.removeprefix("text_model."): array for name, array in ours.items()}
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.to(dtype).float().numpy()
        assert ours[name].dtype == np.float32 and ours[name].shape == expected.shape
        assert (ours[name].view(np.uint32) == expected.view(np.uint32)).all(), name


SAVED = {
    "float32": (torch.float32, {}),
    "float16": (torch.float16, {}),
    "bfloat16": (torch.bfloat16, {}),
    "sharded": (torch.float32, {"max_shard_size": "40KB"}),
    "variant": (torch.float16, {"variant": "fp16"}),
    "sharded variant": (torch.float16, {"variant": "fp16", "max_shard_size": "20KB"}),
}


@pytest.mark.parametrize("dtype, options", SAVED.values(), ids=SAVED)
def test_saved_folders_are_read_bit_for_bit(models, tmp_path, dtype, options):
    states = {name: model.state_dict() for name, model in models.items()}
    for name, model in models.items():
        copy.deepcopy(model).to(dtype).save_pretrained(tmp_path / name, **options)
    if "max_shard_size" in options:
        assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2

    found = load_checkpoint(tmp_path)
    for name, component in found.items():
        assert_equal_bits(component.tensors, states[name], dtype)
        assert_equal_bits(load_folder(tmp_path, name).tensors, states[name], dtype)


def test_every_dtype_torch_can_save_is_read_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    bits = torch.randint(-(1 << 15), 1 << 15, (70_000,)).to(torch.int16)
    tensors = {
        "f16": bits.view(torch.float16),
        "bf16": bits.view(torch.bfloat16),
        "f32": torch.randn(3, 5),
        "f64": torch.randn(2, 2, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "i64": torch.tensor([-(1 << 62), 5]),
        "i32": torch.tensor([-5, 5], dtype=torch.int32),
        "i16": bits[:7],
        "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
    }
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "x.safetensors")
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.float().numpy() if name == "bf16" else tensor.numpy()
        assert found[name].dtype == expected.dtype and found[name].shape == expected.shape
        assert found[name].tobytes() == expected.tobytes(), name
    wide = read_safetensors(tmp_path / "x.safetensors", dtype="float32")
    nan = np.isnan(wide["f16"])
    assert (wide["f16"][~nan] == tensors["f16"].float().numpy()[~nan]).all()
    assert (nan == tensors["f16"].isnan().numpy()).all()
    assert wide["i64"].dtype == np.int64


def test_a_variant_of_one_part_is_read_as_diffusers_reads_it(models, tmp_path):
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    other = UNet2DConditionModel(**models["unet"].config)
    other.save_pretrained(tmp_path / "unet", variant="fp16")
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False,
             "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": [None, None],
             "scheduler": ["diffusers", "DDIMScheduler"]}  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    theirs = StableDiffusionPipeline.from_pretrained(
        tmp_path, variant="fp16", scheduler=DDIMScheduler(), tokenizer=None, safety_checker=None,
        feature_extractor=None, image_encoder=None)  # fmt: skip
    found = load_checkpoint(tmp_path, variant="fp16")
    for name, state in (("unet", other), ("vae", models["vae"]),
                        ("text_encoder", models["text_encoder"])):  # fmt: skip
        assert_equal_bits(found[name].tensors, state.state_dict(), torch.float32)
        assert_equal_bits(found[name].tensors, getattr(theirs, name).state_dict(), torch.float32)


def test_every_8_bit_float_is_torchs(tmp_path):
    codes = torch.arange(256).to(torch.uint8)
    tensors = {str(kind): codes.clone().view(kind)
               for kind in (torch.float8_e4m3fn, torch.float8_e5m2)}  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors")
    for name, found in read_safetensors(tmp_path / "x.safetensors").items():
        expected = tensors[name].float().numpy()
        nan = np.isnan(expected)
        assert found.dtype == np.float32 and (np.isnan(found) == nan).all()
        assert (found.view("u4") == expected.view("u4"))[~nan].all()


def test_single_file_is_read_by_diffusers(tmp_path):
    """A file from our table, read by diffusers' own converter, gives the names we started from."""
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    # diffusers' converter leaves out the guidance embedding of distilled models
    config = UNet2DConditionModel(**UNETS["small, LCM"] | {"time_cond_proj_dim": None}).config
    unet = {n: np.full(s, i, "f4") for i, (n, s) in enumerate(shapes_of("unet", config).items())}
    vae_config = AutoencoderKL(**VAES["SD 1.5"] | {"block_out_channels": [32] * 4}).config
    vae = {n: np.full(s, i, "f4") for i, (n, s) in enumerate(shapes_of("vae", vae_config).items())}
    file = to_ldm("unet", unet, config) | to_ldm("vae", vae, vae_config)
    file = {name: torch.from_numpy(array) for name, array in file.items()}

    theirs = convert_ldm_unet_checkpoint(dict(file), config=config)
    assert theirs.keys() == unet.keys()
    assert all((theirs[name].numpy() == array).all() for name, array in unet.items())
    theirs = convert_ldm_vae_checkpoint(dict(file), config=vae_config)
    assert theirs.keys() == vae.keys()
    assert all((theirs[name].numpy() == array).all() for name, array in vae.items())

    averages = {ema_name(name): -tensor for name, tensor in file.items() if "diffusion_m" in name}
    theirs = convert_ldm_unet_checkpoint(file | averages, config=config, extract_ema=True)
    assert all((theirs[name].numpy() == -array).all() for name, array in unet.items())


def test_single_file_names_of_stable_diffusion_15_match_diffusers():
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    for component, convert in (
        ("unet", convert_ldm_unet_checkpoint),
        ("vae", convert_ldm_vae_checkpoint),
    ):
        names = ldm_locations(component, SD1.configs[component])
        names = {ours: location.name for ours, location in names.items()}
        kernel = torch.empty(2, 2, 1, 1)  # the converters look at the rank of some
        tagged = {theirs: kernel.clone() for theirs in names.values()}
        where = {tensor.data_ptr(): theirs for theirs, tensor in tagged.items()}
        found = convert(dict(tagged), config=with_defaults(component))
        assert {ours: where[t.data_ptr()] for ours, t in found.items()} == names


def with_defaults(component):
    with init_empty_weights():
        kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[component]
        return kind(**{k: v for k, v in SD1.configs[component].items() if k[0] != "_"}).config


def test_our_files_are_read_by_safetensors_with_equal_bits(tmp_path):
    from safetensors.torch import load_file

    arrays = {"a": np.arange(6, dtype="f4").reshape(2, 3).T, "b": np.float16([1, 2]),
              "c": np.array(3.5), "d": np.zeros((0, 2), "i8")}  # fmt: skip
    write_safetensors(tmp_path / "x.safetensors", arrays, {"made by": "refsd"})
    found = load_file(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        assert found[name].numpy().shape == array.shape
        assert (found[name].numpy() == array).all()


def test_model_index_written_by_diffusers_is_accepted(models, tmp_path):
    from refsd.text.vocabulary import clip_vocabulary

    (tmp_path / "raw").mkdir()
    vocabulary = clip_vocabulary()
    (tmp_path / "raw" / "vocab.json").write_text(json.dumps(vocabulary.tokens))
    (tmp_path / "raw" / "merges.txt").write_text("\n".join(map(" ".join, vocabulary.merges)))
    from transformers import CLIPTokenizer

    pipe = StableDiffusionPipeline(
        **models, tokenizer=CLIPTokenizer.from_pretrained(tmp_path / "raw"),
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(tmp_path / "model")
    found = load_checkpoint(tmp_path / "model")
    assert set(found) == {"text_encoder", "unet", "vae"}
    assert found["unet"].tree["down_blocks"][0]["resnets"][0]["conv1"]["weight"].shape[0] == 32
