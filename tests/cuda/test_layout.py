"""Copies into a memory order, and the ops that move elements, to the bit."""

import itertools

import numpy as np
import pytest
from cuda_agreement import DTYPES, VIEWS, agree, run
from op_table import normal

from refsd import functional as F
from refsd import registry
from refsd.half import HALVES
from refsd.numba_ops.cuda import layout
from refsd.numba_ops.cuda.array import CHANNELS_LAST, to_device
from refsd.numba_ops.cuda.strides import regrouped

KINDS = ("uint8", "float16", "bfloat16", "float32", "int32", "float64", "int64")


def numbers(shape, dtype):
    """Different numbers, as far as the dtype has so many."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(HALVES.get(dtype, dtype))


@pytest.mark.parametrize("dtype", KINDS)
def test_any_view_is_copied_into_any_order(dtype):
    for shape in [(2, 8, 3, 4), (1, 8, 2, 16), (3, 5), (), (0, 3), (2, 0, 3)]:
        x = numbers(shape, dtype)
        for axes in itertools.islice(itertools.permutations(range(x.ndim)), 0, None, 5):
            view = to_device(x).transpose(axes)
            for order in (None, tuple(range(x.ndim))[::-1]):
                y = layout.ordered(view, order)
                assert y.is_contiguous(order)
                np.testing.assert_array_equal(y.numpy(), x.transpose(axes))


def test_more_than_four_axes_take_more_launches():
    x = numbers((2, 3, 2, 2, 3, 2), "float32")
    y = layout.ordered(to_device(x).transpose((5, 1, 3, 0, 4, 2)))
    np.testing.assert_array_equal(y.numpy(), x.transpose(5, 1, 3, 0, 4, 2))


@pytest.mark.parametrize(("width", "start", "unit"), [
    (16, 8, 16), (16, 4, 8), (16, 2, 4), (16, 1, 2), (12, 8, 8), (15, 8, 2)])
def test_the_largest_units_that_divide_all_are_moved(width, start, unit, monkeypatch):
    taken = []
    monkeypatch.setattr(layout, "launch", lambda factory, constants, *_: taken.append(constants))
    layout.ordered(to_device(numbers((3, 32), "float16")).part(1, start, start + width))
    assert taken == [(unit,)]


def test_what_lies_well_is_not_copied_and_copies_are_counted():
    x = to_device(normal((2, 3, 4, 5), 1), CHANNELS_LAST)
    before = layout.copied["arrays"], layout.copied["bytes"]
    assert layout.ordered(x, CHANNELS_LAST) is x
    assert layout.dense(x) == (x, CHANNELS_LAST)
    y, order = layout.dense(x.part(1, 1, 3))
    assert order == CHANNELS_LAST
    assert y.is_contiguous(order)
    assert (layout.copied["arrays"], layout.copied["bytes"]) == (before[0] + 1, before[1] + 4 * 80)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("images", [CHANNELS_LAST, None, *VIEWS])
def test_ops_move_elements_to_the_bit(images, dtype):
    image, tokens = normal((2, 8, 3, 5), 1), normal((2, 15, 8), 2)
    thin, one = normal((2, 8, 3, 1), 3), normal((2, 1, 3, 5), 4)
    for name, args, options in [
            ("to_tokens", [image], {}), ("to_tokens", [thin], {}), ("to_tokens", [one], {}),
            ("to_tokens", [image[:0]], {}), ("to_tokens", [image[:, :, :1, :1]], {}),
            ("to_image", [tokens], {"height": 3, "width": 5}),
            ("to_image", [tokens[:, 0]], {"height": 1, "width": 1}),
            ("concat", [[image, one, image]], {"axis": 1}), ("concat", [[one]], {"axis": -1}),
            ("concat", [[image, image[:0], image[:1]]], {"axis": 0}),
            ("concat", [[tokens, tokens[..., :3]]], {"axis": -1}),
            ("slice", [image], {"axis": -3, "start": 1, "stop": 4}),
            ("slice", [tokens], {"axis": 1, "start": 3, "stop": 3}),
            ("pad", [image], {"widths": ((0, 0), (0, 0), (0, 1), (2, 0))}),
            ("pad", [tokens], {"widths": ((1, 0), (0, 2), (3, 1))}),
            ("pad", [tokens[:0]], {"widths": ((1, 0), (0, 0), (0, 0))}),
            ("transpose", [image], {"axes": (2, 0, 3, 1)}),
            ("transpose", [normal((), 1)], {"axes": ()}),
            ("reshape", [image], {"shape": (2, 2, 4, 15)}), ("reshape", [image], {"shape": (240,)}),
            ("reshape", [tokens], {"shape": [2, 3, 5, 1, 8]}),
            ("reshape", [thin], {"shape": (6, 8)}), ("reshape", [one], {"shape": (30, 1)}),
            ("reshape", [image[:0]], {"shape": (5, 0)}),
            ("reshape", [normal((), 1)], {"shape": (1, 1)})]:
        agree(name, args, options, dtype, images)


def test_nan_is_moved_as_it_is():
    """Its bits too: what is moved is never a number."""
    bits = np.arange(0x7F80, 0x8080, dtype=np.uint16).reshape(2, 8, 4, 4)
    for dtype in (np.float16, HALVES["bfloat16"]):
        x = bits.view(dtype)
        for name, args, options in [("concat", [[x, x]], {"axis": 1}), ("to_tokens", [x], {}),
                                    ("pad", [x], {"widths": ((0, 0), (0, 1), (0, 0), (0, 0))})]:
            expected = registry.ops()[name].definition(*args, **options)
            assert run(name, args, options, None).tobytes() == expected.tobytes(), name


def test_images_and_tokens_share_memory(monkeypatch):
    """What networks do between convolutions and attention copies nothing."""
    monkeypatch.setattr(layout, "launch", None)
    image = to_device(normal((2, 8, 3, 5), 1), CHANNELS_LAST)
    with registry.use("cuda"):
        tokens = F.to_tokens(image)
        assert tokens.is_contiguous()
        again = F.to_image(tokens, height=3, width=5)
        assert again.is_contiguous(CHANNELS_LAST)
        half = F.slice(F.transpose(again, axes=(0, 2, 3, 1)), axis=0, start=1, stop=2)
        some = F.to_tokens(F.slice(image, axis=1, start=2, stop=7))
    assert {view.block for view in (tokens, again, half, some)} == {image.block}


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (2, 1, 6, 4, 1, 3), (2, 2, 3, 2, 2, 3), (12, 4, 3),
                                   (12, 12), (2, 72), (144,), (2, 6, 12), (1, 12, 2, 6)])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2), (1, 0, 2, 3), (0, 1, 3, 2)])
def test_strides_are_found_where_numpy_finds_a_view(shape, axes):
    """Whether they are right is compared to the bit above."""
    sizes = np.argsort(axes)
    x = np.zeros([(2, 6, 4, 3)[i] for i in axes], "i1").transpose(sizes)
    for view in (x, x[:1], x[:, ::2], x[:, :, 1:3]):
        wanted = shape if view is x else (*view.shape[:3], 1, view.shape[3])
        seen = view.reshape(wanted)
        strides = regrouped(view.shape, view.strides, wanted)
        assert (strides is not None) == np.shares_memory(seen, view)
        if strides is not None:
            assert [s for s, n in zip(strides, wanted) if n > 1] == [
                s for s, n in zip(seen.strides, wanted) if n > 1]


def test_joined_images_lie_as_the_first():
    with registry.use("cuda"):
        for order in (None, CHANNELS_LAST):
            x = to_device(normal((2, 8, 3, 5), 1), order)
            assert F.concat([x, x], axis=1).is_contiguous(order)
            assert F.pad(x, widths=((0, 0), (0, 0), (0, 1), (0, 1))).is_contiguous(order)
