"""Scenes: one to three solids on the ground, drawn from an integer seed."""

import math
from dataclasses import dataclass

import numpy as np

from training.raytrace import SHAPES

COLORS = {
    "red": (212, 30, 38),
    "orange": (245, 130, 20),
    "yellow": (245, 215, 30),
    "green": (40, 160, 55),
    "cyan": (30, 195, 205),
    "blue": (35, 70, 215),
    "purple": (125, 45, 190),
    "pink": (245, 105, 175),
}
BACKGROUNDS = {
    "white": (236, 236, 236),
    "grey": (150, 150, 150),
    "dark": (62, 62, 66),
    "pale blue": (186, 206, 226),
}
SIZES = {"small": (15.0, 16.5), "large": (23.0, 25.0)}
FINISHES = ("glossy", "matte")
LAYOUTS = {1: ("alone",), 2: ("row", "depth"), 3: ("row", "triangle front", "triangle behind")}


@dataclass(frozen=True)
class Solid:
    """One solid; (x, y) is where its middle shows, in pixels from the picture's centre, y up."""

    shape: str
    color: str
    size: str
    finish: str
    radius: float
    x: float
    y: float
    yaw: float

    @property
    def rgb(self):
        return COLORS[self.color]


@dataclass(frozen=True)
class Scene:
    """Solids in caption order: a row from left to right, depth from front to behind."""

    solids: tuple
    background: str
    layout: str

    @property
    def ground(self):
        return BACKGROUNDS[self.background]


def _yaw(shape, rng):
    if shape == "cube":  # two faces and the top show, so the outline has six corners
        return math.radians(rng.uniform(25, 65))
    return math.radians(rng.uniform(-25, 25))


def _places(layout, radii, rng):
    """Picture positions of the middles; None when they do not fit."""
    r = radii
    if layout == "alone":
        spots = [(rng.uniform(-14, 14), rng.uniform(-10, 10))]
    elif layout == "depth":
        gap = (r[0] + r[1]) * rng.uniform(1.0, 1.15)
        lean = rng.uniform(-0.3, 0.3) * (r[0] + r[1])
        spots = [(-lean / 2, -gap / 2), (lean / 2, gap / 2)]
    else:
        row = r if layout == "row" else r[:2]
        x, y, spots = 0.0, 0.0, []
        for i, radius in enumerate(row):
            x += 0.0 if i == 0 else (row[i - 1] + radius) * rng.uniform(1.04, 1.2)
            spots.append((x, 0.85 * (radius - row[0]) + rng.uniform(-4, 4)))
        if layout != "row":
            sign = -1 if layout == "triangle front" else 1
            gap = 0.5 * (max(r[:2]) + r[2]) + 0.5 * (sum(r[:2]) / 2 + r[2])
            spots.append((x / 2 + rng.uniform(-4, 4), y + sign * gap * rng.uniform(1.0, 1.1)))
    spots = np.array(spots)
    low = (spots - np.array([[1.02 * a, 1.30 * a] for a in r])).min(axis=0)
    high = (spots + np.array([[1.02 * a, 1.20 * a] for a in r])).max(axis=0)
    room = 122.0 - (high - low)
    if room.min() < 0:
        return None
    if layout == "alone":
        return spots
    shift = np.clip(rng.uniform(-0.5, 0.5, 2) * room, -9, 9)
    return spots - (low + high) / 2 + shift


def sample_scene(seed, *, count=None, layout=None):
    """Integer seed -> Scene; the same seed gives the same scene on every machine."""
    rng = np.random.default_rng([2718, seed])
    count = count or int(rng.choice((1, 2, 3), p=(0.35, 0.47, 0.18)))
    layout = layout or str(rng.choice(LAYOUTS[count]))
    colors = [str(c) for c in rng.permutation(list(COLORS))[:count]]
    background = str(rng.choice(list(BACKGROUNDS)))
    while True:
        sizes = [str(rng.choice(list(SIZES))) for _ in range(count)]
        radii = [float(rng.uniform(*SIZES[size])) for size in sizes]
        spots = _places(layout, radii, rng)
        if spots is not None:
            break
    solids = []
    for color, size, radius, (x, y) in zip(colors, sizes, radii, spots, strict=True):
        shape, finish = str(rng.choice(SHAPES)), str(rng.choice(FINISHES))
        solids.append(
            Solid(shape, color, size, finish, radius, float(x), float(y), _yaw(shape, rng))
        )
    return Scene(tuple(solids), background, layout)
