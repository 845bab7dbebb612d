"""Backgrounds of the demo set: materials of multi-scale noise, a horizon, clutter, light and a camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from irn_pipeline.structures import FloatArray, LabelArray

_FINEST_CELL = 1.6
"""Pixels per noise cell of the finest octave."""


@dataclass(frozen=True)
class _Material:
    """A surface: two colours mixed by noise.

    Attributes:
        dark: RGB in 0..255.
        light: RGB in 0..255.
        roughness: weight of each octave of noise relative to the next coarser one.
        stretch: height of a noise cell relative to its width.
    """

    dark: tuple[float, float, float]
    light: tuple[float, float, float]
    roughness: float
    stretch: float = 1.0


_GRASS = _Material((46, 68, 28), (136, 150, 76), 0.95, 2.2)
_GROUNDS = (
    _GRASS,
    _GRASS,
    _Material((74, 54, 38), (142, 112, 82), 0.85),
    _Material((168, 144, 108), (214, 194, 158), 0.7),
    _Material((84, 82, 80), (158, 154, 148), 1.0),
    _Material((38, 66, 78), (104, 138, 146), 0.75, 0.3),
    _Material((58, 46, 34), (150, 114, 70), 0.9),
    _Material((104, 98, 92), (148, 142, 134), 0.6),
)
_BACKDROPS = (
    _Material((124, 154, 190), (214, 222, 230), 0.45, 0.6),
    _Material((24, 42, 22), (96, 118, 60), 0.85),
    _Material((132, 104, 88), (176, 152, 132), 0.7, 0.6),
    _Material((160, 166, 172), (200, 204, 208), 0.4),
)
_CLUTTER_COLOURS = (
    (92, 66, 44),
    (66, 84, 40),
    (128, 120, 110),
    (150, 112, 54),
    (48, 46, 44),
    (176, 168, 154),
)


def make_scene(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    """A scene without objects of any class.

    Args:
        rng: source of every choice.
        size: (H, W) in pixels.

    Returns:
        (H, W, 3) float32 RGB, about 0..255.
    """
    ground = _texture(rng, size, _pick(rng, _GROUNDS))
    kind = rng.random()
    if kind < 0.5:
        ground = _mix(ground, _texture(rng, size, _pick(rng, _BACKDROPS)), _above_horizon(rng, size))
    elif kind < 0.8:
        patch = _noise(rng, size, 0.5, coarsest=size[1] / 1.5)
        cover = np.clip((patch - rng.uniform(0.2, 0.9)) * rng.uniform(4, 16), 0, 1)
        ground = _mix(ground, _texture(rng, size, _pick(rng, _GROUNDS)), cover)
    grain = np.asarray(1 + 0.12 * _noise(rng, size, 0.9, coarsest=8), np.float32)
    for _ in range(int(rng.integers(2, 11))):
        _add_clutter(rng, ground, grain)
    return ground


def cast_shadow(scene: FloatArray, cover: FloatArray, strength: float) -> FloatArray:
    """Darken a scene under an object.

    Args:
        scene: (H, W, 3) float32 RGB.
        cover: (H, W) float32 object cover in [0, 1], already moved to where the shadow falls.
        strength: part of the light that is lost, in [0, 1].

    Returns:
        (H, W, 3) float32 RGB.
    """
    return np.asarray(scene * (1 - strength * cv2.GaussianBlur(cover, (0, 0), 2.5))[..., None], np.float32)


def photograph(rng: np.random.Generator, scene: FloatArray) -> LabelArray:
    """Light the scene unevenly and take its picture with a small, slightly soft and noisy camera.

    Args:
        rng: source of every choice.
        scene: (H, W, 3) float32 RGB.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    size = (scene.shape[0], scene.shape[1])
    across = np.linspace(-1, 1, size[1], dtype=np.float32)[None]
    down = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.28) * (np.cos(angle) * across + np.sin(angle) * down)
    light = light * rng.uniform(0.82, 1.15)
    if rng.random() < 0.4:
        shade = _noise(rng, size, 0.4, coarsest=size[1] / 2)
        light = light * (1 - rng.uniform(0.15, 0.4) * np.clip((shade - 0.3) * 3, 0, 1))
    warmth = rng.uniform(-0.06, 0.06)
    balance = np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    lit = np.asarray(scene * light.astype(np.float32)[..., None] * balance, np.float32)
    seen = np.asarray(cv2.GaussianBlur(lit, (0, 0), rng.uniform(0.4, 0.75)), np.float32)
    seen += np.float32(rng.uniform(2, 6)) * rng.standard_normal(seen.shape, np.float32)
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)


def _pick(rng: np.random.Generator, materials: tuple[_Material, ...]) -> _Material:
    return materials[int(rng.integers(len(materials)))]


def _noise(
    rng: np.random.Generator,
    size: tuple[int, int],
    roughness: float,
    *,
    coarsest: float,
    stretch: float = 1.0,
) -> FloatArray:
    """(H, W) float32 sum of octaves of smooth noise, mean 0 and standard deviation 1."""
    total = np.zeros(size, np.float32)
    cell, weight = coarsest, 1.0
    while cell >= _FINEST_CELL:
        rows = max(2, round(size[0] / (cell * stretch)) + 1)
        columns = max(2, round(size[1] / cell) + 1)
        grid = rng.standard_normal((rows, columns)).astype(np.float32)
        total += weight * cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        cell, weight = cell / 2, weight * roughness
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), np.float32)


def _texture(rng: np.random.Generator, size: tuple[int, int], material: _Material) -> FloatArray:
    mix = np.clip(
        0.5 + 0.24 * _noise(rng, size, material.roughness, coarsest=48, stretch=material.stretch), 0, 1
    )
    tint = 3.5 * _noise(rng, size, 0.6, coarsest=64)[..., None] * rng.normal(0, 1, 3).astype(np.float32)
    dark, light = np.array(material.dark, np.float32), np.array(material.light, np.float32)
    shift = rng.normal(0, 7, 3).astype(np.float32)
    return np.asarray(dark + (light - dark) * mix[..., None] + tint + shift, np.float32)


def _mix(below: FloatArray, above: FloatArray, cover: FloatArray) -> FloatArray:
    return np.asarray(below + (above - below) * cover[..., None], np.float32)


def _above_horizon(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    """(H, W) float32 in [0, 1]: 1 above a wavy, tilted horizon."""
    wave = _noise(rng, (2, size[1]), 0.5, coarsest=size[1] / 2)[0] * rng.uniform(0.5, 5)
    tilt = np.linspace(-1, 1, size[1]) * rng.uniform(-8, 8)
    horizon = size[0] * rng.uniform(0.15, 0.5) + wave + tilt
    return np.asarray(np.clip((horizon - np.arange(size[0])[:, None]) / rng.uniform(1, 4), 0, 1), np.float32)


def _add_clutter(rng: np.random.Generator, scene: FloatArray, grain: FloatArray) -> None:
    """Lay one stick, leaf, stone or blot with its shadow on the scene, in place; `grain` is (H, W)."""
    centre = np.array([rng.uniform(0, scene.shape[1]), rng.uniform(0, scene.shape[0])])
    kind, length, angle = rng.integers(4), rng.uniform(6, 22), rng.uniform(0, 2 * np.pi)
    turns = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    if kind == 0:
        length = length * 1.8
        slim = rng.uniform(0.8, 1.8) / length
        outline = np.stack([np.cos(turns), slim * np.sign(np.sin(turns))], 1)
    elif kind == 1:
        outline = np.stack([np.cos(turns), 0.42 * np.sin(turns) * np.abs(np.sin(turns))], 1)
    else:
        outline = np.stack([np.cos(turns), 0.75 * np.sin(turns)], 1) * rng.uniform(0.75, 1.05, (14, 1))
    along = np.array([np.cos(angle), np.sin(angle)])
    # Only the part of the scene that the thing and its blurred shadow can reach is worked on.
    first = np.maximum(np.floor(centre - length / 2 - 10), 0).astype(int)
    last = np.ceil(centre + length / 2 + 10).astype(int)
    box = (slice(first[1], last[1]), slice(first[0], last[0]))
    near = scene[box]
    points = centre - first + length / 2 * (outline @ np.stack([along, [-along[1], along[0]]]))
    shape = np.zeros(near.shape[:2], np.uint8)
    cv2.fillPoly(shape, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    cover = np.asarray(shape, np.float32) / np.float32(255)
    if kind == 3:
        scene[box] = cast_shadow(near, cover, rng.uniform(0.15, 0.4))
        return
    near = cast_shadow(near, np.roll(cover, (2, 1), (0, 1)), 0.4)
    base = np.array(_CLUTTER_COLOURS[int(rng.integers(len(_CLUTTER_COLOURS)))], np.float32)
    light = 1 - 0.3 * (np.arange(len(shape))[:, None] - (centre - first)[1]) / length
    surface = base * np.clip(light * grain[box], 0.5, 1.5)[..., None]
    scene[box] = _mix(near, surface.astype(np.float32), cover)
