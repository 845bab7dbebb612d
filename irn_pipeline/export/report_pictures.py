"""Arrays -> the small pictures of the report, as data URIs of a bounded size.

Maps that belong over the photograph are kept apart from it: the page lays them over it. So the photograph is stored
once, and a label map costs a few hundred bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.structures import BoolArray, FloatArray, IntArray, LabelArray

GOLDEN_ANGLE = 137.5
"""Degrees; multiples of it are far apart on the colour wheel, however many there are."""
UNSURE = (128, 128, 128)
MIN_THUMBNAIL = 32
_PHOTO_SHARE, _MAP_SHARE = 8, 16
_LEAST_BYTES = 512
"""A drawing of a few shapes needs about this, however small it is."""
_QUALITIES = (80, 60, 40, 20, 5)
_LOSSLESS = 101
"""OpenCV's WebP quality that stands for lossless."""


@dataclass(frozen=True)
class Panel:
    """One small picture.

    Attributes:
        title: what it shows.
        uri: `data:` address of a JPEG or WebP file.
        over: how opaque it is laid over the photograph, in (0, 1]; None where it stands alone.
        smooth: whether a browser may blur it when it is enlarged; label maps keep hard edges.
        choices: name and address of others that may be shown in its place.
    """

    title: str
    uri: str
    over: float | None = None
    smooth: bool = True
    choices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PanelMaker:
    """Makes panels whose longer side has at most `thumbnail` pixels.

    A photograph takes at most thumbnail² / 8 bytes, any other panel thumbnail² / 16 (at 256: 8 and 4 KiB), but not
    less than 512; what does not fit is compressed harder and, at last, made smaller.

    Args:
        thumbnail: longer side in pixels, at least 32.

    Raises:
        ConfigError: `thumbnail` is below 32.
    """

    thumbnail: int = 256

    def __post_init__(self) -> None:
        if self.thumbnail < MIN_THUMBNAIL:
            raise ConfigError(f"thumbnail must be at least {MIN_THUMBNAIL} pixels, got {self.thumbnail}")

    def photo(self, image: LabelArray, title: str = "picture") -> Panel:
        """(H, W, 3) uint8 RGB picture -> JPEG or WebP, whichever is smaller.

        Raises:
            ShapeError: it is no such picture.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ShapeError(f"a picture must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        return Panel(title, self._fitted(self._reduced(image), _PHOTO_SHARE))

    def heat(self, cam: FloatArray, title: str = "CAM", names: Sequence[str] = ()) -> Panel:
        """(K, H, W) maps in [0, 1] -> their largest value at each pixel from blue over green to red.

        With the K `names` of several maps, each map is a choice of its own.
        """
        values = cam.max(axis=0) if len(cam) else np.zeros(cam.shape[1:], np.float32)
        own = zip(names, cam, strict=True) if len(names) > 1 else ()
        choices = tuple((name, self._heat(one)) for name, one in own)
        return Panel(title, self._heat(values), over=0.55, choices=choices)

    def label(self, label: LabelArray, title: str, *, over: bool = True) -> Panel:
        """(H, W) uint8 label -> a colour for each class, unsure pixels grey, background clear."""
        small = self._nearest(label)
        alpha = np.where(small > 0, 255, 0).astype(np.uint8)
        colours = np.dstack([label_colours(small), alpha])
        return Panel(title, self._fitted(colours, _MAP_SHARE), over=0.65 if over else None, smooth=False)

    def masks(self, masks: BoolArray, title: str, ignore: BoolArray | None = None) -> Panel:
        """(R, H, W) masks -> each in a colour of its own with a white outline; (H, W) ignored pixels grey."""
        size = self._size((int(masks.shape[1]), int(masks.shape[2])))
        drawn = np.zeros((*size, 4), np.uint8)
        if ignore is not None:
            drawn[self._nearest(ignore.astype(np.uint8)) > 0] = (*UNSURE, 255)
        small = [self._nearest(mask.astype(np.uint8)) for mask in masks]
        for mask, colour in zip(small, hues(np.arange(len(masks))), strict=True):
            drawn[mask > 0] = (*colour.tolist(), 255)
        for mask in small:
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(drawn, outlines, -1, (255, 255, 255, 255), 1)
        return Panel(title, self._fitted(drawn, _MAP_SHARE), over=0.7, smooth=False)

    def boundary(self, boundary: FloatArray, title: str = "boundary") -> Panel:
        """(h, w) class boundary probability -> grey, white where it is 1."""
        levels = (255 * self._reduced(np.ascontiguousarray(boundary, np.float32)).clip(0, 1)).astype(np.uint8)
        return Panel(title, self._fitted(np.repeat(levels[..., None], 3, axis=2), _MAP_SHARE))

    def displacement(self, displacement: FloatArray, title: str = "displacement") -> Panel:
        """(2, h, w) field, dy then dx -> colour wheel: the hue is the direction, the brightness the length.

        Raises:
            ShapeError: the field is not (2, h, w).
        """
        return Panel(title, self._fitted(self._reduced(wheel(displacement)), _MAP_SHARE))

    def ids(self, instance_map: IntArray, title: str = "instance map") -> Panel:
        """(h, w) whole numbers >= 0 -> a colour for each."""
        return Panel(
            title, self._fitted(hues(self._nearest(instance_map.astype(np.int32))), _MAP_SHARE), smooth=False
        )

    def _heat(self, values: FloatArray) -> str:
        levels = (255 * self._reduced(np.ascontiguousarray(values, np.float32)).clip(0, 1)).astype(np.uint8)
        colours = np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1], np.uint8)
        return self._fitted(colours, _MAP_SHARE)

    def _limit(self, share: int) -> int:
        return max(self.thumbnail**2 // share, _LEAST_BYTES)

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = min(1.0, self.thumbnail / max(size))
        return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)

    def _reduced(self, pixels: LabelArray | FloatArray) -> LabelArray:
        height, width = self._size((pixels.shape[0], pixels.shape[1]))
        if (height, width) == pixels.shape[:2]:
            return np.asarray(pixels)
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))

    def _nearest(self, pixels: LabelArray | npt.NDArray[np.int32]) -> LabelArray:
        height, width = self._size((pixels.shape[0], pixels.shape[1]))
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))

    def _fitted(self, colours: LabelArray, share: int) -> str:
        limit = self._limit(share)
        while True:
            for mime, data in _encodings(colours):
                if len(data) <= limit:
                    return f"data:image/{mime};base64,{base64.b64encode(data).decode('ascii')}"
            half = (max(colours.shape[1] // 2, 1), max(colours.shape[0] // 2, 1))
            colours = np.asarray(cv2.resize(colours, half, interpolation=cv2.INTER_AREA))


def _encodings(colours: LabelArray) -> Iterator[tuple[str, bytes]]:
    """Files of (H, W, 3) RGB or (H, W, 4) RGBA from the best to the smallest; of flat ones, a lossless one first."""
    pixels = np.ascontiguousarray(colours[..., [2, 1, 0, *range(3, colours.shape[2])]])
    if _is_flat(colours):
        yield "webp", _encoded(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS)
    for quality in _QUALITIES:
        webp = _encoded(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, quality)
        jpeg = None
        if pixels.shape[2] == 3:
            jpeg = _encoded(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, quality)
        yield ("jpeg", jpeg) if jpeg is not None and len(jpeg) <= len(webp) else ("webp", webp)


def _is_flat(colours: LabelArray) -> bool:
    """Whether half of the pixels or more equal their right neighbour, as in drawings."""
    if colours.shape[1] < 2 or colours.shape[2] == 4:
        return True
    return bool((colours[:, 1:] == colours[:, :-1]).all(axis=2).mean() >= 0.5)


def _encoded(suffix: str, pixels: LabelArray, flag: int, quality: int) -> bytes:
    ok, data = cv2.imencode(suffix, pixels, [flag, quality])
    if not ok:
        raise ShapeError(f"pixels of shape {pixels.shape} could not be written as {suffix}")
    return bytes(data)


def hues(numbers: IntArray | LabelArray) -> LabelArray:
    """Any array of whole numbers >= 0 -> one RGB colour each, uint8 in a new last axis."""
    flat = numbers.astype(np.int64).reshape(1, -1)
    hsv = np.empty((*flat.shape, 3), np.uint8)
    hsv[..., 0] = (GOLDEN_ANGLE * flat % 360 / 2).astype(np.uint8) % 180
    hsv[..., 1] = np.array([200, 130, 255], np.uint8)[flat % 3]
    hsv[..., 2] = np.array([255, 210, 170], np.uint8)[flat // 3 % 3]
    if not flat.size:
        return np.zeros((*numbers.shape, 3), np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8).reshape(*numbers.shape, 3)


def label_colours(label: LabelArray) -> LabelArray:
    """(H, W) uint8 label -> (H, W, 3) RGB: background black, unsure grey, `hues` of the class id else."""
    table = np.zeros((256, 3), np.uint8)
    table[1:255] = hues(np.arange(254))
    table[255] = UNSURE
    return table[label]


def wheel(displacement: FloatArray) -> LabelArray:
    """(2, h, w) field, dy then dx -> (h, w, 3) RGB: the hue is the direction, the brightness the length.

    Raises:
        ShapeError: the field is not (2, h, w).
    """
    if displacement.ndim != 3 or displacement.shape[0] != 2:
        raise ShapeError(f"a displacement must be (2, h, w), got {displacement.shape}")
    dy, dx = displacement
    length = np.hypot(dy, dx)
    hsv = np.empty((*length.shape, 3), np.uint8)
    hsv[..., 0] = (np.degrees(np.arctan2(dy, dx)) % 360 / 2).astype(np.uint8) % 180
    hsv[..., 1] = 255
    # A few very long arrows must not leave all others black.
    longest = max(float(np.quantile(length, 0.95)), 1e-6)
    hsv[..., 2] = (255 * (length / longest).clip(0, 1)).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def wheel_legend(radius: int = 24) -> str:
    """Data URI of the wheel's key: seen from the middle, the colour of the arrow that points there."""
    arrows = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    alpha = np.where(np.hypot(*arrows) <= radius, 255, 0).astype(np.uint8)
    data = _encoded(
        ".webp",
        np.ascontiguousarray(np.dstack([wheel(arrows)[..., ::-1], alpha])),
        cv2.IMWRITE_WEBP_QUALITY,
        _LOSSLESS,
    )
    return f"data:image/webp;base64,{base64.b64encode(data).decode('ascii')}"
