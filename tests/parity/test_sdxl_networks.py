"""The networks of SDXL with random weights against diffusers and transformers.

The error bar is that of test_models.py. In halves: test_sdxl_halves.py.
"""

import numpy as np
import pytest
import torch
from bounds import rms
from diffusers import ControlNetModel, UNet2DConditionModel
from test_controlnet import without_zeros
from test_halves import as_array
from test_models import (  # noqa: F401  allowed is a fixture
    allowed,
    compare,
    levels,
    normal,
    randomised,
    tree,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from refsd import functional as F
from refsd.models import config as configs
from refsd.models import unet
from refsd.models.controlnet import ControlNetConfig, controlnet, embed_hint
from refsd.pipelines.components import TextEncoder, UNet
from refsd.registry import active_backend, exact_wanted


def added(text, ids, dim, **more):
    """Options of a UNet that reads a vector of `text` numbers and `ids` time ids."""
    return {"addition_embed_type": "text_time", "addition_time_embed_dim": dim,
            "projection_class_embeddings_input_dim": text + ids * dim, **more}


# configuration, numbers of the text's vector, size, batch, timestep
UNETS = {
    "base, small": (levels(
        [32, 32, 64], [0, 1, 1], layers_per_block=1, attention_head_dim=[2, 2, 4],
        use_linear_projection=True, transformer_layers_per_block=[1, 2, 4], **added(40, 6, 16)),
        40, (16, 16), 2, 500),
    "refiner, small": (levels(
        [32, 32, 64, 64], [0, 1, 1, 0], layers_per_block=1, attention_head_dim=[1, 2, 4, 4],
        use_linear_projection=True, transformer_layers_per_block=4, **added(48, 5, 32)),
        48, (8, 16), 1, 199),
    "odd sizes": (levels(
        [33, 55], [1, 1], layers_per_block=1, attention_head_dim=11, norm_num_groups=11,
        transformer_layers_per_block=[3, 2], flip_sin_to_cos=False, freq_shift=1,
        **added(21, 6, 7)), 21, (9, 13), 2, 999),
    "depths a layer": (levels(
        [32, 32, 64], [0, 1, 1], layers_per_block=2, attention_head_dim=[2, 2, 4],
        use_linear_projection=True, transformer_layers_per_block=[1, [2, 2], [4, 4]],
        reverse_transformer_layers_per_block=[[4, 4, 3], [2, 1, 1], 1],
        mid_block_type="UNetMidBlock2D", **added(40, 6, 16)), 40, (8, 8), 2, 999),
}  # fmt: skip


def what_it_reads(name):
    """Latents, text, the text as a vector, and sizes of pictures up to 4096."""
    config, width, size, batch, _ = UNETS[name]
    ids = (config["projection_class_embeddings_input_dim"] - width) // config[
        "addition_time_embed_dim"]
    return (normal(1, batch, 4, *size), normal(2, batch, 77, 48), normal(3, batch, width),
            np.random.default_rng(0).integers(0, 4097, (batch, ids)))


def ask(model, sample, steps, text, vector, ids, **more):
    dtype = next(model.parameters()).dtype
    sample, text, vector = (torch.from_numpy(x).to(dtype) for x in (sample, text, vector))
    with torch.no_grad():
        found = model(sample, torch.from_numpy(steps), text, **more, added_cond_kwargs={
            "text_embeds": vector, "time_ids": torch.from_numpy(ids)}, return_dict=False)
    return [as_array(x) for x in (*found[0], found[1])] if len(found) > 1 else as_array(found[0])


def with_our_ids(model, steps):
    """The model with both kinds of sinusoids in float64, which diffusers computes in float32."""
    options = {"dtype": "float64", "flip_sin_to_cos": model.config.flip_sin_to_cos,
               "freq_shift": model.config.freq_shift}
    model.time_proj.forward = lambda timesteps: torch.from_numpy(
        F.timestep_embedding(steps, dim=model.config.block_out_channels[0], **options))
    model.add_time_proj.forward = lambda ids: torch.from_numpy(
        F.timestep_embedding(ids.numpy(), dim=model.config.addition_time_embed_dim, **options))
    return model


@pytest.mark.parametrize("name", UNETS)
def test_unet(name, allowed):  # noqa: F811
    config, *_, batch, step = UNETS[name]
    torch.manual_seed(0)
    model, steps = randomised(UNet2DConditionModel(**config)), np.full(batch, step)
    sample, text, vector, ids = what_it_reads(name)
    mine = configs.UNetConfig.from_json(model.config)

    def ours(dtype):
        x, context, y = (array.astype(dtype) for array in (sample, text, vector))
        return unet.unet(x, steps, context, **tree(model, dtype), text_embeds=y,
                         time_ids=ids.astype("f4"), config=mine)

    narrow, wide = ours("float32"), ours("float64")
    network = UNet(tree(model, "float32"), mine, active_backend(), exact_wanted())
    through = network(sample, step, text, added_cond_kwargs={"text_embeds": vector,
                                                             "time_ids": ids})
    torch32 = ask(model, sample, steps, text, vector, ids)
    model.double()
    torch64 = ask(model, sample, steps, text, vector, ids)
    same64 = ask(with_our_ids(model, steps), sample, steps, text, vector, ids)
    compare(name, allowed, narrow, torch32, torch64, wide, same64)
    compare(f"{name}, the network", allowed, through, torch32, torch64, wide, same64)
    moved = ask(model, sample, steps, text, vector, ids[:, ::-1].copy())
    assert rms(moved - torch64) > 100 * rms(torch32 - torch64)  # ids that matter are compared


def test_a_controlnet(allowed):  # noqa: F811
    config, *_, batch, step = UNETS["base, small"]
    shared = {key: value for key, value in config.items()
              if key not in ("up_block_types", "sample_size")}
    torch.manual_seed(0)
    net, steps = without_zeros(randomised(ControlNetModel(**shared))), np.full(batch, step)
    sample, text, vector, ids = what_it_reads("base, small")
    picture = np.random.default_rng(4).random((batch, 3, 128, 128), "float32")
    mine = ControlNetConfig.from_json(net.config)

    def ours(dtype):
        x, context, y, hint = (a.astype(dtype) for a in (sample, text, vector, picture))
        found = tree(net, dtype)
        hint = embed_hint(hint, **found.pop("controlnet_cond_embedding"), config=mine)
        skips, middle = controlnet(x, steps, context, hint, **found, text_embeds=y,
                                   time_ids=ids.astype("f4"), config=mine)
        return [*skips, middle]

    def theirs():
        kind = next(net.parameters()).dtype
        return ask(net, sample, steps, text, vector, ids,
                   controlnet_cond=torch.from_numpy(picture).to(kind))

    narrow, wide, torch32 = ours("float32"), ours("float64"), theirs()
    net.double()
    torch64 = theirs()
    with_our_ids(net, steps)
    for i, results in enumerate(zip(narrow, torch32, torch64, wide, theirs(), strict=True)):
        compare(f"ControlNet, {i}", allowed, *results)


# Both networks' activations, both rules for the end of the text.
CLIPS = {
    "bigG, small": {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4,
                    "num_attention_heads": 6, "hidden_act": "gelu", "projection_dim": 80,
                    "eos_token_id": 2},
    "quick_gelu": {"hidden_size": 64, "intermediate_size": 200, "num_hidden_layers": 3,
                   "num_attention_heads": 4, "projection_dim": 64, "eos_token_id": 998},
    "odd": {"hidden_size": 75, "intermediate_size": 111, "num_hidden_layers": 2,
            "num_attention_heads": 5, "hidden_act": "gelu", "projection_dim": 33,
            "layer_norm_eps": 1e-3, "eos_token_id": 998},
}  # fmt: skip


def ids_of(length):
    """Three texts: padded with the end, the end twice, filled up with "!" (0)."""
    ids = np.random.default_rng(0).integers(1, 998, (3, length))
    ids[0, 9:] = ids[1, 4:7] = ids[2, 11] = 998
    ids[2, 12:] = 0
    return ids


def flattened(found):
    """The tree as refsd.pipelines has it: the projection beside the transformer."""
    found = {**found.pop("text_model", {}), **found}
    found["embeddings"].pop("position_ids", None)
    return found


@pytest.mark.parametrize("projected", [True, False], ids=["projected", "plain"])
@pytest.mark.parametrize("name", CLIPS)
def test_clip(name, projected, allowed):  # noqa: F811
    """The text as one vector, and every layer's output as no norm has seen it."""
    torch.manual_seed(0)
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    model = randomised(kind(CLIPTextConfig(vocab_size=1000, bos_token_id=0, **CLIPS[name])))
    mine, ids = configs.CLIPTextConfig.from_json(model.config.to_dict()), ids_of(40)

    def theirs():
        with torch.no_grad():
            y = model(torch.from_numpy(ids), output_hidden_states=True)
        vector = y.text_embeds if projected else y.pooler_output
        return [x.numpy() for x in (vector, y.last_hidden_state, *y.hidden_states)]

    def ours(dtype):
        encoder = TextEncoder(flattened(tree(model, dtype)), mine, active_backend(), exact_wanted())
        y = encoder(ids, output_hidden_states=True)
        vector = y.text_embeds if projected else y.pooler_output
        assert vector is y[0 if projected else 1]  # the order of transformers
        return [vector, y.last_hidden_state, *y.hidden_states]

    narrow, wide, torch32 = ours("float32"), ours("float64"), theirs()
    model.double()
    results = zip(narrow, torch32, theirs(), wide, strict=True)
    for part, (mine32, torchs, truth, mine64) in enumerate(results):
        compare(f"{name}: {part}", allowed, mine32, torchs, truth, mine64, truth)
