"""The coloring dilemma: a convolution cannot tell identical objects apart, a semi-convolution can.

A small network sees a grid of identical dots and learns embeddings that agree within a dot; k-means then groups the
pixels. A plain convolution gives every dot the same embedding (and has the lower loss). Adding each pixel's position
to two channels of the same network makes every dot its own colour (Novotny et al., ECCV 2018, sections 3 and 4.1).

python examples/coloring_dilemma.py --out runs/coloring_dilemma
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2
from scipy.special import comb
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from irn_pipeline.nn.semiconv import attraction_loss, semi_convolution
from irn_pipeline.structures import BoolArray, FloatArray, IntArray

logger = logging.getLogger(__name__)

Padding = Literal["zeros", "circular"]
UNIT = 8.0
"""Pixels per unit of the embedding: 5 dots of pitch 16 span 0 to 10."""
CHANNELS, DIM = 32, 8
DILATIONS = (1, 2, 4, 1)
"""Of the 3x3 layers: together they see 8 pixels each way, so a dot's edge sees the whole dot."""
KMEANS_STARTS = 10


@dataclass(frozen=True)
class Experiment:
    """One training of one network.

    Attributes:
        semi: whether positions are added to the embedding.
        dots: dots a side.
        steps: of Adam.
        seed: of the network's weights and of k-means.
        padding: of the convolutions.
    """

    semi: bool
    dots: int = 5
    steps: int = 600
    seed: int = 0
    padding: Padding = "zeros"


@dataclass(frozen=True)
class Outcome:
    """What an experiment came to; N pixels are on dots.

    Attributes:
        losses: one for each step.
        embeddings: (N, D) float32 of the dots' pixels.
        clusters: (N,) int64 cluster of each, by k-means with the true number of dots.
        rand_index: adjusted Rand index of the clusters and the dots; 1 is perfect, 0 is chance.
    """

    losses: list[float]
    embeddings: FloatArray
    clusters: IntArray
    rand_index: float


def dot_masks(count: int, *, radius: float = 4.0, pitch: int = 16) -> BoolArray:
    """A square grid of identical discs.

    Args:
        count: discs a side.
        radius: pixels.
        pitch: pixels from centre to centre.

    Returns:
        (count^2, count * pitch, count * pitch) bool, one mask a disc.
    """
    centres = (np.arange(count) + 0.5) * pitch - 0.5
    near = np.arange(count * pitch)[None] - centres[:, None]
    squares = near[:, None, :, None] ** 2 + near[None, :, None, :] ** 2
    return (squares <= radius**2).reshape(count**2, count * pitch, count * pitch)


def run(experiment: Experiment) -> Outcome:
    """Train a network on the dots and group their pixels by its embeddings.

    Returns:
        Losses, embeddings and clusters; the same for the same experiment on the same machine.
    """
    masks = torch.from_numpy(dot_masks(experiment.dots))
    picture = masks.any(0)[None, None].float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        network = _network(experiment.padding)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, experiment.steps)
    losses: list[float] = []
    for _ in range(experiment.steps):
        loss = attraction_loss(_embed(network, picture, experiment.semi), masks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        embeddings = _embed(network, picture, experiment.semi)
    dots, pixels = masks.flatten(1).nonzero(as_tuple=True)
    points = embeddings.flatten(1).T[pixels].numpy()
    clusters = group(points, experiment.dots**2, seed=experiment.seed)
    return Outcome(losses, points, clusters, adjusted_rand_index(dots.numpy(), clusters))


def _network(padding: Padding) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 1
    for dilation in DILATIONS:
        layers += [
            nn.Conv2d(channels, CHANNELS, 3, padding=dilation, dilation=dilation, padding_mode=padding),
            nn.ReLU(),
        ]
        channels = CHANNELS
    return nn.Sequential(*layers, nn.Conv2d(channels, DIM, 1))


def _embed(network: nn.Module, picture: Tensor, semi: bool) -> Tensor:
    features: Tensor = network(picture)[0]
    return semi_convolution(features, unit=UNIT) if semi else features


def group(points: FloatArray, count: int, *, seed: int = 0) -> IntArray:
    """k-means, the best of several starts.

    Args:
        points: (N, D).
        count: clusters.
        seed: of the starts.

    Returns:
        (N,) cluster of each point.
    """
    best, best_cost = np.zeros(len(points), np.int64), np.inf
    rng = np.random.default_rng(seed)
    # Embeddings that have collapsed differ by less than k-means can add up.
    points = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    for _ in range(KMEANS_STARTS):
        with warnings.catch_warnings():
            # Where embeddings have collapsed there are fewer places than clusters; an empty one is an answer.
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            centres, clusters = kmeans2(points, _spread_out(points, count, rng), minit="matrix")
        cost = np.square(points - centres[clusters]).sum()
        if cost < best_cost:
            best, best_cost = clusters.astype(np.int64), cost
    return best


def _spread_out(points: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Starting centres: each is drawn in proportion to its squared distance from those before (k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1))
        total = nearest.sum()
        chosen.append(int(rng.choice(len(points), p=nearest / total if total > 0 else None)))
    return points[chosen]


def adjusted_rand_index(first: IntArray, second: IntArray) -> float:
    """Agreement of two partitions of the same things, corrected for chance (Hubert and Arabie, 1985).

    Args:
        first: (N,) int, a part's number for each thing.
        second: (N,) int.

    Returns:
        1 for equal partitions, about 0 for unrelated ones; 1 where both are trivial in the same way.
    """
    _, rows = np.unique(first, return_inverse=True)
    _, columns = np.unique(second, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    together = comb(table, 2).sum()
    in_rows, in_columns = comb(table.sum(1), 2).sum(), comb(table.sum(0), 2).sum()
    by_chance = in_rows * in_columns / comb(len(rows), 2)
    most = (in_rows + in_columns) / 2
    return float((together - by_chance) / (most - by_chance)) if most != by_chance else 1.0


def wave(position: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The one-dimensional picture of the paper's proof: hats of height 1 around the even numbers, period 2."""
    return 1 - np.abs(position - 2 * np.round(position / 2))


def semi_convolved_wave(
    position: npt.NDArray[np.float64], *, step: float = 2.0**-10
) -> npt.NDArray[np.float64]:
    """The paper's proof in one dimension: u + (1 - x) x' is 2k all over hat k (section 3.2).

    The second term is a local function of the picture x, the first is the position.

    Args:
        position: (N,) at least `step` away from the odd numbers, where two hats meet, and from the even ones.
        step: of the difference that stands for x', a convolution.

    Returns:
        (N,) centre of the hat that each position is on.
    """
    slope = (wave(position + step) - wave(position - step)) / (2 * step)
    return position + (1 - wave(position)) * slope


def draw(outcomes: tuple[Outcome, Outcome], dots: int, path: Path) -> None:
    """Draw the objects, what both networks make of them, their losses and their embeddings.

    Args:
        outcomes: of the plain and of the semi-convolutional network.
        dots: a side.
        path: the PNG to write.
    """
    import matplotlib.pyplot as plt

    masks = dot_masks(dots)
    objects, pixels = masks.reshape(dots**2, -1).nonzero()
    names = ("plain convolution", "semi-convolution")
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.2), layout="constrained")
    panels = [(objects, "true objects")]
    panels += [(o.clusters, f"{n}\nARI {o.rand_index:.3f}") for o, n in zip(outcomes, names, strict=True)]
    order = np.random.default_rng(1).permutation(dots**2)  # neighbours get unlike colours
    for axis, (values, title) in zip(axes[0], panels, strict=True):
        canvas = np.full(masks[0].size, np.nan)
        canvas[pixels] = order[values]
        axis.imshow(canvas.reshape(masks[0].shape), cmap="gist_ncar", vmin=-1, vmax=dots**2)
        axis.set(title=title, xticks=[], yticks=[])
    for outcome, name in zip(outcomes, names, strict=True):
        axes[1, 0].semilogy(outcome.losses, label=name)
    axes[1, 0].set(title="loss: lower is not better", xlabel="step")
    axes[1, 0].legend()
    for axis, outcome in zip(axes[1, 1:], outcomes, strict=True):
        axis.scatter(
            *outcome.embeddings[:, :2].T, c=order[objects], cmap="gist_ncar", s=3, vmin=-1, vmax=dots**2
        )
        axis.set(title="embedding, first two channels", xlim=(-1, 2 * dots + 1), ylim=(2 * dots + 1, -1))
        axis.set_aspect("equal")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> int:
    """Parse the command line, run both networks and draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for coloring_dilemma.png")
    parser.add_argument("--dots", type=int, default=5, help="dots a side")
    parser.add_argument("--steps", type=int, default=600, help="of Adam")
    parser.add_argument("--seed", type=int, default=0, help="of weights and k-means")
    parser.add_argument(
        "--padding", choices=("zeros", "circular"), default="zeros", help="of the convolutions"
    )
    arguments = parser.parse_args()
    if arguments.dots < 2 or arguments.steps < 1:
        parser.error("--dots must be at least 2 and --steps at least 1")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the figure needs matplotlib: pip install 'irn_pipeline[examples]'")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plain, semi = (
        run(Experiment(semi, arguments.dots, arguments.steps, arguments.seed, arguments.padding))
        for semi in (False, True)
    )
    for name, outcome in (("plain convolution", plain), ("semi-convolution", semi)):
        logger.info("%s: loss %.4f, adjusted Rand index %.3f", name, outcome.losses[-1], outcome.rand_index)
    path = arguments.out / "coloring_dilemma.png"
    draw((plain, semi), arguments.dots, path)
    logger.info("%s", path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
