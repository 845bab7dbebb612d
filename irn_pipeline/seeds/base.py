"""What a kind of seed is: how a classifier's maps of one picture are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NoParams:
    """A kind of seed without parameters."""


@dataclass(frozen=True)
class Picture:
    """One picture, and the classifier that looks at it.

    Attributes:
        network: in evaluation mode, on its device; its parameters need no gradient. For `cam` alone it may be any that
            has `paired_activation_maps`.
        scaled: the picture at every scale, or at the seed's own size, (3, H_s, W_s) float32, normalised, on the
            network's device.
        scales: size of each relative to the picture's own.
        class_ids: the K classes that the picture is tagged with.
        size: (H, W) of the picture in pixels.
    """

    network: Any
    scaled: tuple[Tensor, ...]
    scales: tuple[float, ...]
    class_ids: list[int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Seed:
    """A kind of seed.

    Attributes:
        maps: picture, parameters, and what `prepare` has found -> one (K, h_s, w_s) float32 tensor of values >= 0 per
            scale. Of any grid: they are resized and summed. It runs with gradients off, and may switch them on.
        params: a frozen dataclass of its parameters; the string below a field is its help.
        prepare: all pictures of the list, in one pass or more, number of classes, and parameters -> what `maps` needs
            to know of them.
        restore: tensors by name -> what `prepare` has found, whose `state()` they are. What was found is then kept as
            a file for an interrupted stage to go on with. It counts as a fit: pictures without a tag are shown too, all
            in random order, and maps made from another list or with another seed are refused.
        size: parameters, (H, W) of a picture -> the one size that it is seen at, instead of `scales`. Both sides are
            multiples of 16: the maps end where the picture does.
        maps_of_many: `maps` of several pictures of one size together; None where each is looked at alone.
    """

    maps: Callable[[Picture, Any, Any], list[Tensor]]
    params: type[Any] = NoParams
    prepare: Callable[[Iterable[Picture], int, Any], Any] | None = None
    restore: Callable[[Mapping[str, Tensor]], Any] | None = None
    size: Callable[[Any, tuple[int, int]], tuple[int, int]] | None = None
    maps_of_many: Callable[[Sequence[Picture], Any, Any], list[list[Tensor]]] | None = None
