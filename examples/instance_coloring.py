"""Instance colouring on its own, as the semi-convolutional paper begins (Novotny et al., ECCV 2018, section 4.1).

A ResNet-50, cut after its first residual stage and followed by 1x1 filters, learns by SGD that the pixels of an object
have one embedding. Then the foreground is grouped: by k-means, which is given the true number of objects, and by mean
shift, which is not. Plain and semi-convolutional embeddings, and positions alone, are compared on a grid of identical
dots and on generated images that no network has seen.

python examples/instance_coloring.py --out runs/instance_coloring [--backbone-weights none]

instance_coloring.png has one row per image: the image, the true objects, and for each kind of embeddings the groups
of k-means and of mean shift. Adjusted Rand indices (1 is perfect, 0 is chance) are printed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as TF

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.coloring_dilemma import adjusted_rand_index, dot_masks, group
from irn_pipeline.datasets.synthetic import make_picture
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.errors import IrnError
from irn_pipeline.nn.backbone import ResNet, freeze_batch_norms, load_backbone_weights
from irn_pipeline.nn.semiconv import attraction_loss, semi_convolution
from irn_pipeline.ops.palette import voc_palette
from irn_pipeline.structures import IMAGENET_MEAN, IMAGENET_STD, BoolArray, FloatArray, IntArray, LabelArray

logger = logging.getLogger(__name__)

UNIT = 8.0
"""Pixels per unit of the embedding."""
BANDWIDTH = 1.0
"""Of mean shift, in units of the embedding: a dot has a radius of 0.5."""
DIM, HIDDEN = 8, 64
_SIZE = (80, 96)
"""Height and width of the generated images: their objects fit into what a cell sees, 35 pixels."""
_MODES_FROM = 400
"""Points that mean shift starts from; the others join the nearest mode."""


@dataclass(frozen=True)
class Scene:
    """An image and its objects: (H, W, 3) uint8 and (R, H, W) bool, disjoint."""

    image: LabelArray
    masks: BoolArray


class Colouring(nn.Module):
    """Embeddings of pixels from the first residual stage of a ResNet-50.

    Args:
        weights: of the ResNet, as for --backbone-weights.
        semi: whether positions are added.
    """

    def __init__(self, weights: str, *, semi: bool) -> None:
        super().__init__()
        resnet = ResNet("resnet50")
        load_backbone_weights(resnet, weights)
        self.semi, self.pretrained = semi, weights != "none"
        self.body = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1)
        self.head = nn.Sequential(nn.Conv2d(256, HIDDEN, 1), nn.ReLU(), nn.Conv2d(HIDDEN, DIM, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) image in [0, 1] -> (D, H, W) embeddings."""
        cells = self.head(self.body(TF.normalize(image[None], list(IMAGENET_MEAN), list(IMAGENET_STD))))
        features = interpolate(cells, image.shape[-2:], mode="bilinear")[0]
        return semi_convolution(features, unit=UNIT) if self.semi else features

    def train(self, mode: bool = True) -> Colouring:
        """Training mode; batch norms with loaded statistics keep them."""
        super().train(mode)
        if self.pretrained:
            freeze_batch_norms(self.body)
        return self


def dots() -> Scene:
    """A grid of 5 x 5 identical dots."""
    masks = dot_masks(5)
    return Scene(np.repeat(np.uint8(255) * masks.any(0)[..., None], 3, 2), masks)


def generated(seed: int) -> Scene:
    """An image of the demo set's kind."""
    made = make_picture(np.random.default_rng(seed), _SIZE)
    ids = range(1, len(made.class_ids) + 1)
    return Scene(made.image, np.stack([made.object_label == index for index in ids]))


def learn(
    scenes: Sequence[Scene], *, semi: bool, weights: str, steps: int, seed: int, lr: float
) -> Colouring:
    """Train on images in turn, by SGD on the attraction loss; returns the network in evaluation mode."""
    torch.manual_seed(seed)
    network = Colouring(weights, semi=semi).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, 0.9)
    for step in range(steps):
        scene = scenes[step % len(scenes)]
        loss = attraction_loss(network(to_unit_tensor(scene.image)), torch.from_numpy(scene.masks))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay.step()
    return network.eval()


def mean_shift(points: FloatArray, bandwidth: float, *, seed: int = 0) -> IntArray:
    """Groups by mean shift with a flat kernel (Comaniciu & Meer, 2002).

    Args:
        points: (N, D).
        bandwidth: radius of the kernel; modes nearer than this to a better one are one with it.
        seed: of the points that it starts from.

    Returns:
        (N,) group of each point.
    """
    rng = np.random.default_rng(seed)
    modes = points[rng.permutation(len(points))[:_MODES_FROM]].astype(np.float64)
    for _ in range(50):
        near = np.square(modes[:, None] - points).sum(2) <= bandwidth**2
        moved = (near @ points) / near.sum(1)[:, None]
        still = np.allclose(moved, modes, atol=1e-3 * bandwidth)
        modes = moved
        if still:
            break
    near = np.square(modes[:, None] - points).sum(2) <= bandwidth**2
    kept: list[FloatArray] = []
    for index in np.argsort(-near.sum(1), kind="stable"):
        if all(np.square(modes[index] - mode).sum() > bandwidth**2 for mode in kept):
            kept.append(modes[index])
    return np.square(points[:, None] - np.stack(kept)).sum(2).argmin(1)


def colour(embeddings: Tensor, scene: Scene, *, seed: int = 0) -> dict[str, tuple[IntArray, float]]:
    """Groups of the foreground's pixels, row by row, and their adjusted Rand index, by the name of the method.

    Args:
        embeddings: (D, H, W) of the scene's image.
        scene: with the true objects.
        seed: of the starts.
    """
    objects = scene.masks.argmax(0)[scene.masks.any(0)]
    points = embeddings.permute(1, 2, 0).numpy()[scene.masks.any(0)]
    found = {
        "k-means": group(points, len(scene.masks), seed=seed),
        "mean shift": mean_shift(points, BANDWIDTH, seed=seed),
    }
    return {name: (groups, adjusted_rand_index(objects, groups)) for name, groups in found.items()}


def painted(scene: Scene, groups: IntArray) -> LabelArray:
    """(H, W, 3) uint8: a colour for each group of the foreground's pixels, black elsewhere."""
    canvas = np.zeros(scene.image.shape, np.uint8)
    canvas[scene.masks.any(0)] = voc_palette()[1 + groups % 254]
    return canvas


def draw(rows: Sequence[Sequence[tuple[str, LabelArray]]], path: Path) -> None:
    """Write rows of titled panels as one PNG."""
    margin, line = 6, 14
    width = max(sum(panel.shape[1] + margin for _, panel in row) for row in rows)
    height = sum(max(panel.shape[0] for _, panel in row) + line + margin for row in rows)
    page = Image.new("RGB", (2 * width, 2 * height), "white")
    pen, y = ImageDraw.Draw(page), 0
    for row in rows:
        x = 0
        for title, panel in row:
            pen.text((2 * x, 2 * y + 8), title, fill="black")
            large = Image.fromarray(panel).resize(
                (2 * panel.shape[1], 2 * panel.shape[0]), Image.Resampling.NEAREST
            )
            page.paste(large, (2 * x, 2 * (y + line)))
            x += panel.shape[1] + margin
        y += max(panel.shape[0] for _, panel in row) + line + margin
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def compare(
    trained_on: Sequence[Scene], shown: Sequence[Scene], options: argparse.Namespace
) -> tuple[list[list[tuple[str, LabelArray]]], dict[str, float]]:
    """Train both networks; returns the rows of the page, and mean Rand indices by embeddings and method."""
    rows = [
        [("image", scene.image), ("objects", painted(scene, scene.masks.argmax(0)[scene.masks.any(0)]))]
        for scene in shown
    ]
    training: dict[str, Any] = {"weights": options.backbone_weights, "steps": options.steps, "lr": options.lr}
    plain, semi = (learn(trained_on, semi=semi, seed=options.seed, **training) for semi in (False, True))
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "position": lambda image: semi_convolution(torch.zeros(2, *image.shape[1:]), unit=UNIT),
        "plain": plain,
        "semi": semi,
    }
    indices: dict[str, list[float]] = {}
    for kind, embed in kinds.items():
        for row, scene in zip(rows, shown, strict=True):
            with torch.no_grad():
                embeddings = embed(to_unit_tensor(scene.image))
            for name, (groups, rand_index) in colour(embeddings, scene, seed=options.seed).items():
                row.append((f"{kind}, {name} {rand_index:.2f}", painted(scene, groups)))
                indices.setdefault(f"{kind}, {name}", []).append(rand_index)
    return rows, {name: float(np.mean(values)) for name, values in indices.items()}


def main() -> int:
    """Parse the command line, train, compare and draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for instance_coloring.png")
    parser.add_argument("--backbone-weights", default="imagenet", help="imagenet, none, or a file (.pth)")
    parser.add_argument("--steps", type=int, default=600, help="steps of SGD, one image each")
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate")
    parser.add_argument("--images", type=int, default=30, help="generated images to train on")
    parser.add_argument("--shown", type=int, default=4, help="generated images to compare on")
    parser.add_argument("--seed", type=int, default=0, help="of weights and groups")
    options = parser.parse_args()
    if min(options.steps, options.images, options.shown) < 1:
        parser.error("--steps, --images and --shown must be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    held_out = [generated(10_000 + index) for index in range(options.shown)]
    tasks = {
        "dots": ([dots()], [dots()]),
        "generated images": ([generated(index) for index in range(options.images)], held_out),
    }
    rows: list[list[tuple[str, LabelArray]]] = []
    try:
        for name, (trained_on, shown) in tasks.items():
            found, indices = compare(trained_on, shown, options)
            rows += found
            for method, rand_index in indices.items():
                logger.info("%s, %s: adjusted Rand index %.3f", name, method, rand_index)
    except IrnError as error:
        parser.error(str(error))
    path = options.out / "instance_coloring.png"
    draw(rows, path)
    logger.info("%s", path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
