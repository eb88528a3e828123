"""Drawing from pictures: where the steps start, what is drawn when, and the command line's part."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

import refsd
from refsd.__main__ import main
from refsd.cli.recipe import parse_recipe
from refsd.dialects.names import find
from refsd.errors import ModelError, UsageError
from refsd.networks import shapes_of
from refsd.pipelines import memory, starts
from refsd.pipelines.inpaint import blended
from refsd.pipelines.pix2pix import guided_twice
from refsd.random import TorchGenerator
from refsd.schedulers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from refsd.weights import load_checkpoint, write_safetensors
from refsd.weights.ldm import to_ldm

RANDOM = np.random.default_rng(0)
PICTURE = Image.fromarray(RANDOM.integers(0, 256, (35, 41, 3)).astype(np.uint8))
LATENTS = (1, 4, 4, 5)  # of the picture, 40 x 32
MASK = Image.new("L", (41, 35))
MASK.paste(255, (0, 0, 21, 40))  # the left half of 40 x 32


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tiny model with a UNet of 4, 8 and 9 channels, as folders."""
    found = {}
    for channels in (4, 8, 9):
        config = {**tiny.UNET, "in_channels": channels}
        random = np.random.default_rng(0)
        tensors = {name: tiny._weight(name, shape, random)
                   for name, shape in shapes_of("unet", config).items()}
        folder = tiny.write_model(tmp_path_factory.mktemp("models") / str(channels), unet=tensors)
        (folder / "unet" / "config.json").write_text(json.dumps(config))
        found[channels] = str(folder)
    return found


class Listening(TorchGenerator):
    """A generator that keeps the shapes of what it draws."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.shapes = []

    def randn(self, shape, dtype="float32"):
        self.shapes.append(tuple(shape))
        return super().randn(shape, dtype)


# Dialect, sampler, steps, strength: the length of the schedule, and the place where it begins.
STARTS = [
    ("diffusers", DDIMScheduler, 10, 1.0, 10, 0), ("diffusers", DDIMScheduler, 10, 0.75, 10, 3),
    ("diffusers", DDIMScheduler, 100, 0.29, 100, 72),  # 0.29 x 100 is 28.999...
    ("diffusers", EulerDiscreteScheduler, 4, 0.25, 4, 3),
    ("diffusers", PNDMScheduler, 10, 0.5, 11, 5),
    ("a1111", EulerDiscreteScheduler, 20, 0.75, 20, 4), ("a1111", DDIMScheduler, 20, 0.75, 20, 5),
    ("a1111", EulerDiscreteScheduler, 20, 1.0, 20, 0),
    ("a1111", EulerDiscreteScheduler, 9, 0, 9, 8),
    ("comfy", EulerDiscreteScheduler, 20, 0.75, 26, 6), ("comfy", DDIMScheduler, 20, 1.0, 20, 0),
]  # fmt: skip


def drawn_with(scheduler, dialect="diffusers"):
    return SimpleNamespace(scheduler=scheduler, dialect=find(dialect), rounds_up=False)


@pytest.mark.parametrize("dialect, kind, steps, strength, length, first", STARTS)
def test_the_strength_decides_where_the_schedule_begins(dialect, kind, steps, strength, length,
                                                        first):
    scheduler = kind(**({"skip_prk_steps": True} if kind is PNDMScheduler else {}))
    left = starts.begin(drawn_with(scheduler, dialect), strength, steps)
    assert len(scheduler.timesteps) == length and scheduler.begin_index == first
    assert np.array_equal(left, scheduler.timesteps[first:])


def test_a_strength_that_leaves_no_step_is_refused():
    with pytest.raises(UsageError, match="strength of 0.04 leaves none of 20 steps; give .* 0.05"):
        starts.begin(drawn_with(DDIMScheduler()), 0.04, 20)
    with pytest.raises(UsageError, match="strength of 0 leaves none"):
        starts.begin(drawn_with(DDIMScheduler(), "comfy"), 0, 20)


@pytest.mark.parametrize("dialect", ["a1111", "comfy"])
@pytest.mark.parametrize("name, mask", [("Img2Img", {}), ("Inpaint", {"mask_image": MASK})])
def test_the_seeds_first_noise_is_that_of_the_start_in_other_dialects(models, dialect, name, mask):
    kind, made = getattr(refsd, f"StableDiffusion{name}Pipeline"), []
    pipe = kind.from_pretrained(models[4], backend="numpy")
    pipe.dialect = dialect
    pipe.make_generator = lambda seed: made.append(Listening(seed)) or made[-1]
    size = {"height": 32, "width": 40} if mask else {}
    pipe("cat", image=PICTURE, num_inference_steps=2, strength=0.5, generator=3,
         output_type="latent", **mask, **size)
    assert [one.shapes for one in made if one.shapes] == [[LATENTS]]


def draw(models, channels, name, generator, **options):
    pipe = getattr(refsd, name).from_pretrained(models[channels], backend="numpy")
    return pipe, pipe("cat", generator=generator, **{
        "image": PICTURE, "num_inference_steps": 2, "output_type": "latent", **options}).images


ORDERS = {  # UNet's channels, pipeline, options: shapes drawn, in order
    "image": (4, "Img2Img", {}, [LATENTS, LATENTS]),
    "two copies": (4, "Img2Img", {"num_images_per_prompt": 2}, [LATENTS, (2, *LATENTS[1:])]),
    "latents": (4, "Img2Img", {"image": np.ones(LATENTS, "f4")}, [LATENTS]),
    "blended": (4, "Inpaint", {"mask_image": MASK}, [LATENTS] * 3),
    "an inpainting model": (9, "Inpaint", {"mask_image": MASK}, [LATENTS] * 2),
    "less of it": (9, "Inpaint", {"mask_image": MASK, "strength": 0.5}, [LATENTS] * 3),
    "edited": (8, "InstructPix2Pix", {}, [LATENTS]),
}


@pytest.mark.parametrize("channels, name, options, shapes", ORDERS.values(), ids=ORDERS)
def test_noise_is_drawn_in_diffusers_order(models, channels, name, options, shapes):
    generator = Listening(3)
    if name == "Inpaint":
        options = {"height": 32, "width": 40, **options}
    draw(models, channels, f"StableDiffusion{name}Pipeline", generator, **options)
    assert generator.shapes == shapes


def test_each_generator_of_a_list_draws_the_posterior_of_its_picture(models):
    generators = [Listening(1), Listening(2)]
    draw(models, 4, "StableDiffusionImg2ImgPipeline", generators, num_images_per_prompt=2)
    assert [one.shapes for one in generators] == [[LATENTS] * 2] * 2


def test_what_the_mask_keeps_is_the_pictures(models):
    """Blending ends with the latents of the picture themselves, outside the mask."""
    pipe, found = draw(models, 4, "StableDiffusionInpaintPipeline", 5, mask_image=MASK, height=32,
                       width=40)
    image = np.asarray(PICTURE.resize((40, 32), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    image = 2 * (image[None].astype("f4") / 255) - 1
    kept = pipe.vae.encode(image).sample(TorchGenerator(5)) * np.float32(0.18215)
    assert np.array_equal(found[..., 3:], kept[..., 3:])
    assert (abs(found - kept)[..., :2] > 1e-3).all()


def test_blending_and_guidance_by_two_scales():
    a, b, c = (RANDOM.standard_normal((2, 4, 3, 3)) for _ in range(3))
    mask = np.zeros_like(a)
    mask[:, :, 1] = 1
    y = blended(a, b, mask)
    assert np.array_equal(y[:, :, 1], a[:, :, 1]) and np.array_equal(y[:, :, ::2], b[:, :, ::2])
    assert np.allclose(guided_twice(a, b, c, 1.0, 1.0), c, rtol=0, atol=4e-15)
    assert np.array_equal(guided_twice(a, b, c, 0.0, 0.0), a)
    assert np.allclose(guided_twice(a, b, c, 0.0, 1.0), b, rtol=0, atol=4e-15)


@pytest.mark.parametrize("channels, name, words", [
    (9, "", "an inpainting model.*Take StableDiffusionInpaintPipeline"),
    (8, "Inpaint", "InstructPix2Pix.*Take StableDiffusionInstructPix2PixPipeline"),
    (4, "InstructPix2Pix", "a text-to-image model.*Take StableDiffusionPipeline")])
def test_a_model_of_another_kind_says_what_draws_with_it(models, channels, name, words):
    kind = getattr(refsd, f"StableDiffusion{name}Pipeline")
    with pytest.raises(ModelError, match=words):
        kind.from_pretrained(models[channels], backend="numpy")
    own = {4: "", 8: "InstructPix2Pix", 9: "Inpaint"}[channels]
    pipe = getattr(refsd, f"StableDiffusion{own}Pipeline").from_pretrained(models[channels],
                                                                           backend="numpy")
    with pytest.raises(ModelError, match=words):
        kind.from_pipe(pipe)


def test_editing_takes_the_memory_of_three_texts(models, monkeypatch):
    """Text and picture, the picture, neither; and a VAE of another pipeline fits 8 channels."""
    other = refsd.StableDiffusionPipeline.from_pretrained(models[4], backend="numpy")
    kind = refsd.StableDiffusionInstructPix2PixPipeline
    pipe = kind.from_pretrained(models[8], backend="numpy", vae=other.vae)
    assert pipe.vae is other.vae
    asked = []
    monkeypatch.setattr(memory, "unet_bytes", lambda *given: asked.append(given[2]) or 0)
    for one in (pipe, other):
        memory.working_bytes(one, 64, 64, 5)
    assert asked == [15, 10]


def test_what_cannot_be_inpainted_is_refused(models):
    for options, words in [
        ({"padding_mask_crop": 4, "output_type": "np"}, "image and a mask_image of PIL's and the"),
        ({"padding_mask_crop": 4, "mask_image": MASK.resize((9, 9)), "output_type": "pil"},
         "two of one size"),
        ({"image": np.ones((1, 4, 2, 2), "f4")}, r"latents of \(1, 4, 2, 2\)"),
        ({"strength": 1.5}, "strength is 1.5"), ({"mask_image": None}, "mask_image is None")]:
        with pytest.raises(UsageError, match=words):
            draw(models, 4, "StableDiffusionInpaintPipeline", 5, **{
                "mask_image": MASK, "height": 32, "width": 40, **options})
    with pytest.raises(UsageError, match="give masked_image_latents too"):
        draw(models, 9, "StableDiffusionInpaintPipeline", 5, mask_image=MASK, height=32, width=40,
             image=np.ones(LATENTS, "f4"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An empty folder with a picture and a mask to draw from."""
    monkeypatch.chdir(tmp_path)
    PICTURE.save("in.png")
    MASK.save("mask.png")
    return tmp_path


def run(model, *args):
    return main(["red cat", "-m", model, "--steps", "4", "-s", "5", "--backend", "numpy", "-q",
                 "-o", "out.png", *args])


COMMANDS = {  # UNet's channels, options: the pipeline, its keywords, and what A1111's line says
    "image": (4, ["--strength", "0.5"], "Img2Img", {"strength": 0.5}, "Denoising strength: 0.5"),
    "another size": (4, ["-W", "24", "-H", "48"], "Img2Img", {
        "strength": 0.75, "image": PICTURE.resize((24, 48), Image.Resampling.LANCZOS)},
        "Size: 24x48"),
    "mask": (4, ["--mask", "mask.png", "--sampler", "euler_a"], "Inpaint", {"strength": 0.75},
             "Denoising strength: 0.75"),
    "a part": (4, ["--mask", "mask.png", "--mask-padding", "3"], "Inpaint", {
        "padding_mask_crop": 3, "strength": 0.75},
        "Inpaint area: Only masked, Masked area padding: 3"),
    "an inpainting model": (9, ["--mask", "mask.png", "--strength", "1"], "Inpaint", {},
                            "Denoising strength: 1"),
    "edited": (8, ["--img-cfg-scale", "1.25"], "InstructPix2Pix", {"image_guidance_scale": 1.25},
               "Image CFG scale: 1.25"),
}


@pytest.mark.parametrize("channels, args, name, options, said", COMMANDS.values(), ids=COMMANDS)
def test_the_command_draws_the_pipelines_picture(models, files, capfd, channels, args, name,
                                                 options, said):
    model = models[channels]
    assert run(model, "-i", "in.png", *args) == 0
    kind = getattr(refsd, f"StableDiffusion{name}Pipeline")
    pipe = kind.from_pretrained(model, backend="numpy")
    if "--sampler" in args:
        pipe.scheduler = refsd.schedulers.EulerAncestralDiscreteScheduler.from_config(
            pipe.scheduler.config)
    if name == "Inpaint":
        options = {"mask_image": MASK, "height": 32, "width": 40, **options}
    wanted = pipe("red cat", num_inference_steps=4, guidance_scale=7.0, generator=5,
                  **{"image": PICTURE, **options}).images[0]
    with Image.open("out.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(wanted))
        assert said in image.text["parameters"]
        recipe = parse_recipe(image.text["refsd"], "out.png")
    assert recipe.pictures["init_img"]["file"] == "in.png"
    assert main(["repro", "out.png", "-m", model, "-q"]) == 0
    assert "identical" in capfd.readouterr().out


def test_a_picture_is_drawn_again_where_its_files_are(models, files, capfd):
    run(models[4], "-i", "in.png", "--mask", "mask.png")
    (files / "in.png").rename(files / "moved.png")
    again = ["repro", "out.png", "-m", models[4], "-q"]
    assert main(again) == 2
    assert "drawn from 'in.png' (SHA-256 " in capfd.readouterr().err
    assert main([*again, "-i", "moved.png"]) == 0
    assert main([*again, "-i", "mask.png"]) == 2
    assert "mask.png: not the file that the picture was drawn from" in capfd.readouterr().err


@pytest.mark.parametrize("channels, args", [(4, []), (4, ["--mask", "mask.png"]), (8, [])])
def test_a_picture_from_a_picture_is_continued_with_its_bits(models, files, capfd, channels, args):
    args = ["-i", "in.png", "--sampler", "euler_a", *args]
    assert run(models[channels], *args, "--save-state", "half.safetensors",
               "--save-state-at", "1") == 0
    with Image.open("out.png") as image:
        whole = np.asarray(image)
    assert run(models[channels], *args, "--resume", "half.safetensors") == 0
    with Image.open("out.png") as image:
        assert np.array_equal(np.asarray(image), whole)
    args[1] = "mask.png"
    assert run(models[channels], *args, "--resume", "half.safetensors") == 2
    assert "pictures.init_img is {'sha256'" in capfd.readouterr().err


def saved(name, image, **options):
    image.save(name, **options)
    return name


def turned():
    """A picture that its EXIF says to turn by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


@pytest.mark.parametrize("make, wanted", [
    (lambda: saved("x.png", PICTURE.rotate(90, expand=True), **turned()), PICTURE),
    (lambda: saved("x.png", PICTURE.convert("RGBA")), PICTURE),
    (lambda: saved("x.webp", PICTURE, lossless=True), PICTURE),
    (lambda: saved("x.png", PICTURE.convert("L")), PICTURE.convert("L").convert("RGB")),
    (lambda: saved("x.png", PICTURE.quantize(8)), PICTURE.quantize(8).convert("RGB")),
], ids=["EXIF", "RGBA", "WebP", "grey", "palette"])
def test_pictures_are_read_as_they_are_seen(models, files, make, wanted):
    assert run(models[4], "-i", make()) == 0
    with Image.open("out.png") as image:
        found = np.asarray(image)
    wanted.save("y.png")
    assert run(models[4], "-i", "y.png") == 0
    with Image.open("out.png") as image:
        assert np.array_equal(np.asarray(image), found)


def test_transparency_is_said_not_to_be_looked_at(models, files, capfd):
    clear = PICTURE.convert("RGBA")
    clear.putalpha(MASK)
    clear.save("x.png")
    assert run(models[4], "-i", "x.png") == 0
    said = "x.png: its transparency is not looked at"
    assert said in capfd.readouterr().err
    for args in (["-i", "x.png"], ["repro", "out.png"]):  # with --json it is in the answer
        code = main([*args, "-m", models[4], "--json"]) if args[0] == "repro" else run(
            models[4], *args, "--json")
        found = capfd.readouterr()
        assert (code, found.err) == (0, "") and said in json.loads(found.out)["warnings"][0]


def broken(name, data):
    with open(name, "wb") as file:
        file.write(data)
    return name


def half_of_the_picture():
    with open("in.png", "rb") as file:
        return broken("x.png", file.read()[:900])


IN = ["-i", "in.png"]
REFUSALS = {
    "no file": (lambda: ["-i", "none.png"], 2, "none.png: no such file"),
    "no picture": (lambda: ["-i", broken("x.png", b"text")], 2, "not a PNG, JPEG or WebP"),
    "half a picture": (lambda: ["-i", half_of_the_picture()], 2, "x.png: a damaged PNG"),
    "huge": (lambda: ["-i", saved("x.png", Image.new("1", (4097, 8)))], 2, "at most 4096 x 4096"),
    "CMYK": (lambda: ["-i", saved("x.jpg", PICTURE.convert("CMYK"))], 2, "pixels are CMYK"),
    "a mask alone": (lambda: ["--mask", "mask.png"], 2, "--mask is for drawing from a picture"),
    "strength alone": (lambda: ["--strength", "0.5"], 2, "--strength is for drawing from a"),
    "strength": (lambda: [*IN, "--strength", "1.5"], 2, "--strength is 1.5; give a number"),
    "no step": (lambda: [*IN, "--strength", "0.2"], 2, "leaves none of 4 steps"),
    "variation": (lambda: [*IN, "--variation-strength", "0.5"], 2, "--variation-strength"),
    "a part of all": (lambda: [*IN, "--mask-padding", "3"], 2, "--mask-padding is for what a mask"),
    "a part and no picture": (lambda: ["--mask-padding", "3"], 2, "--mask-padding is for drawing"),
    "another size": (lambda: [*IN, "--mask", saved("x.png", MASK.resize((9, 9))), "--mask-padding",
                              "3"], 2, "x.png: 9 x 9, in.png is 41 x 35"),
    "a side": (lambda: [*IN, "-W", "30"], 2, "width is 30; give a multiple of 8"),
    "rescale": (lambda: [*IN, "--guidance-rescale", "0.5"], 2, "--guidance-rescale: not"),
    "two scales": (lambda: [*IN, "--img-cfg-scale", "2"], 3, "no InstructPix2Pix model"),
}


@pytest.mark.parametrize("make, code, words", REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_drawn_from_is_one_line(models, files, capfd, make, code, words):
    assert run(models[4], *make()) == code
    *notes, error = capfd.readouterr().err.splitlines()
    assert error.startswith("refsd: error: ") and words in error
    assert not [note for note in notes if "warning" in note]
    assert not (files / "out.png").exists()


@pytest.mark.parametrize("channels, args, words", [
    (9, [], "an inpainting model"), (9, ["-i", "in.png"], "--init-img PICTURE and --mask PICTURE"),
    (8, [], "InstructPix2Pix, which edits a picture"), (8, ["-i", "in.png", "--mask", "mask.png"],
                                                       "--init-img PICTURE and no --mask")])
def test_the_command_says_which_options_a_model_wants(models, files, capfd, channels, args, words):
    assert run(models[channels], *args) == 3
    assert words in capfd.readouterr().err.splitlines()[-1]


def test_a_single_file_says_its_channels_itself(models, tmp_path, capfd):
    """A whole checkpoint of Stable Diffusion 1's names, its configs given: it is so small."""
    parts = load_checkpoint(models[9])
    tensors = {}
    for name, part in parts.items():
        tensors |= to_ldm(name, part.tensors, part.config)
    write_safetensors(tmp_path / "x.safetensors", tensors)
    found = load_checkpoint(tmp_path / "x.safetensors", configs={
        **{name: part.config for name, part in parts.items()},
        "unet": {**parts["unet"].config, "in_channels": 4}})
    weight = found["unet"].tensors["conv_in.weight"]
    assert found["unet"].config["in_channels"] == 9
    assert main(["info", str(tmp_path / "x.safetensors")]) == 0
    assert "Stable Diffusion 1.x, an inpainting model: " in capfd.readouterr().out
    assert np.array_equal(weight, parts["unet"].tensors["conv_in.weight"])
