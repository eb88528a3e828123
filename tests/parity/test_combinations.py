"""Features together against diffusers in one process: combinations that are likely to break.

The criterion is that of pictures everywhere (tiny_diffusers.same_picture). What diffusers does not
have, A1111's prompts, is made by hand with transformers.
"""

import diffusers
import numpy as np
import peft
import pytest
import torch
from bounds import rms
from diffusers import ControlNetModel
from peft.utils import get_peft_model_state_dict
from PIL import Image
from test_adapters import ATTENTION, TEXT, config, made
from test_controlnet import without_zeros
from test_halves import Rounded, as_array, judge, narrow_weights
from test_models import randomised
from tiny_diffusers import PROMPT, SD1, same_picture, write_model

import refsd
from refsd import schedulers
from refsd.half import to_float32
from refsd.weights import write_safetensors

LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
SAMPLERS = {
    "ddim": ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", LEADING),
    "euler_a": ("EulerAncestralDiscreteScheduler", {"steps_offset": 1}),
    "dpm++2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "heun": ("HeunDiscreteScheduler", LEADING),
    "lcm": ("LCMScheduler", {}),
}
LEVELS = np.random.default_rng(5).integers(0, 256, (5, 6, 3), "uint8")
PICTURE = Image.fromarray(LEVELS).resize((48, 40), Image.Resampling.BICUBIC)
MASK = Image.new("L", PICTURE.size)
MASK.paste(255, (9, 12, 37, 31))
NUMPY = {"backend": "numpy"}
SIZED = {"height": 40, "width": 48}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models by the number of the UNet's channels."""
    found = {}

    def folder(channels=4):
        if channels not in found:
            root = tmp_path_factory.mktemp(f"tiny{channels}")
            found[channels] = write_model(root, in_channels=channels)
        return found[channels]

    return folder


@pytest.fixture(scope="module")
def nets(folders, tmp_path_factory):
    """Two ControlNets as diffusers saves them."""
    root = tmp_path_factory.mktemp("nets")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folders() / "unet")
    for seed in range(2):
        torch.manual_seed(seed)
        net = without_zeros(ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(8, 16, 16, 24)))
        net.save_pretrained(root / str(seed))
    return [root / "0", root / "1"]


@pytest.fixture
def pair(folders):
    """The same pipeline, diffusers' and refsd's, with a sampler."""

    def made_pair(name, sampler, channels=4, nets=(), **options):
        more = [{}, {}]
        if nets:
            both = [[cls.from_pretrained(net, **more) for net in nets]
                    for cls, more in ((ControlNetModel, {}), (refsd.ControlNet, NUMPY))]
            more = [{"controlnet": found if len(found) > 1 else found[0]} for found in both]
        theirs = getattr(diffusers, name).from_pretrained(folders(channels), **more[0])
        theirs.set_progress_bar_config(disable=True)
        # where diffusers 0.42.1 looks with clip_skip; transformers 5 took the level away
        object.__setattr__(theirs.text_encoder, "text_model", theirs.text_encoder)
        ours = getattr(refsd, name).from_pretrained(folders(channels), **NUMPY, **more[1])
        kind, own = SAMPLERS[sampler]
        theirs.scheduler = getattr(diffusers, kind)(**SD1, **own | options)
        ours.scheduler = getattr(schedulers, kind)(**SD1, **own | options)
        return theirs, ours

    return made_pair


def with_adapter(pipes, unet=None, text=None, weight=None, seed=0):
    """The same random adapter for both."""
    unet = config(r=4, lora_alpha=3, targets=[*ATTENTION, "conv1", "proj_in"]) \
        if unet is None else unet
    found = made(pipes, unet, text, seed=seed)
    tensors = {f"{network}.{name}": tensor for network, part in found.items()
               for name, tensor in part.items()}
    for pipe in pipes:
        pipe.load_lora_weights(dict(tensors), adapter_name="one")
        if weight is not None:
            pipe.set_adapters("one", weight)
    return pipes


def with_loha(pipes):
    """A LoHa of PEFT's, which adds it while it computes; its alpha of 2 is half of its rank."""
    torch.manual_seed(0)
    loha = config(peft.LoHaConfig, r=4, alpha=2, targets=[*ATTENTION, "proj_in"],
                  use_effective_conv2d=False)
    peft.inject_adapter_in_model(loha, pipes[0].unet, adapter_name="default")
    for name, parameter in pipes[0].unet.named_parameters():
        if "hada_" in name:
            parameter.data = 0.4 * torch.randn(parameter.shape)
    tensors = {f"unet.{name}": tensor for name, tensor in get_peft_model_state_dict(
        pipes[0].unet, adapter_name="default").items()}
    alphas = {f"{name.rpartition('.')[0]}.alpha": torch.tensor(2.0) for name in tensors}
    pipes[1].load_lora_weights(tensors | alphas)


def with_words(pipes, folder):
    """A word of three vectors for both."""
    vectors = np.random.default_rng(2).standard_normal((3, 32)).astype("f4")
    write_safetensors(folder / "style.safetensors", {"emb_params": vectors})
    for pipe in pipes:
        pipe.load_textual_inversion(str(folder / "style.safetensors"), token="style-x")
    return pipes


def test_a_picture_an_adapter_and_ancestral_steps_of_a_batch(pair):
    pipes = with_adapter(pair("StableDiffusionImg2ImgPipeline", "euler_a"),
                         text=config(targets=TEXT, r=2), weight=0.7)
    same_picture(*pipes, seeds=[3, 4], prompt=[PROMPT, "soup"], negative_prompt=["blurry", ""],
                 image=[PICTURE, PICTURE.rotate(180)], strength=0.6, num_inference_steps=5)


def test_a_mask_of_nine_channels_with_an_adapter_and_a_skipped_layer(pair):
    pipes = with_adapter(pair("StableDiffusionInpaintPipeline", "pndm", channels=9))
    same_picture(*pipes, prompt=PROMPT, image=PICTURE, mask_image=MASK, strength=0.8, clip_skip=1,
                 num_inference_steps=5, **SIZED)


def test_two_controlnets_guessing_with_an_adapter(pair, nets):
    pipes = with_adapter(pair("StableDiffusionControlNetPipeline", "ddim", nets=nets), weight=1.2)
    same_picture(*pipes, prompt=PROMPT, image=[PICTURE, PICTURE.rotate(180)], guess_mode=True,
                 num_images_per_prompt=2, seeds=[1, 2], eta=0.5, num_inference_steps=4,
                 controlnet_conditioning_scale=[0.8, 1.3], control_guidance_start=[0.0, 0.3])


def test_an_edit_by_karras_sigmas_with_a_seed_a_picture(pair):
    same_picture(*pair("StableDiffusionInstructPix2PixPipeline", "dpm++2m_karras", channels=8),
                 prompt=[PROMPT, "soup"], image=[PICTURE, PICTURE.rotate(180)], seeds=[5, 6],
                 image_guidance_scale=1.6, guidance_scale=5, num_inference_steps=5)


def test_an_edit_with_an_adapter_and_ancestral_steps(pair):
    pipes = with_adapter(pair("StableDiffusionInstructPix2PixPipeline", "euler_a", channels=8))
    same_picture(*pipes, prompt=PROMPT, image=PICTURE, num_inference_steps=4,
                 num_images_per_prompt=2, negative_prompt="blurry")


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_the_part_around_a_mask_with_ancestral_steps(pair, strength):
    same_picture(*pair("StableDiffusionInpaintPipeline", "euler_a"), prompt=PROMPT, image=PICTURE,
                 mask_image=MASK, padding_mask_crop=5, strength=strength, num_inference_steps=4,
                 **SIZED)


@pytest.mark.parametrize("kind", ["dora", "loha"])
def test_a_word_of_three_vectors_with_other_adapters_by_heun(pair, tmp_path, kind):
    pipes = with_words(pair("StableDiffusionPipeline", "heun"), tmp_path)
    if kind == "dora":
        with_adapter(pipes, config(r=4, use_dora=True, targets=[*ATTENTION, "conv1"]), weight=0.6)
    else:
        with_loha(pipes)
    same_picture(*pipes, prompt="a style-x cat, in the style-x", negative_prompt="style-x",
                 num_inference_steps=4, clip_skip=1, guidance_rescale=0.6, **SIZED)


@pytest.mark.parametrize("sigmas", [[14.0, 6.0, 2.5, 1.0, 0.3, 0.0]])
def test_own_sigmas_from_a_picture_with_an_adapter(pair, sigmas):
    pipes = with_adapter(pair("StableDiffusionImg2ImgPipeline", "euler"))
    same_picture(*pipes, prompt=PROMPT, image=PICTURE, strength=0.7, sigmas=sigmas)


def test_nine_channels_a_controlnet_an_adapter_and_karras_sigmas(pair, nets):
    pipes = with_adapter(pair("StableDiffusionControlNetInpaintPipeline", "dpm++2m_karras", 9,
                              nets[:1]), weight=0.8)
    same_picture(*pipes, seeds=[3, 4], prompt=[PROMPT, "soup"], image=PICTURE, mask_image=MASK,
                 control_image=PICTURE.rotate(180), strength=1.0, num_inference_steps=4,
                 control_guidance_end=0.7, clip_skip=1, **SIZED)


def test_chosen_sigmas_from_a_picture_with_controlnets_for_parts_of_the_steps(pair, nets):
    """The parts are of the steps that are made, not of the whole schedule."""
    pipes = pair("StableDiffusionControlNetImg2ImgPipeline", "euler", nets=nets,
                 use_exponential_sigmas=True, timestep_spacing="linspace", steps_offset=0)
    same_picture(*pipes, prompt=PROMPT, image=PICTURE, strength=0.6, num_inference_steps=7,
                 control_image=[PICTURE.rotate(180), PICTURE], eta=0.0,
                 control_guidance_start=[0.0, 0.5], control_guidance_end=[0.5, 1.0],
                 controlnet_conditioning_scale=[1.0, 1.4], **SIZED)


def test_a_tiny_autoencoder_from_a_picture_in_few_steps(pair, folders, tmp_path):
    """LCM draws noise in every step; of the picture's latents none is drawn."""
    torch.manual_seed(3)
    tiny = randomised(diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4))
    with torch.no_grad():  # so that its pictures are not all grey
        for parameter in tiny.parameters():
            parameter *= 1.5
    tiny.save_pretrained(tmp_path / "tiny")
    theirs, ours = pair("StableDiffusionImg2ImgPipeline", "lcm")
    theirs.vae = tiny
    ours = type(ours).from_pretrained(folders(), vae=tmp_path / "tiny", scheduler=ours.scheduler,
                                      **NUMPY)
    same_picture(*with_adapter((theirs, ours)), prompt=[PROMPT, "soup"], seeds=[1, 2],
                 image=PICTURE, strength=0.7, num_inference_steps=6, guidance_scale=1.5)


def test_bfloat16_from_a_picture_with_a_fused_adapter(folders):
    """As test_halves judges: against float64 refsd errs no more than diffusers does."""
    name = "StableDiffusionImg2ImgPipeline"
    theirs = getattr(diffusers, name).from_pretrained(folders(), torch_dtype=torch.bfloat16)
    theirs.set_progress_bar_config(disable=True)
    ours, truth = (getattr(refsd, name).from_pretrained(folders(), dtype=dtype, **NUMPY)
                   for dtype in ("bfloat16", "float64"))
    for part in ("text_encoder", "unet", "vae"):
        narrow_weights(getattr(truth, part).tree, "bfloat16")
    whole = diffusers.StableDiffusionPipeline.from_pretrained(folders())
    found = made((whole,), config(r=4, lora_alpha=3, targets=[*ATTENTION, "conv1"]))["unet"]
    tensors = {f"unet.{name}": tensor.bfloat16() for name, tensor in found.items()}
    for pipe in (theirs, ours, truth):
        pipe.load_lora_weights({key: tensor if pipe is theirs else tensor.float()
                                for key, tensor in tensors.items()})
    theirs.fuse_lora()
    errors = []
    for sampler in ("ddim", "euler", "euler_a", "dpm++2m_karras"):
        kind, options = SAMPLERS[sampler]
        for pipe, package in ((theirs, diffusers), (ours, schedulers), (truth, schedulers)):
            pipe.scheduler = getattr(package, kind)(**SD1, **options)
        for seed in range(5):
            call = {"prompt": PROMPT, "image": PICTURE, "strength": 0.6, "num_inference_steps": 4,
                    "guidance_scale": 1.0, "output_type": "latent"}
            expected = theirs(generator=torch.Generator().manual_seed(seed), **call).images
            mine = ours(generator=seed, **call).images
            rounded = Rounded(seed)
            rounded.half = "bfloat16"
            exact = truth(generator=rounded, **call).images
            errors.append((rms(to_float32(mine) - exact), rms(as_array(expected) - exact)))
    judge("bfloat16 from a picture with an adapter", errors)


def long_states(theirs, text_before, text_after):
    """A1111's two chunks of 75: what did not fit whole is in the second; layers and norm by hand.

    Each text is one chunk; the word of three vectors is three tokens, as diffusers writes them.
    """
    chunks = []
    for text in (text_before, text_after):
        words = theirs.maybe_convert_prompt(text, theirs.tokenizer)
        ids = theirs.tokenizer(words, add_special_tokens=False).input_ids
        assert len(ids) <= 75
        bos, eos = theirs.tokenizer.bos_token_id, theirs.tokenizer.eos_token_id
        chunks.append([bos, *ids, *[eos] * (76 - len(ids))])
    hidden = theirs.text_encoder(torch.tensor(chunks), output_hidden_states=True).hidden_states[-2]
    norm = getattr(theirs.text_encoder, "text_model", theirs.text_encoder).final_layer_norm
    return norm(hidden).detach().reshape(1, 154, -1)


@pytest.mark.parametrize("before", [72, 73], ids=["fits", "goes to the next chunk"])
def test_a_long_prompt_of_a1111s_with_a_word_and_a_skipped_layer(pair, tmp_path, before):
    """73 tokens and a word of three vectors: A1111 does not cut a word in two."""
    theirs, ours = with_words(pair("StableDiffusionPipeline", "ddim"), tmp_path)
    ours.dialect = "a1111"
    ours.make_generator = refsd.random.TorchGenerator
    first, word, rest = "cat " * before, "style-x", " dog" * 10
    parts = (first + word, rest) if before == 72 else (first, word + rest)
    embeds = long_states(theirs, *parts), long_states(theirs, "red " * 75, "blue")
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, **SIZED}

    theirs = theirs(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], output_type="np",
                    generator=torch.Generator().manual_seed(7), **options).images
    ours = ours(first + word + rest, negative_prompt="red " * 75 + "blue", clip_skip=1,
                output_type="np", generator=7, **options).images
    levels = [(255 * images).round() for images in (theirs, ours)]
    assert np.abs(np.subtract(*levels)).max() <= 1 and np.mean(levels[0] == levels[1]) >= 0.999
