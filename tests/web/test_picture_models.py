"""Models that draw from pictures alone: InstructPix2Pix's and those for inpainting."""

import base64
import io
import json

import numpy as np
import pytest
import tiny
from PIL import Image

from refsd.__main__ import main
from refsd.cli import draw
from refsd.errors import UsageError
from refsd.networks import shapes_of
from refsd.serve.models import find_models
from refsd.serve.studio import Studio

BASE = draw.parser().parse_args(["--backend", "numpy"])
CHANNELS = {"edits": 8, "inpaints": 9, "draws": 4}
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[16:48, 16:40] = 255
PATIENCE = 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, channels in CHANNELS.items():
        unet, random = {**tiny.UNET, "in_channels": channels}, np.random.default_rng(0)
        weights = {key: tiny._weight(key, shape, random)
                   for key, shape in shapes_of("unet", unet).items()}
        made[name] = tiny.write_model(tmp_path_factory.mktemp("models") / name, unet=weights)
        (made[name] / "unet" / "config.json").write_text(json.dumps(unet))
    return made


@pytest.fixture(scope="module")
def studio(folders, tmp_path_factory):
    made = Studio(find_models([str(folder) for folder in folders.values()]),
                  tmp_path_factory.mktemp("pictures"), base=BASE)
    yield made
    made.close()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fields(*names):
    given = {"init_image": IMAGE, "mask": MASK}
    return {name: base64.b64encode(png(given[name])).decode() for name in names}


@pytest.mark.parametrize("model, pictures, said, words", [
    ("edits", ["init_image"], {"img_cfg_scale": 1.25}, ["--img-cfg-scale", "1.25"]),
    ("edits", ["init_image"], {}, []),
    ("inpaints", ["init_image", "mask"], {"strength": 1}, ["--strength", "1"]),
    ("inpaints", ["init_image", "mask"], {"mask_padding": 4}, ["--mask-padding", "4"]),
    ("draws", [], {}, []), ("draws", ["init_image"], {"strength": 0.5}, ["--strength", "0.5"]),
])
def test_a_picture_is_byte_for_byte_that_of_refsd_draw(studio, folders, tmp_path, model, pictures,
                                                       said, words):
    job = studio.submit(studio.read({"prompt": "a cat", "seed": 5, "steps": 4, "width": 64,
                                     "height": 64, "model": model, **fields(*pictures), **said}))
    assert job.join(PATIENCE) and (job.state, job.error) == ("done", None)
    for name, pixels in (("init_image", IMAGE), ("mask", MASK)):
        (tmp_path / name).write_bytes(png(pixels))
        if name in pictures:
            option = {"init_image": "--init-img"}.get(name, "--mask")
            words = [*words, option, str(tmp_path / name)]
    assert main(["a cat", "-m", str(folders[model]), "-s", "5", "--steps", "4", "-W", "64", "-H",
                 "64", "-q", "--backend", "numpy", "-o", f"{tmp_path}/", *words]) == 0
    assert job.pictures[0].png == (tmp_path / "refsd-5.png").read_bytes()


@pytest.mark.parametrize("model, pictures, message", [
    ("edits", [], "model edits is InstructPix2Pix, which edits a picture; give init_image, and no"),
    ("edits", ["init_image", "mask"], "give init_image, and no other picture"),
    ("inpaints", [], "model inpaints is an inpainting model; give init_image and mask, and no"),
    ("inpaints", ["init_image"], "give init_image and mask"),
])
def test_what_a_model_reads_is_asked_for_before_it_is_loaded(studio, model, pictures, message):
    with pytest.raises(UsageError, match=message):
        studio.read({"prompt": "a", "width": 64, "height": 64, "model": model, **fields(*pictures)})


def test_models_say_what_they_take(folders):
    found = find_models([str(folder) for folder in folders.values()])
    assert {id: model.takes for id, model in found.items()} == {
        "edits": "image", "inpaints": "mask", "draws": "latents"}


def test_a_first_model_that_reads_pictures_is_loaded_for_its_first_job(folders, tmp_path, caplog):
    made = Studio(find_models([str(folders["edits"])]), tmp_path, base=BASE, ahead=True)
    job = made.submit(made.read({"prompt": "a", "width": 64, "height": 64, "steps": 1,
                                 **fields("init_image")}))
    assert job.join(PATIENCE) and job.state == "done" and not caplog.records
    made.close()
