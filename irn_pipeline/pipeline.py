"""The whole method on one page: from tagged pictures to instance and semantic labels, in memory.

The numbers are those of the stages, which do the same with all parameters, files between the steps, resuming and
several processes (`run_stages`). This page is for reading, and for data sets that fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from irn_pipeline.datasets.pixels import read_pixels
from irn_pipeline.datasets.samples import ClassificationSamples, RelationSamples
from irn_pipeline.datasets.transforms import normalise, resize_image, scaled_size, to_tensor
from irn_pipeline.engine.batches import EpochSampler
from irn_pipeline.nn.backbone import load_backbone_weights
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_losses import irn_losses
from irn_pipeline.nn.irn_network import IrnNetwork, side_as_trained
from irn_pipeline.ops.affinity import pair_paths
from irn_pipeline.ops.cam import merge_scales
from irn_pipeline.ops.crf import confident_label
from irn_pipeline.ops.label_params import SynthesisParams
from irn_pipeline.ops.labels import synthesize
from irn_pipeline.structures import Cam, ImageRecord, ImageSet, Instances, LabelArray


@dataclass(frozen=True)
class Settings:
    """The few values that depend on the pictures; the defaults are the published ones."""

    backbone: str = "resnet50"
    """A torchvision ResNet, or a network of timm."""
    weights: str = "imagenet"
    """imagenet (downloaded), a state dict's path, or none."""
    crop: int = 512
    """Side of the training crops, pixels; a multiple of 4."""
    long_side: tuple[int, int] = (320, 640)
    """Smallest and largest long side of a picture when the classifier is trained, pixels."""
    batch_size: int = 16
    cam_epochs: int = 5
    irn_epochs: int = 3
    lr: float = 0.1
    """Learning rate; the last layers learn ten times as fast."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Relative picture sizes whose activation maps are summed."""
    exp_times: int = 8
    """The random walk takes 2^exp_times steps; fewer for small pictures."""
    seed: int = 0


PUBLISHED = Settings()
RESCALE = (0.5, 1.5)
"""Smallest and largest scale of a picture when IRNet is trained."""


@dataclass(frozen=True)
class Labelled:
    """The labels of one picture.

    Attributes:
        image_id: of the picture.
        label: (H, W) uint8 semantic label, 0 for background, else class_id + 1.
        instances: one mask per object.
    """

    image_id: str
    label: LabelArray
    instances: Instances


def labels_from_tags(images: ImageSet, settings: Settings = PUBLISHED) -> Iterator[Labelled]:
    """Instance and semantic labels of pictures of which only the classes are known.

    Args:
        images: pictures with the class ids of each.
        settings: what depends on the pictures.

    Yields:
        The labels, picture by picture.
    """
    # 1: a classifier of the tags. 2: where it sees each class.
    classifier = train_classifier(images, settings)
    cams = {record.image_id: activation_maps(classifier, record, settings) for record in images.records}
    # 3: the pixels that the maps are sure of.
    confident = {
        record.image_id: confident_pixels(record, cams[record.image_id]) for record in images.records
    }
    # 4: a network of class boundaries and of displacements to the centres of objects learns from pairs of these pixels.
    irn = train_irn(images, confident, settings)
    # 5: the maps of each instance spread by a random walk that boundaries stop.
    for record in images.records:
        yield Labelled(record.image_id, *synthesized_labels(irn, record, cams[record.image_id], settings))


def train_classifier(images: ImageSet, settings: Settings) -> CamNetwork:
    """Stage 1: a network that names the classes of a picture."""
    torch.manual_seed(settings.seed)
    network = CamNetwork(num_classes=images.num_classes, backbone=settings.backbone)
    load_backbone_weights(network.backbone, settings.weights)
    samples = ClassificationSamples(
        images, long_side=settings.long_side, crop=settings.crop, seed=settings.seed
    )

    def loss(pictures: Tensor, classes: Tensor) -> Tensor:
        return F.multilabel_soft_margin_loss(network(pictures), classes)

    train(network, network.param_groups(settings.lr, 10.0), samples, loss, settings.cam_epochs, settings)
    return network


@torch.inference_mode()
def activation_maps(network: CamNetwork, record: ImageRecord, settings: Settings) -> Cam:
    """Stage 2: one map in [0, 1] for each tag of a picture, at a quarter of its size and at full size."""
    image = to_tensor(read_pixels(record))
    size = (image.shape[-2], image.shape[-1])
    scaled = (resize_image(image, scaled_size(size, scale)) for scale in settings.scales)
    class_ids = np.array(record.class_ids, np.int64)
    maps = [network.paired_activation_maps(normalise(one))[torch.from_numpy(class_ids)] for one in scaled]
    cam, high_res = merge_scales(maps, size)
    return Cam(class_ids, cam.numpy(), high_res.numpy())


def confident_pixels(record: ImageRecord, cam: Cam) -> LabelArray:
    """Stage 3: (H, W) label after a dense CRF: 0 background, class_id + 1, 255 where the maps are unsure."""
    return confident_label(read_pixels(record), cam.high_res_cam, cam.class_ids)


def train_irn(images: ImageSet, confident: Mapping[str, LabelArray], settings: Settings) -> IrnNetwork:
    """Stage 4: boundaries lie between pixels of different classes; displacements point to the middle of an object."""
    torch.manual_seed(settings.seed)
    network = IrnNetwork(backbone=settings.backbone)
    load_backbone_weights(network.backbone, settings.weights)
    samples = RelationSamples(
        images.records,
        read_label=confident.__getitem__,
        scales=RESCALE,
        crop=settings.crop,
        seed=settings.seed,
    )
    paths = pair_paths(10)

    def loss(pictures: Tensor, labels: Tensor) -> Tensor:
        logits, displacement = network(pictures)
        return irn_losses(torch.sigmoid(logits), displacement, labels, paths).total

    train(network, network.param_groups(settings.lr, 10.0), samples, loss, settings.irn_epochs, settings)
    # Pairs tell differences of displacements only: the mean over all pictures is taken to be zero.
    with torch.inference_mode():
        means = [network.displacement_field(picture(one)[None]).mean((0, 2, 3)) for one in images.records]
    network.mean_shift.running_mean.copy_(torch.stack(means).mean(0))
    return network


def synthesized_labels(
    network: IrnNetwork, record: ImageRecord, cam: Cam, settings: Settings
) -> tuple[LabelArray, Instances]:
    """Stage 5: the semantic label and the instances of a picture."""
    image = picture(record)
    size = (image.shape[-2], image.shape[-1])
    # Zeros around the picture, as around training crops: group norms see them too.
    side = side_as_trained(size, settings.crop, RESCALE)
    boundary, displacement = network.predict(image, pad_to=side)
    params = SynthesisParams(exp_times=settings.exp_times)
    return synthesize(cam.cam, cam.class_ids, boundary.numpy(), displacement.numpy(), size, params)


def train(
    network: nn.Module,
    param_groups: list[dict[str, Any]],
    samples: ClassificationSamples | RelationSamples,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    epochs: int,
    settings: Settings,
) -> None:
    """Gradient descent with rates that fall as (1 - step / steps)^0.9; leaves the network in evaluation mode."""
    order = EpochSampler(len(samples), settings.batch_size, settings.seed)
    loader = DataLoader(samples, settings.batch_size, sampler=order)
    optimizer = SGD(param_groups, momentum=1e-4, weight_decay=1e-4)
    steps = epochs * len(loader)
    rates = LambdaLR(optimizer, lambda step: (1 - step / steps) ** 0.9)
    network.train()
    for order.epoch in range(epochs):
        for pictures, targets in loader:
            optimizer.zero_grad()
            loss_of(pictures, targets).backward()
            optimizer.step()
            rates.step()
    network.eval()


def picture(record: ImageRecord) -> Tensor:
    """(3, H, W) float32, with the mean and deviation of ImageNet taken out."""
    return normalise(to_tensor(read_pixels(record)))
