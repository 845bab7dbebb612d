"""The five kinds of object of the demo set, modelled in low relief and lit from one side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from irn_pipeline.structures import BoolArray, FloatArray, LabelArray

Colour: TypeAlias = tuple[float, float, float]
Points: TypeAlias = npt.NDArray[np.float64]

_SUPERSAMPLING = 3
_SUBPIXEL_BITS = 4
_DARK: Colour = (34, 30, 34)
_PALE: Colour = (238, 232, 216)


@dataclass(frozen=True)
class Sprite:
    """One drawn object.

    Attributes:
        colour: (D, D, 3) float32 RGB in 0..255, multiplied by `alpha`.
        alpha: (D, D) float32 cover in [0, 1].
    """

    colour: FloatArray
    alpha: FloatArray

    @property
    def mask(self) -> BoolArray:
        """(D, D) bool: pixels that the object covers by half or more."""
        return np.asarray(self.alpha >= 0.5, np.bool_)


class _Relief:
    """A square surface in units of half the object's diameter: x to the right, y down, both in -1..1."""

    def __init__(self, rng: np.random.Generator, diameter: int, max_turn: float) -> None:
        self._side = diameter * _SUPERSAMPLING
        angle = np.deg2rad(rng.uniform(-max_turn, max_turn))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._to_pixels = turn * [rng.choice([-1.0, 1.0]), 1.0] * (self._side / 2)
        self._colour = np.zeros((self._side, self._side, 3), np.float32)
        self._cover = np.zeros((self._side, self._side), np.uint8)
        self._height = np.zeros((self._side, self._side), np.float32)

    def add(
        self, points: Points, colour: Colour, rise: float = 0.0, within: LabelArray | None = None
    ) -> LabelArray:
        """Fill a polygon, clipped to the shape `within`, and let it bulge by `rise` half widths; returns its shape."""
        pixels = points @ self._to_pixels.T + self._side / 2
        shape = np.zeros_like(self._cover)
        cv2.fillPoly(
            shape, [np.round(pixels * 2**_SUBPIXEL_BITS).astype(np.int32)], 255, shift=_SUBPIXEL_BITS
        )
        if within is not None:
            shape &= within
        left, top, width, height = cv2.boundingRect(shape)
        box = (slice(top, top + height), slice(left, left + width))
        inside = shape[box] > 0
        self._cover[box] |= shape[box]
        self._colour[box][inside] = colour
        if rise and inside.any():
            depth = cv2.distanceTransform(np.pad(shape[box], 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
            bulge = rise * np.sqrt(np.maximum(depth * (2 * depth.max() - depth), 0))
            # A part of its own lies on top of what is below; one within another follows its surface.
            below = 0.0 if within is None else self._height[box][inside]
            self._height[box][inside] = below + bulge[inside]
        return shape

    def finish(self, rng: np.random.Generator, light: float, gloss: float) -> Sprite:
        """Light the surface from the direction `light`, in radians, and shrink it to its size."""
        diameter = self._side // _SUPERSAMPLING
        height = cv2.GaussianBlur(self._height, (0, 0), self._side / 90)
        down, across = np.gradient(height)
        steep = np.sqrt(down**2 + across**2 + 1)
        facing = (0.62 - 0.78 * (np.cos(light) * across + np.sin(light) * down)) / steep
        halfway = (0.90 - 0.43 * (np.cos(light) * across + np.sin(light) * down)) / steep
        shine = gloss * 235 * np.clip(halfway, 0, 1) ** 24
        grain = rng.standard_normal((diameter, diameter)).astype(np.float32)
        shade = 0.30 + 0.72 * np.clip(facing / 0.62, 0, 1.6)
        shade *= 1 + 0.05 * cv2.resize(grain, shade.shape, interpolation=cv2.INTER_CUBIC)
        lit = np.clip(self._colour * shade[..., None] + shine[..., None], 0, 255).astype(np.float32)
        lit[self._cover == 0] = 0
        small = (diameter, diameter)
        cover = (self._cover > 0).astype(np.float32)
        alpha, colour = (cv2.resize(part, small, interpolation=cv2.INTER_AREA) for part in (cover, lit))
        return Sprite(np.asarray(colour, np.float32), np.asarray(alpha, np.float32))


def draw_butterfly(rng: np.random.Generator, diameter: int, light: float) -> Sprite:
    """Four veined wings with dark rims and pale dots, and a thin dark body."""
    relief = _Relief(rng, diameter, 180)
    wing = _pick(rng, [(232, 128, 32), (62, 118, 206), (240, 200, 60)])
    low = rng.uniform(0.5, 0.62)
    for side in (-1, 1):
        for centre, radii, tilt in (((0.40, 0.34), (0.42, 0.33), 0.9), ((0.47, -0.28), (0.52, 0.36), -0.6)):
            scale = low / 0.56 if centre[1] > 0 else 1.0
            place = np.array([side * centre[0], centre[1]])
            rim = relief.add(_oval(place, np.array(radii) * scale, side * tilt), _DARK, 0.12)
            for angle in rng.uniform(0, 2 * np.pi, 9):
                dot = place + 0.88 * scale * _turned(
                    (radii[0] * np.cos(angle), radii[1] * np.sin(angle)), side * tilt
                )
                relief.add(_oval(dot, (0.035, 0.035)), _PALE, within=rim)
            inner = relief.add(
                _oval(place * 0.94, np.array(radii) * scale * 0.8, side * tilt), wing, within=rim
            )
            for spread in (-0.5, -0.15, 0.2, 0.55):
                tip = place + scale * _turned((radii[0] * side, 1.2 * spread * radii[1]), side * tilt)
                relief.add(_bar((0.05 * side, 0.0), tip, 0.014), _tone(wing, 0.42), within=inner)
            relief.add(_oval(place * 1.05, (0.1 * scale, 0.1 * scale)), _tone(wing, 1.35), within=inner)
    relief.add(_oval((0, 0.02), (0.07, 0.5)), _DARK, 0.9)
    relief.add(_oval((0, -0.5), (0.09, 0.09)), _DARK, 0.9)
    return relief.finish(rng, light, 0.1)


def draw_fish(rng: np.random.Generator, diameter: int, light: float) -> Sprite:
    """A banded oval body with rows of scales, a forked tail, fins and a round eye."""
    relief = _Relief(rng, diameter, 180)
    skin = _pick(rng, [(238, 122, 36), (44, 128, 178), (60, 164, 150), (216, 84, 120)])
    band = _PALE if rng.random() < 0.7 else _DARK
    height = rng.uniform(0.42, 0.52)
    relief.add(
        np.array([(0.42, -0.1), (0.97, -0.46), (0.82, 0.0), (0.97, 0.46), (0.42, 0.1)]),
        _tone(skin, 0.8),
        0.25,
    )
    relief.add(
        np.array([(-0.35, -0.2), (-0.1, -height - 0.3), (0.35, -height - 0.12), (0.36, -0.1)]),
        _tone(skin, 0.8),
        0.2,
    )
    relief.add(np.array([(-0.1, 0.2), (0.2, height + 0.26), (0.34, 0.12)]), _tone(skin, 0.8), 0.2)
    body = relief.add(_oval((-0.18, 0.0), (0.78, height)), skin, 0.75)
    for row, x in enumerate(np.linspace(-0.3, 0.5, 7)):
        for y in np.arange(-height, height, 0.17) + 0.085 * (row % 2):
            relief.add(_oval((x, y), (0.085, 0.1)), _tone(skin, 0.72), within=body)
            relief.add(_oval((x + 0.02, y), (0.075, 0.09)), _tone(skin, rng.uniform(0.95, 1.12)), within=body)
    for x in (-0.42, 0.06, 0.42):
        ys = np.linspace(-0.7, 0.7, 12)
        edge = np.stack([x + 0.25 * ys**2, ys], 1)
        relief.add(np.concatenate([edge, edge[::-1] + np.array([0.13, 0.0])]), band, within=body)
    relief.add(_oval((-0.62, -0.1), (0.13, 0.13)), _PALE, 0.5)
    relief.add(_oval((-0.65, -0.1), (0.07, 0.07)), _DARK)
    return relief.finish(rng, light, 0.5)


def draw_flower(rng: np.random.Generator, diameter: int, light: float) -> Sprite:
    """Two rings of furrowed petals around a speckled heart."""
    relief = _Relief(rng, diameter, 180)
    petal = _pick(rng, [(246, 242, 236), (240, 130, 176), (172, 120, 216), (248, 214, 70)])
    count = int(rng.integers(7, 12))
    for ring, reach in ((0.5, 0.44), (0.0, 0.40)):
        for index in range(count):
            angle = 2 * np.pi * (index + ring) / count
            tone = _tone(petal, rng.uniform(0.86, 1.0) - 0.14 * ring)
            width = 1.9 / count
            shape = relief.add(_oval(_turned((0.55, 0.0), angle), (reach, width), angle), tone, 0.45)
            for shift in (-0.35, 0.35):
                ends = (_turned((0.2, shift * width), angle), _turned((0.85, shift * width), angle))
                relief.add(_bar(*ends, 0.012), _tone(tone, 0.78), within=shape)
    heart = relief.add(_oval((0, 0), (0.29, 0.29)), _tone((222, 156, 30), rng.uniform(0.85, 1.1)), 0.6)
    for angle, distance in zip(
        rng.uniform(0, 2 * np.pi, 40), 0.29 * np.sqrt(rng.uniform(0, 1, 40)), strict=True
    ):
        relief.add(_oval(_turned((distance, 0.0), angle), (0.032, 0.032)), (126, 70, 22), within=heart)
    return relief.finish(rng, light, 0.0)


def draw_ladybird(rng: np.random.Generator, diameter: int, light: float) -> Sprite:
    """A glossy dome with dark spots, parted in the middle, and a dark head with pale cheeks."""
    relief = _Relief(rng, diameter, 180)
    shell = _pick(rng, [(206, 32, 26), (226, 84, 20), (222, 164, 30)])
    for side in (-1, 1):
        for y, reach in ((-0.32, 0.92), (0.12, 0.98), (0.52, 0.88)):
            relief.add(_bar((0.0, y), (side * reach, y * 1.3), 0.05), _DARK, 0.5)
        relief.add(_bar((side * 0.1, -0.7), (side * 0.34, -0.98), 0.03), _DARK, 0.5)
    relief.add(_oval((0, -0.64), (0.36, 0.26)), _DARK, 0.7)
    for side in (-1, 1):
        relief.add(_oval((side * 0.22, -0.68), (0.1, 0.08)), _PALE)
    dome = relief.add(_oval((0, 0.14), (0.72, 0.76)), shell, 0.85)
    relief.add(_oval((0, -0.62), (0.36, 0.22)), _DARK, within=dome)
    size = rng.uniform(0.10, 0.15)
    for x, y in ((0.3, -0.22), (0.44, 0.16), (0.2, 0.3), (0.34, 0.58)):
        for side in (-1, 1):
            relief.add(_oval((side * x, y), (size, size * 1.1)), _DARK, within=dome)
    relief.add(_bar((0.0, -0.6), (0.0, 0.9), 0.022), _DARK, within=dome)
    return relief.finish(rng, light, 0.9)


def draw_mushroom(rng: np.random.Generator, diameter: int, light: float) -> Sprite:
    """A wide cap with pale warts over gills and a pale stem with a ring."""
    relief = _Relief(rng, diameter, 180)
    cap_colour = _pick(rng, [(150, 84, 44), (120, 66, 92), (176, 112, 40)])
    stem = _tone((226, 214, 188), rng.uniform(0.9, 1.05))
    thick = rng.uniform(0.2, 0.27)
    foot = thick * rng.uniform(1.2, 1.5)
    relief.add(np.array([(-thick, -0.1), (thick, -0.1), (foot, 0.86), (0.0, 0.97), (-foot, 0.86)]), stem, 0.7)
    gills = relief.add(_oval((0, -0.02), (0.8, 0.2)), (206, 178, 140), 0.2)
    for x in np.linspace(-0.75, 0.75, 15):
        relief.add(_bar((x * 0.3, -0.2), (x, 0.2), 0.014), (140, 106, 74), within=gills)
    relief.add(_oval((0, 0.24), (thick * 1.5, 0.08)), _tone(stem, 0.95), 0.5)
    top = rng.uniform(0.74, 0.9)
    turns = np.linspace(np.pi, 2 * np.pi, 32)
    dome = np.stack([0.95 * np.cos(turns), top * np.sin(turns) - 0.02], 1)
    brim = np.array([(0.7, 0.1), (0.35, 0.02), (0.0, 0.0), (-0.35, 0.02), (-0.7, 0.1)])
    cap = relief.add(np.concatenate([dome, brim]), cap_colour, 0.8)
    for _ in range(14):
        centre = (float(rng.uniform(-0.8, 0.8)), float(-top * rng.uniform(0.0, 0.95)))
        radius = float(rng.uniform(0.04, 0.1))
        relief.add(_oval(centre, (radius, radius * 0.8)), _PALE, 0.25, within=cap)
    return relief.finish(rng, light, 0.25)


PAINTERS: Mapping[str, Callable[[np.random.Generator, int, float], Sprite]] = MappingProxyType(
    {
        "butterfly": draw_butterfly,
        "fish": draw_fish,
        "flower": draw_flower,
        "ladybird": draw_ladybird,
        "mushroom": draw_mushroom,
    }
)
"""Class -> function of randomness, diameter in pixels and direction of the light, in the order of the class ids."""


def _pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    """One of the colours, a little off in hue and brightness."""
    base = np.array(colours[int(rng.integers(len(colours)))])
    red, green, blue = np.clip(base * rng.uniform(0.88, 1.08) + rng.normal(0, 7, 3), 0, 255)
    return float(red), float(green), float(blue)


def _tone(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _turned(point: npt.ArrayLike, angle: float) -> Points:
    x, y = np.asarray(point, np.float64)
    return np.array([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)])


def _oval(centre: npt.ArrayLike, radii: npt.ArrayLike, tilt: float = 0.0) -> Points:
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    across, along = np.asarray(radii, np.float64)
    return _turned((across * np.cos(turns), along * np.sin(turns)), tilt).T + np.asarray(centre)


def _bar(start: npt.ArrayLike, end: npt.ArrayLike, half_width: float) -> Points:
    ends = np.array([start, end], np.float64)
    along = ends[1] - ends[0]
    side = half_width * np.array([-along[1], along[0]]) / np.hypot(along[0], along[1])
    return np.stack([ends[0] + side, ends[1] + side, ends[1] - side, ends[0] - side])
