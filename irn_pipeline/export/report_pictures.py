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
from irn_pipeline.export.overlay import (
    heat,
    hues,
    instance_layer,
    label_colours,
    require_picture,
    wheel,
    wheel_key,
)
from irn_pipeline.structures import BoolArray, FloatArray, Instances, IntArray, LabelArray

MIN_THUMBNAIL = 32
_PHOTO_SHARE, _MAP_SHARE = 8, 16
_LEAST_BYTES = 512
"""A drawing of a few shapes needs about this, however small it is."""
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

    def photo(self, image: LabelArray, title: str = "photograph") -> Panel:
        """(H, W, 3) uint8 RGB picture -> JPEG or WebP, whichever is smaller.

        Raises:
            ShapeError: it is no such picture.
        """
        require_picture(image)
        return Panel(title, self._uri(self._reduced(image), _PHOTO_SHARE))

    def heat(self, cam: FloatArray, title: str = "CAM", names: Sequence[str] = ()) -> Panel:
        """(K, H, W) maps in [0, 1] -> their largest value at each pixel from blue over green to red.

        With the K `names` of several maps, each map is a choice of its own.
        """
        values = cam.max(axis=0) if len(cam) else np.zeros(cam.shape[1:], np.float32)
        whole, *own = (
            self._uri(heat(self._reduced(np.ascontiguousarray(one, np.float32))))
            for one in (values, *(cam if len(names) > 1 else ()))
        )
        return Panel(title, whole, over=0.55, choices=tuple(zip(names, own, strict=False)))

    def label(self, label: LabelArray, title: str, *, over: bool = True) -> Panel:
        """(H, W) uint8 label -> a colour for each class, unsure pixels grey, background clear."""
        small = self._nearest(label)
        colours = np.dstack([label_colours(small), np.where(small > 0, 255, 0).astype(np.uint8)])
        return Panel(title, self._uri(colours), over=0.65 if over else None, smooth=False)

    def masks(self, instances: Instances, title: str, ignore: BoolArray | None = None) -> Panel:
        """Masks -> each in a colour of its own with a white outline; (H, W) ignored pixels grey."""
        height, width = self._size(instances.size)
        masks = np.zeros((len(instances), height, width), np.bool_)
        for small, mask in zip(masks, instances.masks, strict=True):
            small[:] = self._nearest(mask.astype(np.uint8)) > 0
        grey = None if ignore is None else self._nearest(ignore.astype(np.uint8)) > 0
        layer = instance_layer(Instances(instances.scores, masks, instances.class_ids), ignore=grey)
        return Panel(title, self._uri(layer), over=0.7, smooth=False)

    def boundary(self, boundary: FloatArray, title: str = "boundary") -> Panel:
        """(h, w) class boundary probability -> grey, white where it is 1."""
        levels = (255 * self._reduced(np.ascontiguousarray(boundary, np.float32)).clip(0, 1)).astype(np.uint8)
        return Panel(title, self._uri(np.repeat(levels[..., None], 3, axis=2)))

    def displacement(self, displacement: FloatArray, title: str = "displacement") -> Panel:
        """(2, h, w) field, dy then dx -> colour wheel: the hue is the direction, the brightness the length.

        Raises:
            ShapeError: the field is not (2, h, w).
        """
        return Panel(title, self._uri(self._reduced(wheel(displacement))))

    def ids(self, instance_map: IntArray, title: str = "instance map") -> Panel:
        """(h, w) whole numbers >= 0 -> a colour for each."""
        return Panel(title, self._uri(hues(self._nearest(instance_map.astype(np.int32)))), smooth=False)

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = min(1.0, self.thumbnail / max(*size, 1))
        return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)

    def _reduced(self, pixels: LabelArray | FloatArray) -> LabelArray:
        return self._resized(pixels, cv2.INTER_AREA)

    def _nearest(self, pixels: LabelArray | npt.NDArray[np.int32]) -> LabelArray:
        return self._resized(pixels, cv2.INTER_NEAREST_EXACT)

    def _resized(self, pixels: LabelArray | FloatArray | npt.NDArray[np.int32], mode: int) -> LabelArray:
        height, width = self._size((pixels.shape[0], pixels.shape[1]))
        if (height, width) == pixels.shape[:2]:
            return np.asarray(pixels)
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=mode))

    def _uri(self, colours: LabelArray, share: int = _MAP_SHARE) -> str:
        limit = max(self.thumbnail**2 // share, _LEAST_BYTES)
        while True:
            for mime, data in _encodings(colours):
                if len(data) <= limit:
                    return _data_uri(mime, data)
            half = (max(colours.shape[1] // 2, 1), max(colours.shape[0] // 2, 1))
            colours = np.asarray(cv2.resize(colours, half, interpolation=cv2.INTER_AREA))


def wheel_legend() -> str:
    """Data URI of the key to the displacement's colours."""
    return _data_uri("webp", _encoded(".webp", _bgr(wheel_key()), cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS))


def _encodings(colours: LabelArray) -> Iterator[tuple[str, bytes]]:
    """Files of (H, W, 3) RGB or (H, W, 4) RGBA from the best to the smallest; of flat ones, a lossless one first."""
    pixels = _bgr(colours)
    if _is_flat(colours):
        yield "webp", _encoded(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS)
    for quality in (80, 60, 40, 20, 5):
        files = [("webp", _encoded(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, quality))]
        if pixels.shape[2] == 3:
            files.insert(0, ("jpeg", _encoded(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, quality)))
        yield min(files, key=lambda file: len(file[1]))


def _is_flat(colours: LabelArray) -> bool:
    """Whether half of the pixels or more equal their right neighbour, as in drawings."""
    if colours.shape[1] < 2 or colours.shape[2] == 4:
        return True
    return bool((colours[:, 1:] == colours[:, :-1]).all(axis=2).mean() >= 0.5)


def _bgr(colours: LabelArray) -> LabelArray:
    return np.ascontiguousarray(colours[..., [2, 1, 0, *range(3, colours.shape[2])]])


def _encoded(suffix: str, pixels: LabelArray, flag: int, quality: int) -> bytes:
    ok, data = cv2.imencode(suffix, pixels, [flag, quality])
    if not ok:
        raise ShapeError(f"pixels of shape {pixels.shape} could not be written as {suffix}")
    return bytes(data)


def _data_uri(mime: str, data: bytes) -> str:
    return f"data:image/{mime};base64,{base64.b64encode(data).decode('ascii')}"
