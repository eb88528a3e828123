"""Convolution as one matrix product whose left matrix is never written down (implicit GEMM).

Row r of that matrix is what output pixel r sees: for every tap, the channels of one pixel. In a
channels-last image those are adjacent, and the next output pixel sees the same one pixel further
on: the tile's rows are `step` apart, its segments are the taps. What makes that true for every
image is the copy that padding needs anyway: with zeros around, and with the pixels sorted by phase
(row modulo stride, column modulo stride), so that output neighbours are neighbours in memory. Rows
are counted across the `pitch` of a padded line; the few at each line's end that no output has are
computed and dropped.

The copy: (N, phases, lines, pitch, step), `step` being C and perhaps a gap. sums: (tiles, MR, NR).
"""

from contextlib import contextmanager
from typing import NamedTuple

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import MOST_KC, as_addend, as_pixels, sources
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_bits, fill_up, flat, panel_width
from refsd.numba_ops.panels import is_small, panel_of, right_matrix, room_of_thread, rooms_for
from refsd.numba_ops.simd import fma, lanes, load, masked_load, masked_store, scratch, store
from refsd.numba_ops.tile import ROWS, VECTORS, rows_of_tiles, tile_ahead
from refsd.numba_ops.weights import columns
from refsd.numba_ops.workspace import workspace

# Elements of the image that a task keeps in the second-level cache, and its most tiles.
BLOCK, MOST_TILES = 2**17, 64


class Plan(NamedTuple):
    """How the copy of an image is laid out, in pixels but for `taps`."""

    phases: np.ndarray  # (row, column) of those that some tap sees
    lines: int  # of one phase
    pitch: int  # from one line to the next
    taps: np.ndarray  # element offset of each tap, (kH kW,)
    step: int  # elements from one pixel to the next
    run: int  # rows of the matrix: from the first output pixel to the last

    @property
    def size(self) -> int:
        """Elements of an image."""
        return len(self.phases) * self.lines * self.pitch * self.step

    def elements(self, images: int, left: int) -> int:
        """All of them, and behind the last image the `left` zeros of a next line, and rows for the
        last tile.
        """
        return images * self.size + (left + ROWS) * self.step


def implicit_gemm(x, weight, bias, y, stride, padding, dilation, groups, addend, size):
    """y = w * x + bias + addend, x enlarged to `size`.   x (N, C, H, W), y (N, H', W', O)"""
    (N, C, _, _), (O, I, _, kw) = x.shape, weight.shape
    plan = plan_of(C, weight.shape, y.shape, stride, padding, dilation, x.itemsize)
    biases, addend = fill_up(bias, O, x.dtype), as_addend(addend, x.dtype)
    with _padded_copy(x, size, plan, stride, padding) as (copy, image):
        if I == 1 and O == C:
            _depthwise(copy, image, plan.pitch * plan.step, plan.step, plan.taps, *columns(weight),
                       biases, addend, flat(y), y.shape)
            return
        segments, length = _segments(plan, I, kw, stride, dilation, groups)
        # No result depends on this size: it keeps the caches full and the threads busy.
        height = rows_of_tiles(plan.run)
        tiles, count = N * -(-plan.run // height), groups * -(-O // groups // panel_width(x.dtype))
        tall = max(1, min(MOST_TILES, BLOCK // (height * plan.step),
                          tiles * count // (2 * numba.get_num_threads())))
        tall = -(-tiles // -(-tiles // tall))
        right, kc_segments = right_matrix(weight), max(1, MOST_KC // length)
        _multiply(copy, image, plan.step, plan.run, height, plan.pitch, I, segments, length,
                  kc_segments, right, rooms_for(right, kc_segments * length, x.dtype), biases,
                  addend, flat(y), y.shape, groups, tall)


def plan_of(C, kernel, result, stride, padding, dilation, itemsize):
    _, _, kh, kw = kernel
    _, Ho, Wo, _ = result
    (sh, sw), (dh, dw) = stride, dilation
    taps = [(u * dh, v * dw) for u in range(kh) for v in range(kw)]
    phases = sorted({(r % sh, c % sw) for r, c in taps})
    lines = Ho + (kh - 1) * dh // sh
    pitch = Wo + (kw - 1) * dw // sw
    if sw == 1:  # the zeros right of one line are also those left of the next
        pitch = max(Wo, pitch - min(padding[1]))
    # Pixels at multiples of 4096 bytes would share few cache sets.
    step = C + 16 if C * itemsize % 4096 == 0 else C
    offsets = [(phases.index((r % sh, c % sw)) * lines + r // sh) * pitch + c // sw
               for r, c in taps]
    return Plan(np.array(phases), lines, pitch, np.array(offsets) * step, step,
                (Ho - 1) * pitch + Wo)


@contextmanager
def _padded_copy(x, size, plan, stride, padding):
    """The copy (or x itself where it will do), and the step from image to image"""
    (N, C, _, W), (top, left) = x.shape, (padding[0][0], padding[1][0])
    memory, image, row, pixel = as_pixels(x)
    if (size == x.shape[2:] and stride == (1, 1) and not np.any(padding) and plan.run >= ROWS
            and (row, pixel) == (W * C, plan.step)):
        yield memory, image
        return
    with workspace(x.dtype, plan.elements(N, left)) as (copy,):
        _sort_pixels(as_bits(memory), (image, row, pixel), (N, C, *size), sources(x, size),
                     (top, left), stride, plan.phases, plan.lines, plan.pitch, plan.step,
                     as_bits(copy))
        yield copy, plan.size


@jit(parallel=True)
def _sort_pixels(x, steps, shape, sources, corner, stride, phases, lines, pitch, pixel, out):
    """Line after line of the copy: pixels of x that are `stride` apart, zeros outside."""
    (N, C, H, W), (rows, columns) = shape, sources
    for task in prange(N * len(phases) * lines):
        line = np.int64(task)
        n, phase, i = line // (len(phases) * lines), line // lines % len(phases), line % lines
        i = i * stride[0] + phases[phase, 0] - corner[0]
        for position in range(pitch):
            j = position * stride[1] + phases[phase, 1] - corner[1]
            inside = 0 <= i < H and 0 <= j < W
            source = 0
            if inside:
                source = n * steps[0] + (rows[i] if rows.size > 0 else i) * steps[1] + (
                    columns[j] if rows.size > 0 else j) * steps[2]
            _copy(x, source, C if inside else 0, C, out, (line * pitch + position) * pixel)
    end = N * len(phases) * lines * pitch * pixel
    _copy(x, 0, 0, out.size - end, out, end)


@jit
def _copy(x, at, have, size, out, out_at):
    """out[out_at : out_at + size] = `have` elements of x and zeros behind them"""
    n = lanes(x)
    for c in range(0, size, n):
        if have - c >= n and size - c >= n:
            store(out, out_at + c, load(x, at + c))
        else:
            masked_store(out, out_at + c, masked_load(x, at + c, max(0, have - c)), size - c)


def _segments(plan, I, kw, stride, dilation, groups):
    """The offsets of runs of adjacent elements, all of one length, that cover the taps

    Few channels: the taps of a line are one run. Many: runs of at most MOST_KC where that divides.
    """
    adjacent = groups == 1 and stride[1] == dilation[1] == 1 and plan.step == I
    if adjacent and kw * I <= 64:
        return plan.taps[::kw].copy(), kw * I
    parts = next((n for n in range(-(-I // MOST_KC), I // 64) if I % n == 0), 1)
    length = I // parts
    return (plan.taps[:, None] + np.arange(0, I, length)).ravel(), length


@jit(parallel=True)
def _multiply(a, image, step, run, height, pitch, channels, segments, length, kc_segments, right,
              rooms, biases, addend, out, result, groups, tall):
    """A task is a block of `tall` tiles by one panel, summed in KC blocks of kc_segments segments.

    So the part of the panel in use is small enough to stay in the first-level cache.
    """
    N, _, _, O = result
    width = VECTORS * lanes(out)
    tiles = (run + height - 1) // height
    blocks, each = (N * tiles + tall - 1) // tall, (O // groups + width - 1) // width
    for task in prange(blocks * groups * each):
        panel, low = np.int64(task) % (groups * each), np.int64(task) // (groups * each) * tall
        high = min(low + tall, N * tiles)
        group = panel // each
        column = group * (O // groups) + panel % each * width
        sums = scratch((high - low) * height * width, out)
        mine = room_of_thread(rooms, kc_segments * length)
        for first in range(0, segments.size, kc_segments):
            part = segments[first:first + kc_segments]
            rows = part.size * length
            block, right_step = panel_of(right, first * length, rows, column, mine)
            after = segments[(first + kc_segments) % segments.size]
            for t in range(low, high):
                c = sums[(t - low) * height * width:][:height * width]
                left = _left(t, tiles, height, run, image, step) + group * channels
                following = _left(t + 1, tiles, height, run, image, step) + part[0]
                if t + 1 == high:
                    following = _left(low, tiles, height, run, image, step) + after
                # The panel's next KC block lies behind this one: each tile prefetches its share.
                ahead = (t - low) * rows // (high - low) * right_step
                if not is_small(right):
                    ahead += rows * right_step
                tile_ahead(height, a, left, step, part, length, block, 0, right_step, c, first,
                           following + group * channels, ahead, width // (high - low) + 1)
        room = (group + 1) * (O // groups) - column
        for t in range(low, high):
            _finish(sums[(t - low) * height * width:], t, tiles, height, run, pitch, biases, addend,
                    out, result, column, room)


@jit
def _left(tile, tiles, height, run, image, step):
    """Where a tile begins; the last of an image starts early, over rows of the one before."""
    return tile // tiles * image + max(0, min(tile % tiles * height, run - height)) * step


@jit
def _finish(sums, tile, tiles, height, run, pitch, biases, addend, out, result, column, room):
    """Write the rows of a tile that belong to an output pixel, plus bias and addend, to y"""
    (_, Ho, Wo, O), (added, image, row, pixel) = result, addend
    size, n = lanes(out), tile // tiles
    start = max(0, min(tile % tiles * height, run - height))
    for r in range(tile % tiles * height - start, min(height, run - start)):
        i, j = (start + r) // pitch, (start + r) % pitch
        at = ((n * Ho + i) * Wo + j) * O + column
        for v in range(VECTORS if j < Wo else 0):
            value = load(sums, (r * VECTORS + v) * size) + load(biases, column + v * size)
            have = min(size, room - v * size)
            if added.size > 0 and have > 0:
                value = value + masked_load(
                    added, n * image + i * row + j * pixel + column + v * size, have)
            if have == size:
                store(out, at + v * size, value)
            elif have > 0:
                masked_store(out, at + v * size, value, have)


@jit(parallel=True)
def _depthwise(a, image, line, step, taps, right, right_step, bias, addend, out, result):
    """Every channel by itself: a row of `right` holds a tap's weights for all channels."""
    (N, Ho, Wo, C), (added, added_image, row, pixel) = result, addend
    for task in prange(N * Ho):
        n, i = np.int64(task) // Ho, np.int64(task) % Ho
        for j in range(Wo):
            at = n * image + i * line + j * step
            for c in range(0, C, lanes(out)):
                have = min(lanes(out), C - c)
                total = masked_load(bias, c, have)
                for t in range(taps.size):
                    total = fma(masked_load(a, at + taps[t] + c, have),
                                masked_load(right, t * right_step + c, have), total)
                if added.size > 0:
                    total = total + masked_load(
                        added, n * added_image + i * row + j * pixel + c, have)
                masked_store(out, ((n * Ho + i) * Wo + j) * C + c, total, have)
