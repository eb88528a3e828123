"""Each network with random weights against diffusers and transformers, in several configurations.

float32: the root mean square error against torch's float64 is at most 1.5 times that of torch's
own float32, and at most 3 times with Winograd convolutions. float64: the two differ by rounding
alone, which is what float32 is seen to err times 2^-29 (the ratio of the units roundoff); 16 times
that is allowed, as in tests/test_models.py.
"""

import numpy as np
import pytest
import torch
from bounds import assert_within, rms
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from refsd import functional as F
from refsd.models import clip, unet, vae
from refsd.models import config as configs
from refsd.pipelines.autoencoder import VAE
from refsd.registry import use
from refsd.weights import to_tree

CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"
RATIO = 2.0**-29

# backend, exact, and how many times torch's own float32 error is allowed
WAYS = {"numpy": ("numpy", False, 1.5), "numba, exact": ("numba", True, 1.5),
        "numba": ("numba", False, 3)}


@pytest.fixture(params=WAYS, autouse=True)
def allowed(request):
    """Each test asks every backend; its value is the error allowed, in units of torch's."""
    backend, exact, ratio = WAYS[request.param]
    with use(backend, exact=exact):
        yield ratio


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def randomised(model):
    """The model with biases and norms that are not all 0 or 1, ready to be asked."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tree(model, dtype):
    return to_tree({name: tensor.detach().numpy().astype(dtype)
                    for name, tensor in model.state_dict().items()})


def compare(name, allowed, ours, torch32, torch64, ours64, same64):
    """The two criteria; `same64` is torch's float64 with the same sinusoids as ours."""
    assert ours.dtype == "float32" and ours64.dtype == "float64"
    mine, torchs = rms(ours - torch64), rms(torch32 - torch64)
    print(f"{name}: {mine:.3g}, torch {torchs:.3g}, ratio {mine / torchs:.2f}")
    assert mine <= allowed * torchs, name
    error = abs(ours - ours64).max()
    assert 0 < error < 1e-3 * abs(ours64).max()
    assert_within(ours64, same64, 16 * RATIO * error, name)


def levels(widths, cross, **more):
    return {"block_out_channels": widths, "sample_size": 16, "cross_attention_dim": 48,
            "down_block_types": [CROSS_DOWN if c else DOWN for c in cross],
            "up_block_types": [CROSS_UP if c else UP for c in reversed(cross)], **more}


# configuration, size, batch, timestep
UNETS = {
    "SD 1.x, small": (levels([32, 64, 96, 96], [1, 1, 1, 0], layers_per_block=2,
                             attention_head_dim=8), (16, 16), 2, 500),
    "320 channels, t = 999": (levels([320, 64], [1, 0], layers_per_block=1), (16, 16), 1, 999),
    "320 channels, t = 1": (levels([320, 32], [1, 0], layers_per_block=1), (8, 8), 1, 1),
    "not square, heads a level": (levels([32, 64, 128], [1, 1, 0], layers_per_block=1,
                                         attention_head_dim=[2, 4, 8]), (16, 24), 3, 981),
    "odd sizes": (levels([32, 64, 64], [1, 1, 0], layers_per_block=2), (13, 19), 2, 21),
    "odd widths": (levels([33, 55, 77], [1, 1, 1], layers_per_block=1, norm_num_groups=11,
                          attention_head_dim=11), (12, 12), 1, 250),
    "one level": (levels([64], [1], layers_per_block=3, attention_head_dim=4), (16, 8), 2, 700),
    "two levels, three layers": (levels([32, 64], [0, 1], layers_per_block=3,
                                        attention_head_dim=4), (8, 16), 1, 333),
    "layers a level": (levels([32, 32, 64], [1, 1, 0], layers_per_block=[1, 2, 3],
                              attention_head_dim=2), (16, 16), 1, 50),
    "linear projections": (levels([64, 96], [1, 1], layers_per_block=1, attention_head_dim=[2, 3],
                                  use_linear_projection=True), (16, 16), 2, 801),
    "guidance embedding": (levels([32, 64], [1, 0], layers_per_block=1, attention_head_dim=4,
                                  time_cond_proj_dim=24), (16, 16), 2, 759),
    "BK-SDM and tiny-sd, small": (
        levels([32, 64, 96], [1, 1, 1], layers_per_block=1, attention_head_dim=8,
               mid_block_type=None), (16, 16), 2, 640),
    "a middle block without text": (levels([32, 64], [1, 0], layers_per_block=1,
                                           mid_block_type="UNetMidBlock2D"), (16, 16), 1, 90),
    "sines first, centred, nine channels": (
        levels([64, 64], [1, 0], layers_per_block=1, flip_sin_to_cos=False, freq_shift=1,
               center_input_sample=True, in_channels=9, norm_eps=1e-3), (16, 16), 1, 400),
}  # fmt: skip


def unet_inputs(config, size, batch):
    guided = config.get("time_cond_proj_dim")
    return (normal(1, batch, config.get("in_channels", 4), *size), normal(2, batch, 77, 48),
            normal(3, batch, guided) if guided else None)


def ask_unet(model, sample, steps, context, condition):
    dtype = next(model.parameters()).dtype
    tensors = [None if x is None else torch.from_numpy(x).to(dtype)
               for x in (sample, context, condition)]
    with torch.no_grad():
        return model(tensors[0], torch.from_numpy(steps), tensors[1],
                     timestep_cond=tensors[2]).sample.numpy()


def with_our_sinusoids(model, steps):
    """The model with time_proj replaced by float64 values, which diffusers computes in float32."""
    config = configs.UNetConfig.from_json(model.config)
    y = F.timestep_embedding(steps, dim=model.config.block_out_channels[0], dtype="float64",
                             flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
    model.time_proj.forward = lambda timesteps: torch.from_numpy(y)
    return model


@pytest.mark.parametrize("name", UNETS)
def test_unet(name, allowed):
    config, size, batch, step = UNETS[name]
    torch.manual_seed(0)
    model = randomised(UNet2DConditionModel(**config))
    sample, context, condition = unet_inputs(config, size, batch)
    steps = np.full(batch, step)

    def ours(dtype):
        wide = [None if x is None else x.astype(dtype) for x in (sample, context, condition)]
        return unet.unet(wide[0], steps, wide[1], **tree(model, dtype), timestep_cond=wide[2],
                         config=configs.UNetConfig.from_json(model.config))

    narrow, wide = ours("float32"), ours("float64")
    torch32 = ask_unet(model, sample, steps, context, condition)
    model.double()
    torch64 = ask_unet(model, sample, steps, context, condition)
    same64 = ask_unet(with_our_sinusoids(model, steps), sample, steps, context, condition)
    print(f"sinusoids of float32 instead of float64: {rms(same64 - torch64):.3g}")
    compare(name, allowed, narrow, torch32, torch64, wide, same64)


def test_timesteps_may_differ_within_a_batch():
    config = UNETS["SD 1.x, small"][0]
    torch.manual_seed(0)
    model = randomised(UNet2DConditionModel(**config)).double()
    sample, context, _ = unet_inputs(config, (16, 16), 3)
    steps = np.array([1, 500, 981])
    truth = ask_unet(with_our_sinusoids(model, steps), sample, steps, context, None)
    models_config = configs.UNetConfig.from_json(model.config)
    narrow, wide = (unet.unet(sample.astype(t), steps, context.astype(t), **tree(model, t),
                              config=models_config) for t in ("float32", "float64"))
    assert_within(wide, truth, 16 * RATIO * abs(narrow - wide).max())


def vae_config(widths, **more):
    return {"block_out_channels": widths, "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths), **more}


# configuration, size of the picture, batch
VAES = {
    "SD 1.x, small": (vae_config([32, 64, 64, 64], layers_per_block=2), (64, 64), 2),
    "not square": (vae_config([32, 64, 64, 64], layers_per_block=1), (64, 96), 1),
    "two levels, odd widths": (vae_config([33, 55], norm_num_groups=11, latent_channels=3),
                               (34, 38), 3),
    "three levels, odd picture": (vae_config([32, 32, 64]), (45, 51), 1),
    "no quant convolutions": (vae_config([32, 64], use_quant_conv=False,
                                         use_post_quant_conv=False), (32, 32), 2),
    "no attention": (vae_config([32, 64, 64], mid_block_add_attention=False), (48, 32), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", VAES)
def test_vae(name, allowed):
    config, size, batch = VAES[name]
    torch.manual_seed(0)
    model = randomised(AutoencoderKL(**config))
    scale = 2 ** (len(config["block_out_channels"]) - 1)
    image = np.random.default_rng(1).uniform(-1, 1, (batch, 3, *size)).astype("float32")
    latents = normal(2, batch, config.get("latent_channels", 4), *(n // scale for n in size))

    def ours(dtype):
        found, models_config = tree(model, dtype), configs.VAEConfig.from_json(model.config)
        mean, logvar = vae.encode(image.astype(dtype), encoder=found["encoder"],
                                  quant_conv=found.get("quant_conv"), config=models_config)
        return mean, logvar, vae.decode(latents.astype(dtype), decoder=found["decoder"],
                                        post_quant_conv=found.get("post_quant_conv"),
                                        config=models_config)

    def theirs():
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            posterior = model.encode(torch.from_numpy(image).to(dtype)).latent_dist
            picture = model.decode(torch.from_numpy(latents).to(dtype)).sample
        return posterior.mean.numpy(), posterior.logvar.numpy(), picture.numpy()

    narrow, wide, torch32 = ours("float32"), ours("float64"), theirs()
    model.double()
    for part, *results, torch64 in zip(("mean", "logvar", "picture"), narrow, torch32, wide,
                                       theirs()):
        compare(f"{name}: {part}", allowed, results[0], results[1], torch64, results[2], torch64)


def test_the_vae_in_blended_tiles(request, allowed):
    """Latents 19 x 14 in tiles of 8: cut on two sides, the last ones narrower than the ramp."""
    torch.manual_seed(0)
    model = randomised(AutoencoderKL(**vae_config([32, 64], layers_per_block=1, sample_size=16)))
    model.enable_tiling()
    backend, exact, _ = WAYS[request.node.callspec.params["allowed"]]
    image, latents = normal(1, 2, 3, 38, 28), normal(2, 2, 4, 19, 14)

    def ours(dtype):
        network = VAE(tree(model, dtype), configs.VAEConfig.from_json(model.config), backend, exact)
        network.enable_tiling()
        whole = network.decode(latents, tiling="off")
        pictures = network.encode(image).mean, network.decode(latents)
        assert abs(pictures[1] - whole).max() > 0.1  # each tile has its own statistics
        return pictures

    def theirs():
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            return (model.encode(torch.from_numpy(image).to(dtype)).latent_dist.mean.numpy(),
                    model.decode(torch.from_numpy(latents).to(dtype)).sample.numpy())

    narrow, wide, torch32 = ours("float32"), ours("float64"), theirs()
    model.double()
    for part, *results, torch64 in zip(("mean", "picture"), narrow, torch32, wide, theirs()):
        compare(f"tiles: {part}", allowed, results[0], results[1], torch64, results[2], torch64)


def test_the_posterior_is_sampled_and_clamped_alike():
    torch.manual_seed(0)
    model = randomised(AutoencoderKL(**VAES["no attention"][0]))
    with torch.no_grad():
        model.quant_conv.weight *= 300
    image = normal(1, 1, 3, 32, 32)
    found, config = tree(model, "float64"), configs.VAEConfig.from_json(model.config)
    with torch.no_grad():
        model.double()
        posterior = model.encode(torch.from_numpy(image).double()).latent_dist
    mean, logvar = vae.encode(image.astype("float64"), encoder=found["encoder"],
                              quant_conv=found["quant_conv"], config=config)
    assert logvar.min() == -30 and logvar.max() == 20
    noise = normal(5, *mean.shape).astype("float64")
    truth = posterior.mean + posterior.std * torch.from_numpy(noise)
    # float64 errors of the encoder, seen to be below 1e-12 of the largest value, times e^(20/2) / 2
    # in a deviation: logvar moves it by a factor e^(d / 2)
    size = abs(np.exp(logvar / 2) * noise).max() + abs(mean).max()
    slack = 1e-12 * (abs(mean).max() + abs(logvar).max()) * size
    assert_within(vae.sample_posterior(mean, logvar, noise), truth.numpy(), slack)


CLIPS = {
    "SD 1.x, small": {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 4,
                      "num_attention_heads": 6, "eos_token_id": 2},
    "gelu, new eos": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
                      "num_attention_heads": 4, "hidden_act": "gelu", "eos_token_id": 998},
    "odd heads": {"hidden_size": 75, "intermediate_size": 111, "num_hidden_layers": 2,
                  "num_attention_heads": 5, "eos_token_id": 998, "layer_norm_eps": 1e-3},
}  # fmt: skip


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("length", [77, 20])
def test_clip(name, length, allowed):
    torch.manual_seed(0)
    config = CLIPTextConfig(vocab_size=1000, bos_token_id=0, **CLIPS[name])
    model = randomised(CLIPTextModel(config))
    ids = np.random.default_rng(0).integers(0, 998, (3, length))
    ids[0, 9:] = ids[1, 4:7] = ids[2, -1] = 998
    ids[0, 12] = 999

    def theirs():
        with torch.no_grad():
            y = model(torch.from_numpy(ids), output_hidden_states=True)
            # diffusers' clip_skip n: the state before the last n layers, under the final norm
            skipped = model.final_layer_norm(y.hidden_states[-2])
        return y.last_hidden_state.numpy(), skipped.numpy(), y.pooler_output.numpy()

    def ours(dtype):
        found, config = tree(model, dtype), configs.CLIPTextConfig.from_json(model.config.to_dict())
        found = found.get("text_model", found)
        found["embeddings"].pop("position_ids", None)
        last = clip.clip_text(ids, **found, config=config)
        skipped = clip.clip_text(ids, **found, config=config, layers_skipped=1)
        return last, skipped, clip.pool(last, ids, config=config)

    narrow, wide, torch32 = ours("float32"), ours("float64"), theirs()
    model.double()
    for part, *results, torch64 in zip(("last", "skipped", "pooled"), narrow, torch32, wide,
                                       theirs()):
        compare(f"{name}: {part}", allowed, results[0], results[1], torch64, results[2], torch64)
