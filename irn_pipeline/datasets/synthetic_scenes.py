"""Grounds of the demo set, shadows, and the camera."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from irn_pipeline.structures import FloatArray, LabelArray


def make_ground(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    """A ground of one of six materials: (H, W, 3) float32 RGB, about 0..255, without objects of any class."""
    materials = (_grass, _wood, _sand, _cloth, _pebbles, _slate)
    return materials[int(rng.integers(len(materials)))](rng, size)


def cast_shadow(scene: FloatArray, cover: FloatArray, strength: float) -> FloatArray:
    """Darken an (H, W, 3) scene by the part `strength` under a soft (H, W) cover, moved to where the shadow falls."""
    return np.asarray(scene * (1 - strength * cv2.GaussianBlur(cover, (0, 0), 2.5))[..., None], np.float32)


def photograph(rng: np.random.Generator, scene: FloatArray, light: float) -> LabelArray:
    """Light an (H, W, 3) float32 scene from one side and take its picture, (H, W, 3) uint8, a little soft and noisy."""
    down, across = np.mgrid[-1 : 1 : scene.shape[0] * 1j, -1 : 1 : scene.shape[1] * 1j]
    lit = 1 + rng.uniform(0.04, 0.16) * (np.cos(light) * across + np.sin(light) * down)
    lit *= rng.uniform(0.88, 1.1) * (1 - 0.09 * (across**2 + down**2))
    warmth = rng.uniform(-0.05, 0.05)
    seen = scene * (lit[..., None] * np.array([1 + warmth, 1.0, 1 - warmth])).astype(np.float32)
    seen = cv2.GaussianBlur(seen, (0, 0), rng.uniform(0.4, 0.6))
    seen += np.float32(rng.uniform(1.5, 4)) * rng.standard_normal(seen.shape, np.float32)
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)


def _grass(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    ground = _mixed(_noise(rng, size, 0.8, coarsest=40), (52, 70, 30), (88, 110, 48))
    lean = rng.uniform(0, np.pi)
    for y, x, turn, tone in rng.uniform(0, 1, (size[0] * size[1] // 45, 4)):
        angle, length = lean + 1.6 * (turn - 0.5), 5 + 9 * tone
        start = np.array([x * size[1], y * size[0]])
        end = start + length * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(int(v) for v in np.rint(point * 16)) for point in (start, end)]
        colour = (70 + 74 * tone, 96 + 70 * tone, 36 + 38 * tone)
        cv2.line(ground, ends[0], ends[1], colour, 1, cv2.LINE_AA, 4)
    return ground


def _wood(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    dark = np.array([(112, 78, 50), (126, 104, 84), (96, 60, 40)][int(rng.integers(3))])
    grain = _noise(rng, size, 0.9, coarsest=24, stretch=12.0)
    width = int(rng.integers(34, 56))
    planks = (np.arange(size[1]) + int(rng.integers(width))) // width
    tones = rng.normal(0, 0.7, planks[-1] + 1)[planks]
    ground = _mixed(0.6 * grain + tones, dark, dark * 1.45)
    ground[:, 1:][:, np.diff(planks) > 0] *= 0.45
    return ground


def _sand(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    down, across = np.mgrid[: size[0], : size[1]]
    angle, length = rng.uniform(0, np.pi), rng.uniform(2.5, 4.5)
    bend = 1.6 * _noise(rng, size, 0.4, coarsest=70)
    ripples = np.sin((np.cos(angle) * across + np.sin(angle) * down) / length + bend)
    return _mixed(0.5 * ripples + 0.7 * _noise(rng, size, 1.2, coarsest=12), (176, 150, 112), (216, 194, 156))


def _cloth(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    down, across = np.mgrid[: size[0], : size[1]]
    width = int(rng.integers(14, 26))
    checks = ((down // width) % 2 + (across // width) % 2) / 2
    weave = 0.06 * (((down + across) % 3) - 1) + 0.05 * _noise(rng, size, 0.8, coarsest=30)
    tint = np.array([(112, 140, 178), (150, 160, 150), (170, 150, 168)][int(rng.integers(3))])
    return _mixed(4 * (0.85 * checks + weave) - 1.8, tint * 0.86, (214, 212, 206))


def _pebbles(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    ground = _mixed(_noise(rng, size, 0.9, coarsest=16), (58, 54, 50), (86, 80, 74))
    for y, x, turn, tone in rng.uniform(0, 1, (size[0] * size[1] // 90, 4)):
        place = (int(16 * x * size[1]), int(16 * y * size[0]))
        radii = rng.uniform(5, 10) * np.array([1, rng.uniform(0.6, 0.9)])
        stone = np.array((96, 92, 88)) + 66 * tone + 7 * rng.normal(0, 1, 3)
        for shrink, shade in ((1.0, 0.6), (0.85, 1.0), (0.45, 1.1)):
            axes = tuple(int(16 * shrink * radius) for radius in radii)
            cv2.ellipse(ground, place, axes, 180 * turn, 0, 360, tuple(stone * shade), -1, cv2.LINE_AA, 4)
    return ground


def _slate(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    tint = np.array([(92, 100, 108), (128, 124, 118), (72, 92, 92)][int(rng.integers(3))])
    return _mixed(_noise(rng, size, 0.9, coarsest=50, stretch=rng.uniform(0.3, 3)), tint * 0.8, tint * 1.25)


def _noise(
    rng: np.random.Generator,
    size: tuple[int, int],
    roughness: float,
    *,
    coarsest: float,
    stretch: float = 1.0,
) -> FloatArray:
    """(H, W) float32 sum of octaves of smooth noise, mean 0 and deviation 1; cells start `coarsest` pixels wide."""
    total = np.zeros(size, np.float32)
    cell, weight = coarsest, 1.0
    while cell >= 1.6:
        rows, columns = max(2, round(size[0] / (cell * stretch)) + 1), max(2, round(size[1] / cell) + 1)
        grid = rng.standard_normal((rows, columns)).astype(np.float32)
        total += weight * cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        cell, weight = cell / 2, weight * roughness
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), np.float32)


def _mixed(noise: FloatArray, dark: npt.ArrayLike, light: npt.ArrayLike) -> FloatArray:
    """(H, W, 3) float32: `dark` where the noise is -2 or less, `light` where it is 2 or more."""
    share = np.clip(0.5 + 0.25 * noise, 0, 1)[..., None]
    return np.asarray(np.asarray(dark) * (1 - share) + np.asarray(light) * share, np.float32)
