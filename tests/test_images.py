"""Pictures as inputs: how they are sized, scaled, masked and cropped, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from refsd.errors import UsageError
from refsd.pipelines import images

GENERATOR = np.random.default_rng(0)
BYTES = GENERATOR.integers(0, 256, (19, 26, 3)).astype(np.uint8)
FLOATS = (BYTES / np.float32(255)).astype(np.float32)
PICTURE = Image.fromarray(BYTES)


def read(value, **options):
    return images.as_image("image", value, 8, latent_channels=4, **options)


def test_a_picture_is_resized_to_multiples_and_scaled_to_1():
    y = read(PICTURE)
    wanted = np.asarray(PICTURE.resize((24, 16), Image.Resampling.LANCZOS))
    assert y.shape == (1, 3, 16, 24) and y.dtype == np.float32
    assert np.array_equal(y[0].transpose(1, 2, 0), 2 * (wanted.astype("f4") / 255) - 1)
    assert read(PICTURE, height=35, width=44).shape == (1, 3, 32, 40)


def test_numbers_are_taken_from_the_nearest_pixel_below():
    y = read(FLOATS)
    rows, columns = [int(i * 19 / 16) for i in range(16)], [int(i * 26 / 24) for i in range(24)]
    assert np.array_equal(y[0].transpose(1, 2, 0), 2 * FLOATS[np.ix_(rows, columns)] - 1)


def test_the_same_picture_in_every_form_is_the_same():
    even = FLOATS[:16, :24]
    wanted = read(even)
    first = even.transpose(2, 0, 1)
    forms = [even[None], [even], [even[None]], first[None], first, [first], BYTES[:16, :24],
             Image.fromarray(BYTES[:16, :24]), even.astype(">f4"), 2 * even - 1]
    for form in forms:
        assert np.array_equal(read(form), wanted)
    assert read([even, even, even]).shape == (3, 3, 16, 24)
    grey = Image.fromarray(BYTES[:16, :24, 0])
    assert np.array_equal(read(grey), read(np.stack([BYTES[:16, :24, 0]] * 3, axis=-1)))
    assert np.array_equal(read(Image.fromarray(BYTES[:16, :24]).convert("RGBA")), wanted)


def test_sixteen_bits_are_rounded_to_eight():
    levels = np.array([0, 128, 129, 257, 65535] * 13, np.uint16)[:64].reshape(8, 8)
    y = images.as_pixels("image", Image.fromarray(levels), 8)
    wanted = np.round(levels / 257).astype("f4") / 255
    assert np.array_equal(y, np.broadcast_to(wanted, (1, 3, 8, 8)))


def test_latents_pass_as_they_are():
    latents = 5 * GENERATOR.standard_normal((2, 4, 3, 5)).astype("f4")
    assert read(latents) is latents
    assert np.array_equal(read(list(latents)), latents)


@pytest.mark.parametrize("form", [
    lambda x: x, lambda x: x[None], lambda x: x[None, None], lambda x: x[..., None],
    lambda x: x[None, ..., None], lambda x: [x], lambda x: x > 0.4,
    lambda x: (255 * x).astype(np.uint8), lambda x: (x > 0.4).astype(np.uint8),
    lambda x: Image.fromarray(np.round(255 * x).astype(np.uint8)),
], ids=list(range(10)))  # fmt: skip
def test_a_mask_paints_from_a_half_on(form):
    grey = np.full((16, 24), 0.3)
    grey[4:8, 8:16] = 0.5 + 1 / 255
    mask = images.as_mask("mask_image", form(grey), 8, height=16, width=24)
    assert mask.shape == (1, 1, 16, 24) and np.array_equal(mask[0, 0], grey > 0.4)


def test_a_mask_of_bytes_is_white_at_128():
    y = images.as_mask("m", Image.fromarray(np.full((8, 8), 127, np.uint8)), 8, height=8, width=8)
    z = images.as_mask("m", Image.fromarray(np.full((8, 8), 128, np.uint8)), 8, height=8, width=8)
    assert not y.any() and z.all()


# A white box (left, top, right, below) on 100 x 60, padding, the size to draw: the part taken.
REGIONS = [
    ((40, 20, 60, 40), 0, (64, 64), (40, 20, 60, 40)),
    ((40, 20, 60, 40), 5, (64, 64), (35, 15, 65, 45)),
    ((40, 20, 60, 40), 0, (128, 64), (30, 20, 70, 40)),
    ((40, 20, 60, 40), 0, (64, 128), (40, 10, 60, 50)),
    ((0, 0, 20, 10), 0, (64, 64), (0, 0, 20, 20)),  # pushed back from the edges
    ((90, 50, 100, 60), 0, (128, 64), (80, 50, 100, 60)),
    ((10, 50, 90, 60), 8, (64, 64), (2, 0, 98, 60)),  # higher than there is: cut
]


@pytest.mark.parametrize("box, padding, size, wanted", REGIONS)
def test_the_part_around_a_mask(box, padding, size, wanted):
    mask = Image.new("L", (100, 60))
    mask.paste(1, box)  # whatever is not black
    found = images.crop_region(mask, width=size[0], height=size[1], padding=padding)
    assert found == wanted


def test_a_crop_keeps_its_proportions_and_the_overlay_what_is_black():
    flat = Image.new("RGB", (40, 24), (10, 200, 30))
    y = read(flat, height=32, width=16, crop=(8, 4, 24, 20))
    assert y.shape == (1, 3, 32, 16) and (y == y[:, :, :1, :1]).all()  # no border is left black
    mask = Image.new("1", (40, 24))
    mask.paste(1, (10, 6, 20, 18))
    painted = images.overlay(mask, flat, Image.new("RGB", (16, 16), (250, 0, 0)), (8, 4, 24, 20))
    assert painted.getpixel((9, 5)) == (10, 200, 30) and painted.getpixel((10, 6)) == (250, 0, 0)
    assert painted.getpixel((19, 17)) == (250, 0, 0) and painted.getpixel((20, 18)) == (10, 200, 30)


@pytest.mark.parametrize("value, words", [
    (None, "image is None; give PIL's"), ("a.png", "image is 'a.png'; give PIL's"),
    ([], "empty list"), ([PICTURE, FLOATS], r"image\[1\] is a ndarray beside images"),
    (FLOATS[..., :2], r"shape \(19, 26, 2\); give \(B, 3, H, W\)"), (FLOATS[0], "has shape"),
    ([FLOATS, FLOATS[1:]], "give all of one size"), (255 * FLOATS, "numbers up to 255; give 0 to"),
    (np.full((8, 8, 3), 300), "int64 from 300 to 300"), (FLOATS * np.nan, "NaN or infinite"),
    (FLOATS[:7], "image is 26 x 7; give 8 to"), (Image.new("F", (8, 8)), "of the mode F"),
    (np.zeros((1, 3, 8, 4104), "f4"), "image is 4104 x 8"),
])  # fmt: skip
def test_what_is_no_picture_is_refused(value, words):
    with pytest.raises(UsageError, match=words):
        read(value)


def test_bad_masks_are_refused():
    with pytest.raises(UsageError, match="black all over"):
        images.crop_region(Image.new("L", (8, 8)), width=8, height=8, padding=0)
    with pytest.raises(UsageError, match="numbers down to -1"):
        images.as_mask("mask_image", np.full((8, 8), -1.0), 8, height=8, width=8)
    with pytest.raises(UsageError, match=r"give \(B, 1, H, W\)"):
        images.as_mask("mask_image", FLOATS, 8, height=8, width=8)
