"""One training step of IRNet: labels of pairs made on the device against index tables and labels from the loader."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.case import Arrays, Benchmark, Case, Disagreement, Method, Prepared
from irn_pipeline.datasets.synthetic import make_picture
from irn_pipeline.datasets.transforms import normalise, stride4_label, to_tensor
from irn_pipeline.nn.backbone import Backbone
from irn_pipeline.nn.irn_losses import IrnLosses, irn_losses
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.ops.affinity import pair_paths

RADIUS, LR = 10, 1e-3
_EPSILON = 1e-5
_TOLERANCE = 1e-3


def batch(case: Case) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) and confident labels (B, h, w) at stride 4, unsure along the outlines."""
    images, labels = [], []
    for number in range(case.count):
        picture = make_picture(np.random.default_rng(number), case.size)
        label = picture.label.copy()
        for shift in (-4, 4):
            label[picture.label != np.roll(picture.label, shift, 0)] = 255
        images.append(normalise(to_tensor(picture.image)))
        labels.append(stride4_label(torch.from_numpy(label)))
    return torch.stack(images), torch.stack(labels)


def learner(case: Case) -> tuple[IrnNetwork, torch.optim.Optimizer]:
    """The same random network for both."""
    torch.manual_seed(0)
    network = IrnNetwork(backbone=case.network).train()  # type: ignore[arg-type]
    return network, torch.optim.SGD(network.param_groups(LR, 10.0), lr=LR)


def ours(case: Case) -> Prepared:
    images, labels = batch(case)
    network, optimizer = learner(case)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures, paths = images.to(memory_format=torch.channels_last), pair_paths(RADIUS)
    start = _copy(network)

    def work() -> Arrays:
        network.load_state_dict(start)
        optimizer.zero_grad(set_to_none=True)
        logits, displacement = network(pictures)
        losses = irn_losses(torch.sigmoid(logits), displacement, labels, paths)
        losses.total.backward()
        optimizer.step()
        names = [field.name for field in fields(IrnLosses) if field.name != "zero_displacement"]
        values = [getattr(losses, name) for name in names]
        return _results(values, network)

    return Prepared(work)


def textbook(case: Case) -> Prepared:
    images, labels = batch(case)
    network, optimizer = learner(case)
    # the original cuts the gradient after every stage, but lets each record what a backward pass would need
    network.backbone = _Recording(network.backbone)  # type: ignore[assignment]
    table = PairTable(labels.shape[1], labels.shape[2])
    start = _copy(network)

    def work() -> Arrays:
        network.load_state_dict(start)
        optimizer.zero_grad(set_to_none=True)
        samples = [table.labels(label) for label in labels.numpy()]  # what the loader does
        background, foreground, negative = (
            torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True)
        )
        logits, displacement = network(images)
        affinity = table.affinity(torch.sigmoid(logits))
        differences = table.displacements(displacement)
        offsets = torch.tensor(table.offsets, dtype=torch.float32).T[None, :, :, None]
        to_offset = (differences - offsets).abs() * foreground[:, None]
        to_zero = differences.abs() * background[:, None]
        values = [
            -(background * torch.log(affinity + _EPSILON)).sum() / (background.sum() + _EPSILON),
            -(foreground * torch.log(affinity + _EPSILON)).sum() / (foreground.sum() + _EPSILON),
            -(negative * torch.log(1 + _EPSILON - affinity)).sum() / (negative.sum() + _EPSILON),
            to_offset.sum() / (2 * foreground.sum() + _EPSILON),
            to_zero.sum() / (2 * background.sum() + _EPSILON),
        ]
        boundary = (values[0] / 2 + values[1] / 2 + values[2]) / 2
        (boundary + (values[3] + values[4]) / 2).backward()
        optimizer.step()
        return _results(values, network)

    return Prepared(work)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _results(values: list[Tensor], network: IrnNetwork) -> Arrays:
    losses = np.array([float(value.detach()) for value in values])
    heads = [network.boundary_head.weight.grad, network.displacement_head.weight.grad]
    return [losses, np.array([float(grad.norm()) for grad in heads if grad is not None])]


class _Recording(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.inner = backbone.requires_grad_(True)

    def forward(self, x: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            return [features.detach() for features in self.inner(x)]


@dataclass(frozen=True)
class PairTable:
    """Index tables of all pairs of a crop of (h, w) cells, as the textbook gathers them."""

    height: int
    width: int

    @property
    def offsets(self) -> np.ndarray:
        return pair_paths(RADIUS).offsets

    def _index(self, cell: tuple[int, int]) -> np.ndarray:
        """Flat index of the cell (dy, dx) away from every source."""
        reach = RADIUS - 1
        y = np.arange(self.height - reach)[:, None] + cell[0]
        x = np.arange(reach, self.width - reach)[None] + cell[1]
        return (y * self.width + x).ravel()

    def _destinations(self) -> np.ndarray:
        return np.stack([self._index((int(dy), int(dx))) for dy, dx in self.offsets])

    def labels(self, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Background-positive, foreground-positive and negative pairs of a sample, (P, N) float32 each."""
        flat = label.ravel()
        source, destination = flat[self._index((0, 0))][None], flat[self._destinations()]
        valid = (source < 255) & (destination < 255)
        equal, background = (source == destination) & valid, source == 0
        parts = (equal & background, equal & ~background, ~equal & valid)
        return parts[0].astype(np.float32), parts[1].astype(np.float32), parts[2].astype(np.float32)

    def affinity(self, boundary: Tensor) -> Tensor:
        """(B, P, N): every cell of every path gathered, then the maximum."""
        flat = boundary.flatten(1)
        strongest = []
        for path in pair_paths(RADIUS).paths:
            index = torch.from_numpy(np.stack([self._index((int(y), int(x))) for y, x in path]))
            strongest.append(flat[:, index].amax(1))
        return 1 - torch.stack(strongest, 1)

    def displacements(self, displacement: Tensor) -> Tensor:
        """(B, 2, P, N) differences from source to destination."""
        flat = displacement.flatten(2)
        source = flat[:, :, torch.from_numpy(self._index((0, 0)))]
        return source[:, :, None] - flat[:, :, torch.from_numpy(self._destinations())]


def agreement(ours: Arrays, theirs: Arrays) -> float:
    """Largest relative difference of the five losses and of two gradient norms."""
    mine, wanted = np.concatenate(ours), np.concatenate(theirs)
    error = float(np.max(np.abs(mine - wanted) / np.maximum(np.abs(wanted), 1e-3)))
    if not error <= _TOLERANCE:
        raise Disagreement(f"losses {mine} instead of {wanted}, {_TOLERANCE} is allowed")
    return error


BENCHMARK = Benchmark(
    name="irn_step",
    summary="one training step of IRNet",
    cases=tuple(
        Case((side, side), count, network)
        for network, count in (("resnet18", 2), ("resnet50", 2))
        for side in (256, 512)
    ),
    small=(Case((128, 160), 1, "resnet18"),),
    ours=Method("pairs on the device", ours),
    references=(Method("pairs from the loader", textbook),),
    agreement=agreement,
)
