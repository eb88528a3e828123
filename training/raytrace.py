"""A small ray tracer for still lifes: signed distances, sphere tracing, one lamp, soft shadows.

Units are pixels. The world has x to the right, y up from the ground, z towards the viewer. The
camera is orthographic and looks down by ELEVATION, so a solid is as large in the picture wherever
it stands, and the truth of a scene (positions, sizes) is known to the pixel.
"""

import math

import numpy as np
from numba import njit

SIZE = 128
ELEVATION = math.radians(32.0)
_SIN, _COS = math.sin(ELEVATION), math.cos(ELEVATION)

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus")
_CUBE, _EDGE = 0.72, 0.05
_CYL_RADIUS, _CYL_HEIGHT = 0.80, 1.75
_CONE_RADIUS, _CONE_HEIGHT = 0.98, 2.25
_RING, _TUBE = 0.71, 0.29
_REACH = 1.45  # every solid of radius 1 lies inside this distance from (0, 1, 0)

_LX, _LY, _LZ = (v / math.sqrt(0.55**2 + 0.85**2 + 0.55**2) for v in (-0.55, 0.85, 0.55))
_HX, _HY, _HZ = (
    v / math.sqrt(_LX**2 + (_LY + _SIN) ** 2 + (_LZ + _COS) ** 2)
    for v in (_LX, _LY + _SIN, _LZ + _COS)
)
_AMBIENT, _LAMP = 0.42, 0.72
_FAR = 1e9


@njit(cache=True)
def _distance(shape, x, y, z):
    """Distance (or a lower bound) from a point to a solid of radius 1 that stands on y = 0."""
    if shape == 0:
        return math.sqrt(x * x + (y - 1.0) ** 2 + z * z) - 1.0
    if shape == 1:
        half = _CUBE - _EDGE
        a, b, c = abs(x) - half, abs(y - _CUBE) - half, abs(z) - half
        out = math.sqrt(max(a, 0.0) ** 2 + max(b, 0.0) ** 2 + max(c, 0.0) ** 2)
        return out + min(max(a, max(b, c)), 0.0) - _EDGE
    if shape == 2:
        a = math.sqrt(x * x + z * z) - _CYL_RADIUS + 0.03
        b = abs(y - 0.5 * _CYL_HEIGHT) - 0.5 * _CYL_HEIGHT + 0.03
        out = math.sqrt(max(a, 0.0) ** 2 + max(b, 0.0) ** 2)
        return out + min(max(a, b), 0.0) - 0.03
    if shape == 3:
        slant = math.sqrt(_CONE_RADIUS**2 + _CONE_HEIGHT**2)
        a = math.sqrt(x * x + z * z) * _CONE_HEIGHT + (y - _CONE_HEIGHT) * _CONE_RADIUS
        return max(a / slant, -y)
    a = math.sqrt(x * x + (y - 1.0) ** 2) - _RING
    return math.sqrt(a * a + z * z) - _TUBE


@njit(cache=True)
def _to_solid(solid, x, y, z):
    """World distance from a point to a solid (shape, x, z, radius, cos yaw, sin yaw)."""
    radius = solid[3]
    a, c = (x - solid[1]) / radius, (z - solid[2]) / radius
    return radius * _distance(
        int(solid[0]), solid[4] * a + solid[5] * c, y / radius, solid[4] * c - solid[5] * a
    )


@njit(cache=True)
def _span(solid, ox, oy, oz, dx, dy, dz):
    """(enter, leave) of a ray and the ball around a solid; enter > leave when it misses."""
    px, py, pz = ox - solid[1], oy - solid[3], oz - solid[2]
    b = px * dx + py * dy + pz * dz
    c = px * px + py * py + pz * pz - (_REACH * solid[3]) ** 2
    root = b * b - c
    if root <= 0.0:
        return 1.0, 0.0
    root = math.sqrt(root)
    return -b - root, -b + root


@njit(cache=True)
def _trace(solids, ox, oy, oz):
    """(index of the first solid that the camera ray meets or -1, distance along the ray)."""
    best, which = (oy / _SIN), -1
    for i in range(solids.shape[0]):
        t, leave = _span(solids[i], ox, oy, oz, 0.0, -_SIN, -_COS)
        leave = min(leave, best)
        while t < leave:
            step = _to_solid(solids[i], ox, oy - t * _SIN, oz - t * _COS)
            if step < 0.01:
                best, which = t, i
                break
            t += step
    return which, best


@njit(cache=True)
def _lit(solids, x, y, z):
    """How much of the lamp a point sees, 0 to 1: the narrowest cone that passes all solids."""
    light = 1.0
    for i in range(solids.shape[0]):
        t, leave = _span(solids[i], x, y, z, _LX, _LY, _LZ)
        t = max(t, 0.4)
        while t < leave and light > 0.0:
            step = _to_solid(solids[i], x + t * _LX, y + t * _LY, z + t * _LZ)
            light = min(light, 7.0 * step / t)
            t += max(step, 0.25)
        if light <= 0.0:
            return 0.0
    return light * light * (3.0 - 2.0 * light)


@njit(cache=True)
def _near(solids, x, y, z, skip):
    """Share of the sky that a point sees: darker close to other solids."""
    sky = 1.0
    for i in range(solids.shape[0]):
        if i != skip:
            gap = max(_to_solid(solids[i], x, y, z), 0.0) / solids[i, 3]
            sky *= 1.0 - 0.55 * math.exp(-gap / 0.28)
    return sky


@njit(cache=True)
def _normal(solid, x, y, z):
    h = 0.02
    d = _to_solid(solid, x, y, z)
    a = _to_solid(solid, x + h, y, z) - d
    b = _to_solid(solid, x, y + h, z) - d
    c = _to_solid(solid, x, y, z + h) - d
    norm = math.sqrt(a * a + b * b + c * c) + 1e-12
    return a / norm, b / norm, c / norm


@njit(cache=True)
def _shade(solids, albedo, glossy, ground, sx, sy, out):
    """Linear colour of the picture at (sx, sy), y up, into `out`; gives the solid's index or -1."""
    lift = 400.0
    oy, oz = sy * _COS + lift * _SIN, -sy * _SIN + lift * _COS
    which, t = _trace(solids, sx, oy, oz)
    x, y, z = sx, oy - t * _SIN, oz - t * _COS
    if which < 0:
        fall = 1.0 - 0.16 * (sx * sx + sy * sy) / 4096.0 - 0.10 * sy / 64.0
        light = 0.5 * _near(solids, x, 0.0, z, -1) + 0.5 * _lit(solids, x, 0.05, z)
        for k in range(3):
            out[k] = ground[k] * fall * (0.25 + 0.75 * light)
        return which
    a, b, c = _normal(solids[which], x, y, z)
    face = max(a * _LX + b * _LY + c * _LZ, 0.0)
    lit = 0.0
    if face > 0.0:
        lit = _lit(solids, x + 0.6 * a, y + 0.6 * b, z + 0.6 * c)
    floor = 1.0 - 0.35 * math.exp(-y / (0.5 * solids[which, 3]))
    sky = (0.72 + 0.28 * b) * _near(solids, x, y, z, which) * floor
    light = _AMBIENT * sky + _LAMP * face * lit
    shine, mirror = 0.0, 0.0
    if glossy[which]:
        half = max(a * _HX + b * _HY + c * _HZ, 0.0)
        shine = 0.95 * lit * half**48.0
        mirror = 0.04 + 0.35 * (1.0 - max(b * _SIN + c * _COS, 0.0)) ** 4
    for k in range(3):
        out[k] = albedo[which, k] * light * (1.0 - mirror) + mirror * 0.6 * ground[k] + shine
    return which


@njit(cache=True)
def _render(solids, albedo, glossy, ground, size, over):
    picture = np.empty((size, size, 3))
    ids = np.empty((size, size), np.int64)
    scale, colour = SIZE / size, np.empty(3)
    for j in range(size):
        for i in range(size):
            sx, sy = (i + 0.5) * scale - SIZE / 2, SIZE / 2 - (j + 0.5) * scale
            ids[j, i] = _shade(solids, albedo, glossy, ground, sx, sy, colour)
            picture[j, i] = colour
    first = picture.copy()
    for j in range(size):
        for i in range(size):
            edge = False
            for dj, di in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                v, u = min(max(j + dj, 0), size - 1), min(max(i + di, 0), size - 1)
                jump = abs(first[v, u, 0] - first[j, i, 0]) + abs(first[v, u, 1] - first[j, i, 1])
                jump += abs(first[v, u, 2] - first[j, i, 2])
                edge = edge or ids[v, u] != ids[j, i] or jump > 0.12
            if edge:
                total = np.zeros(3)
                for n in range(over * over):
                    sx = (i + (n % over + 0.5) / over) * scale - SIZE / 2
                    sy = SIZE / 2 - (j + (n // over + 0.5) / over) * scale
                    _shade(solids, albedo, glossy, ground, sx, sy, colour)
                    total += np.minimum(colour, 1.0)
                picture[j, i] = total / (over * over)
    return picture, ids


def linear(srgb):
    """(r, g, b) of 0 to 255 -> linear light, by the power 2.2."""
    return (np.asarray(srgb, np.float64) / 255.0) ** 2.2


def stand(x, y, radius):
    """World (x, z) of a solid whose middle shows at offset (x right, y up) from the centre."""
    return x, (radius * _COS - y) / _SIN


def render(scene, *, size=SIZE, over=3, masks=False):
    """Scene -> (size, size, 3) uint8; with masks also each pixel's solid, by index or -1."""
    rows = []
    for solid in scene.solids:
        x, z = stand(solid.x, solid.y, solid.radius)
        shape = SHAPES.index(solid.shape)
        rows.append((shape, x, z, solid.radius, math.cos(solid.yaw), math.sin(solid.yaw)))
    albedo = np.array([linear(solid.rgb) for solid in scene.solids])
    glossy = np.array([solid.finish == "glossy" for solid in scene.solids])
    ground = linear(scene.ground)
    picture, ids = _render(np.array(rows, np.float64), albedo, glossy, ground, size, over)
    picture = (255.0 * np.clip(picture, 0.0, 1.0) ** (1 / 2.2) + 0.5).astype(np.uint8)
    return (picture, ids) if masks else picture
