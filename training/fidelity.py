"""Does a picture show what its caption says? Colour regions and outlines, no neural network.

A solid is found as a connected region of one hue. Its outline is laid over the outlines that the
ray tracer draws of each shape; the best overlap names the shape and gives radius and place.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit
from scipy import ndimage

from training.raytrace import SHAPES, SIZE, render
from training.scenes import BACKGROUNDS, COLORS, Scene, Solid

SATURATION, CHROMA = 0.33, 26  # a pixel of a solid is more colourful than this; backgrounds are not
AREA = 110  # pixels; the smallest solid, a ring of radius 15, has 330
SMALL_HOLE = 0.035  # holes up to this share of a region are highlights
HIGHLIGHT = 0.10  # up to here they are if they are brighter than the ground by GLEAM
GLEAM = 25  # grey levels
OVERLAP = 0.80  # an outline that fits worse than this is no solid we know
MIDDLE = 19.7  # pixels; between the radii of small and large
_MODEL = 40.0  # radius of the solids whose outlines are compared


@dataclass(frozen=True)
class Found:
    """A solid found in a picture; no outline fits: shape None. x right, y up from the centre."""

    color: str
    shape: str | None
    radius: float
    x: float
    y: float
    overlap: float


@cache
def _outlines():
    """[(shape, (128, 128) bool)]: silhouettes of solids of radius 40 in the middle of a picture."""
    yaws = {"cube": (25, 32, 38, 45, 52, 58, 65), "torus": (-25, -15, 0, 15, 25)}
    out = []
    for shape in SHAPES:
        for yaw in yaws.get(shape, (0,)):
            solid = Solid(shape, "red", "large", "matte", _MODEL, 0.0, 0.0, math.radians(yaw))
            ids = render(Scene((solid,), "white", "alone"), masks=True)[1]
            out.append((shape, ids == 0))
    return out


@njit(cache=True)
def _overlap(region, ignore, outline, x, y, radius):
    """|A and B| / |A or B| of a region and an outline at (x, y); `ignore` hides pixels."""
    both, either, scale = 0, 0, _MODEL / radius
    for j in range(region.shape[0]):
        v = int(math.floor((j + 0.5 - y) * scale + 64.0))
        for i in range(region.shape[1]):
            if not ignore[j, i]:
                u = int(math.floor((i + 0.5 - x) * scale + 64.0))
                inside = 0 <= v < 128 and 0 <= u < 128 and outline[v, u]
                both += inside and region[j, i]
                either += inside or region[j, i]
    return both / max(either, 1)


@njit(cache=True)
def _fit(region, ignore, outline, x, y, radius):
    """Climb from a first guess to the place and radius of best overlap."""
    best = _overlap(region, ignore, outline, x, y, radius)
    move, grow = 2.0, 1.10
    while move > 0.3:
        better = False
        for dx, dy, ratio in (
            (move, 0.0, 1.0),
            (-move, 0.0, 1.0),
            (0.0, move, 1.0),
            (0.0, -move, 1.0),
            (0.0, 0.0, grow),
            (0.0, 0.0, 1.0 / grow),
        ):
            score = _overlap(region, ignore, outline, x + dx, y + dy, radius * ratio)
            if score > best:
                best, x, y, radius, better = score, x + dx, y + dy, radius * ratio, True
        if not better:
            move, grow = move / 2.0, math.sqrt(grow)
    return best, x, y, radius


def _hue(pixels):
    """Hue in degrees, (..., 3) float -> (...)."""
    r, g, b = np.moveaxis(pixels, -1, 0)
    return np.degrees(np.arctan2(math.sqrt(3) * (g - b), 2 * r - g - b)) % 360


def _labels(picture):
    """(H, W) index of the nearest named hue, -1 where the pixel belongs to no solid."""
    p = picture.astype(np.float64)
    top, chroma = p.max(axis=-1), p.max(axis=-1) - p.min(axis=-1)
    named = _hue(np.array(list(COLORS.values()), np.float64))
    apart = np.abs((_hue(p)[..., None] - named + 180) % 360 - 180)
    colourful = (chroma > CHROMA) & (chroma > SATURATION * top)
    return np.where(colourful, apart.argmin(axis=-1), -1)


def _regions(picture):
    """[(colour, (H, W) bool)]: connected regions of one hue, highlights filled."""
    labels, out = _labels(picture), []
    light = picture.min(axis=-1).astype(
        np.float64
    )  # a highlight is white: its least channel is high
    ground = np.median(light[labels < 0]) if (labels < 0).any() else 255.0
    for index, color in enumerate(COLORS):
        mask = ndimage.binary_opening(labels == index, np.ones((3, 3)))
        parts, count = ndimage.label(mask)
        for n in range(1, count + 1):
            region = parts == n
            if region.sum() < AREA:
                continue
            holes, many = ndimage.label(ndimage.binary_fill_holes(region) & ~region)
            for h in range(1, many + 1):
                hole = holes == h
                share = hole.sum() / region.sum()
                gleams = light[hole].mean() > ground + GLEAM
                if share <= SMALL_HOLE or (share <= HIGHLIGHT and gleams):
                    region |= hole
            out.append((color, region))
    return _absorb(out)


def _absorb(regions):
    """Regions without the slivers of a neighbouring hue that shading leaves on a larger region."""
    out, rank = [], list(COLORS)
    for color, region in regions:
        rim = ndimage.binary_dilation(region, iterations=2) & ~region
        around = 0.0
        for other, mask in regions:
            steps = abs(rank.index(color) - rank.index(other))
            if steps in (1, len(rank) - 1) and mask.sum() > 2 * region.sum():
                around = max(around, (rim & mask).sum() / rim.sum())
        if around < 0.45:
            out.append((color, region))
    return out


def find_solids(picture) -> list[Found]:
    """(128, 128, 3) uint8 -> the solids in it."""
    regions, out = _regions(picture), []
    for index, (color, region) in enumerate(regions):
        others = [mask for n, (_, mask) in enumerate(regions) if n != index]
        ignore = np.any(others, axis=0) if others else np.zeros_like(region)
        rows, columns = np.nonzero(region)
        best = (0.0, 0.0, 0.0, 0.0, None)
        for shape, outline in _outlines():
            v, u = np.nonzero(outline)
            radius = _MODEL * math.sqrt(region.sum() / outline.sum())
            x = columns.mean() + 0.5 - (u.mean() + 0.5 - 64) * radius / _MODEL
            y = rows.mean() + 0.5 - (v.mean() + 0.5 - 64) * radius / _MODEL
            best = max(best, (*_fit(region, ignore, outline, x, y, radius), shape))
        overlap, x, y, radius, shape = best
        shape = shape if overlap >= OVERLAP else None
        out.append(Found(color, shape, radius, x - SIZE / 2, SIZE / 2 - y, overlap))
    return out


def background(picture) -> str:
    """Name of the background whose colour is nearest to the median of what is no solid."""
    rest = np.median(picture[_labels(picture) < 0], axis=0)
    away = [np.abs(rest - color).sum() for color in BACKGROUNDS.values()]
    return list(BACKGROUNDS)[int(np.argmin(away))]


def holds(one: Found, relation: str, two: Found) -> bool:
    """Whether `one` stands left of, right of, in front of or behind `two`."""
    right, up = two.x - one.x, two.y - one.y
    along, across = (right, up) if relation in ("left of", "right of") else (up, right)
    if relation in ("right of", "behind"):
        along = -along
    return along >= 6.0 and along >= 0.6 * abs(across)


def judge(picture, caption) -> dict[str, bool]:
    """Picture against caption -> named verdicts; "right" is number, shapes, relations, order.

    "size" and "background" are there only when the caption speaks of them.
    """
    found = find_solids(picture)
    by_color = {solid.color: solid for solid in found}
    claims, pairs = caption.claims, []
    out = {"number": len(found) == len(claims)}
    out["color"] = out["number"] and set(by_color) == {claim.color for claim in claims}
    if out["color"]:
        pairs = [(claim, by_color[claim.color]) for claim in claims]
    out["shape"] = bool(pairs) and all(claim.shape == solid.shape for claim, solid in pairs)
    out["relation"] = bool(pairs) and all(
        holds(pairs[i][1], relation, pairs[j][1]) for i, relation, j in caption.relations
    )
    small = [solid.radius for claim, solid in pairs if claim.size == "small"]
    large = [solid.radius for claim, solid in pairs if claim.size == "large"]
    order = not (small and large) or min(large) > 1.15 * max(small)
    out["right"] = out["number"] and out["shape"] and out["relation"] and order
    if any(claim.size for claim in claims):
        out["size"] = bool(pairs) and all(
            (solid.radius > MIDDLE) == (claim.size == "large")
            for claim, solid in pairs
            if claim.size
        )
    if caption.background:
        out["background"] = background(picture) == caption.background
    return out
