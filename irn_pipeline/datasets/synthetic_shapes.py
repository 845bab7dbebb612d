"""The five kinds of object of the demo set, drawn anti-aliased.

Each has one telling part (a bird's head, a car's wheels, a fish's stripes, a flower's heart, a mushroom's
spotted cap) and a larger body whose colours other classes share, so that class activation maps find the part
and the borders must be found by colour and texture: the situation that the pipeline is made for.
"""

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

_COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": (186, 48, 42),
        "orange": (214, 122, 44),
        "yellow": (216, 184, 66),
        "green": (84, 132, 66),
        "teal": (56, 132, 132),
        "blue": (58, 92, 168),
        "violet": (130, 78, 158),
        "pink": (216, 126, 164),
        "white": (222, 217, 208),
        "grey": (134, 134, 138),
        "brown": (128, 88, 58),
        "dark": (42, 40, 46),
    }
)


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


class _Canvas:
    """Drawing surface in units of half the object's diameter: x to the right, y down, both in -1..1."""

    def __init__(self, rng: np.random.Generator, diameter: int, max_turn: float) -> None:
        self._side = diameter * _SUPERSAMPLING
        angle = np.deg2rad(rng.uniform(-max_turn, max_turn))
        mirror = rng.choice([-1.0, 1.0])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._to_pixels = turn * [mirror, 1.0] * (self._side / 2)
        self._colour = np.zeros((self._side, self._side, 3), np.uint8)
        self._cover = np.zeros((self._side, self._side), np.uint8)

    def paint(self, points: Points, colour: Colour, within: LabelArray | None = None) -> LabelArray:
        """Fill a polygon, clipped to the shape `within` where given; returns the shape that was filled."""
        pixels = points @ self._to_pixels.T + self._side / 2
        corners = [np.round(pixels * 2**_SUBPIXEL_BITS).astype(np.int32)]
        shape = np.zeros_like(self._cover)
        cv2.fillPoly(shape, corners, 255, shift=_SUBPIXEL_BITS)
        if within is not None:
            shape &= within
        self._cover |= shape
        left, top, width, height = cv2.boundingRect(shape)
        box = (slice(top, top + height), slice(left, left + width))
        self._colour[box][shape[box] > 0] = np.clip(colour, 0, 255)
        return shape

    def finish(self, rng: np.random.Generator) -> Sprite:
        """Shrink to the final size, then add roundness, light from one side and a rough surface."""
        diameter = self._side // _SUPERSAMPLING
        size = (diameter, diameter)
        alpha = cv2.resize(self._cover, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        colour = cv2.resize(self._colour, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        axis = np.linspace(-1, 1, diameter, dtype=np.float32)
        light = rng.uniform(0, 2 * np.pi)
        shade = 1 + 0.18 * (np.cos(light) * axis[None] + np.sin(light) * axis[:, None])
        shade *= rng.uniform(0.54, 0.66) + 0.40 * cv2.GaussianBlur(alpha, (0, 0), diameter / 14)
        for cells, strength in ((diameter // 8 + 2, 0.07), (diameter // 3 + 2, 0.06)):
            grain = rng.standard_normal((cells, cells)).astype(np.float32)
            shade *= 1 + strength * cv2.resize(grain, size, interpolation=cv2.INTER_CUBIC)
        faded = rng.uniform(0, 0.35)
        colour = (1 - faded) * colour + faded * colour.mean(2, keepdims=True)
        lit = np.clip(colour * shade[..., None], 0, 255 * alpha[..., None])
        return Sprite(np.asarray(lit, np.float32), np.asarray(alpha, np.float32))


def draw_bird(rng: np.random.Generator, diameter: int) -> Sprite:
    """A plump body with tail, wing and legs; its head has a bright beak."""
    canvas = _Canvas(rng, diameter, 30)
    plumage = _pick(rng, ("brown", "grey", "blue", "red", "white"))
    leg = _pick(rng, ("orange", "brown"))
    for x in (-0.05, 0.14):
        canvas.paint(_bar((x, 0.3), (x + 0.04, 0.92), 0.035), leg)
        canvas.paint(_bar((x + 0.04, 0.90), (x - 0.12, 0.93), 0.03), leg)
    canvas.paint(np.array([(0.3, -0.1), (0.98, 0.12), (0.94, 0.34), (0.3, 0.3)]), _tone(plumage, 0.7))
    body = canvas.paint(_oval((0.02, 0.12), (0.56, rng.uniform(0.36, 0.44)), 0.25), plumage)
    canvas.paint(_oval((-0.22, 0.34), (0.42, 0.26), 0.3), _tone(plumage, 1.35), body)
    canvas.paint(_oval((0.2, 0.06), (0.40, 0.2), 0.35), _tone(plumage, 0.62), body)
    for shift in (0.0, 0.1):
        canvas.paint(_bar((0.05, 0.1 + shift), (0.52, 0.22 + shift), 0.02), _tone(plumage, 0.45), body)
    head = _tone(_pick(rng, ("yellow",)), 1.1)
    beak = _pick(rng, ("orange",))
    canvas.paint(np.array([(-0.62, -0.52), (-0.99, -0.34), (-0.62, -0.26)]), beak)
    canvas.paint(_oval((-0.44, -0.38), (0.32, 0.31)), head)
    _eye(canvas, (-0.52, -0.44), 0.085)
    return canvas.finish(rng)


def draw_car(rng: np.random.Generator, diameter: int) -> Sprite:
    """A painted body with a cabin and windows, on dark wheels with bright hubs."""
    canvas = _Canvas(rng, diameter, 20)
    paint = _pick(rng, ("red", "blue", "white", "green", "yellow", "grey"))
    roof = rng.uniform(-0.55, -0.45)
    cabin = np.array([(-0.52, -0.06), (-0.3, roof), (0.38, roof), (0.66, -0.06)])
    canvas.paint(cabin, _tone(paint, 0.95))
    glass = _tone((96, 118, 134), rng.uniform(0.7, 1.3))
    canvas.paint(np.array([(-0.40, -0.08), (-0.25, roof + 0.08), (0.0, roof + 0.08), (0.0, -0.08)]), glass)
    canvas.paint(np.array([(0.08, -0.08), (0.08, roof + 0.08), (0.34, roof + 0.08), (0.52, -0.08)]), glass)
    hood = rng.uniform(-0.04, 0.06)
    sides = [
        (-0.96, 0.10),
        (-0.90, hood),
        (-0.5, -0.1),
        (0.66, -0.1),
        (0.95, 0.0),
        (0.97, 0.36),
        (-0.97, 0.36),
    ]
    body = canvas.paint(np.array(sides), paint)
    canvas.paint(_bar((-1, 0.33), (1, 0.33), 0.06), _tone(paint, 0.55), body)
    canvas.paint(_oval((-0.90, 0.12), (0.09, 0.06)), (240, 228, 170), body)
    for x in (-0.52, 0.54):
        canvas.paint(_oval((x, 0.36), (0.27, 0.27)), _pick(rng, ("dark",)))
        canvas.paint(_oval((x, 0.36), (0.13, 0.13)), (196, 196, 200))
        canvas.paint(_oval((x, 0.36), (0.05, 0.05)), (60, 60, 64))
    return canvas.finish(rng)


def draw_fish(rng: np.random.Generator, diameter: int) -> Sprite:
    """An oval body with tail and fins; the front half carries stripes and an eye."""
    canvas = _Canvas(rng, diameter, 40)
    scales = _pick(rng, ("blue", "teal", "orange", "grey"))
    fin = _tone(scales, rng.uniform(0.6, 0.8))
    height = rng.uniform(0.36, 0.48)
    tail = [(0.4, -0.06), (0.98, -0.40), (0.84, 0.0), (0.98, 0.40), (0.4, 0.06)]
    canvas.paint(np.array(tail), fin)
    canvas.paint(np.array([(-0.4, -0.25), (0.0, -height - 0.25), (0.35, -height - 0.1), (0.3, -0.1)]), fin)
    canvas.paint(np.array([(-0.1, 0.2), (0.18, height + 0.2), (0.3, 0.1)]), fin)
    body = canvas.paint(_oval((-0.18, 0.0), (0.76, height)), scales)
    canvas.paint(_oval((-0.18, height), (0.7, height * 0.7)), _tone(scales, 1.3), body)
    dark, pale = _tone(_COLOURS["dark"], 1.0), _tone(_COLOURS["white"], 1.05)
    for x in np.linspace(-0.48, 0.06, 3):
        canvas.paint(_bar((x, -0.6), (x - 0.06, 0.6), 0.09), dark, body)
        canvas.paint(_bar((x, -0.6), (x - 0.06, 0.6), 0.05), pale, body)
    _eye(canvas, (-0.72, -0.08), 0.09)
    return canvas.finish(rng)


def draw_flower(rng: np.random.Generator, diameter: int) -> Sprite:
    """A ring of petals around a speckled heart."""
    canvas = _Canvas(rng, diameter, 180)
    petal = _pick(rng, ("pink", "violet", "white", "yellow"))
    count = int(rng.integers(5, 10))
    width = rng.uniform(1.05, 1.25) * np.pi * 0.55 / count
    for index in rng.permutation(count):
        angle = 2 * np.pi * index / count
        centre = (0.56 * np.cos(angle), 0.56 * np.sin(angle))
        shape = canvas.paint(_oval(centre, (0.42, width), angle), _tone(petal, rng.uniform(0.85, 1.1)))
        tip = (0.9 * np.cos(angle), 0.9 * np.sin(angle))
        canvas.paint(_bar((0.0, 0.0), tip, 0.025), _tone(petal, 0.72), shape)
    radius = rng.uniform(0.34, 0.42)
    heart = canvas.paint(_oval((0.0, 0.0), (radius, radius)), _tone((206, 156, 38), rng.uniform(0.9, 1.1)))
    for angle, distance in zip(rng.uniform(0, 2 * np.pi, 22), np.sqrt(rng.uniform(0, 1, 22)), strict=True):
        spot = (radius * distance * np.cos(angle), radius * distance * np.sin(angle))
        canvas.paint(_oval(spot, (0.045, 0.045)), (92, 52, 24), heart)
    return canvas.finish(rng)


def draw_mushroom(rng: np.random.Generator, diameter: int) -> Sprite:
    """A pale stem under a cap with pale spots."""
    canvas = _Canvas(rng, diameter, 35)
    cap_colour = _pick(rng, ("red", "brown", "orange"))
    thin = rng.uniform(0.15, 0.24)
    stem_points = [(-thin, -0.1), (thin, -0.1), (thin * 1.5, 0.85), (0.0, 0.95), (-thin * 1.5, 0.85)]
    stem = canvas.paint(np.array(stem_points), _tone((208, 196, 170), rng.uniform(0.85, 1.1)))
    for x in (-0.4, 0.1, 0.5):
        canvas.paint(_bar((x * thin, 0.0), (x * thin * 1.4, 0.9), 0.02), (164, 148, 122), stem)
    canvas.paint(_oval((0.0, -0.06), (0.78, 0.17)), _tone((176, 156, 128), 0.9))
    top = rng.uniform(0.70, 0.92)
    turns = np.linspace(np.pi, 2 * np.pi, 24)
    dome = np.stack([0.9 * np.cos(turns), top * np.sin(turns)], 1)
    brim = np.array([(0.6, 0.08), (0.0, -0.03), (-0.6, 0.08)])
    cap = canvas.paint(np.concatenate([dome, brim]), cap_colour)
    for _ in range(int(rng.integers(7, 12))):
        centre = (float(rng.uniform(-0.75, 0.75)), float(-top * rng.uniform(0.05, 0.9)))
        radius = float(rng.uniform(0.06, 0.13))
        canvas.paint(_oval(centre, (radius, radius * 0.8)), (232, 226, 210), cap)
    return canvas.finish(rng)


Painter: TypeAlias = Callable[[np.random.Generator, int], Sprite]

PAINTERS: Mapping[str, Painter] = MappingProxyType(
    {
        "bird": draw_bird,
        "car": draw_car,
        "fish": draw_fish,
        "flower": draw_flower,
        "mushroom": draw_mushroom,
    }
)
"""Drawing function of every class, in the order of the class ids."""


def _pick(rng: np.random.Generator, names: Sequence[str]) -> Colour:
    """One of the named colours, a little off in hue and brightness."""
    base = np.array(_COLOURS[names[int(rng.integers(len(names)))]])
    red, green, blue = base * rng.uniform(0.8, 1.12) + rng.normal(0, 9, 3)
    return float(red), float(green), float(blue)


def _tone(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _oval(centre: tuple[float, float], radii: tuple[float, float], tilt: float = 0.0) -> Points:
    turns = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    x, y = radii[0] * np.cos(turns), radii[1] * np.sin(turns)
    turned = [x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)]
    return np.stack(turned, 1) + np.asarray(centre)


def _bar(start: tuple[float, float], end: tuple[float, float], half_width: float) -> Points:
    ends = np.array([start, end], np.float64)
    along = ends[1] - ends[0]
    side = half_width * np.array([-along[1], along[0]]) / np.hypot(along[0], along[1])
    return np.stack([ends[0] + side, ends[1] + side, ends[1] - side, ends[0] - side])


def _eye(canvas: _Canvas, centre: tuple[float, float], radius: float) -> None:
    canvas.paint(_oval(centre, (radius, radius)), (236, 234, 226))
    canvas.paint(_oval(centre, (radius * 0.55, radius * 0.55)), (16, 14, 18))
