"""Both CRFs of a picture: the lattice that serves both against two pydensecrf runs. One JSON object a line.

python benchmarks/crf.py [--sizes 375x500 750x1000] [--labels 3] [--repeats 3]
"""

import argparse
import json
import os
import resource
import sys
import time
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # before the first import of NumPy: one core for everybody

import numpy as np
from scipy.ndimage import gaussian_filter

from irn_pipeline.datasets.synthetic import make_picture
from irn_pipeline.ops.cam import cam_index
from irn_pipeline.ops.crf import dense_crf
from irn_pipeline.ops.mean_field import mean_field, pairwise_model
from irn_pipeline.ops.permutohedral import build_lattice

THRESHOLDS = (0.30, 0.05)


def report(**figures) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def inputs(rng, size, num_labels):
    """A generated picture and the two seeds that blurred, shifted object masks give."""
    picture = make_picture(rng, size)
    maps = np.zeros((num_labels - 1, *size), np.float32)
    for number in range(1, int(picture.object_label.max()) + 1):
        maps[number % len(maps)] += picture.object_label == number
    maps = gaussian_filter(maps, (0, size[0] / 30, size[1] / 30)) + 0.1 * gaussian_filter(
        rng.random(maps.shape, np.float32), (0, 20, 20)
    )
    maps /= maps.max(axis=(1, 2), keepdims=True)
    return picture.image, [cam_index(maps, threshold)[0] for threshold in THRESHOLDS]


def textbook(image, seeds, num_labels):
    """Two runs of the reference library, each building its own lattices."""
    return [dense_crf(image, seed, num_labels, backend="pydensecrf") for seed in seeds]


def ours(image, seeds, num_labels):
    """What `confident_label` does with its two seeds, whose refined labels it does not show."""
    height, width = image.shape[:2]
    y, x = (axis.ravel().astype(np.float32) for axis in np.indices((height, width)))
    appearance = np.concatenate([[x / 50, y / 50], image.reshape(-1, 3).T / np.float32(5)])
    model = pairwise_model(
        build_lattice(appearance.astype(np.float32)),
        build_lattice(np.stack([x, y]) / np.float32(3)),
        appearance_compat=10,
        smoothness_compat=3,
    )
    flat = np.stack([seed.ravel() for seed in seeds])
    return list(mean_field(model, flat, num_labels, confidence=0.7, iterations=10).reshape(2, height, width))


def timed(work, *arguments):
    """Result, wall seconds and this thread's own seconds, which say more where others share the machine."""
    wall, own = time.perf_counter(), time.thread_time()
    result = work(*arguments)
    return result, time.perf_counter() - wall, time.thread_time() - own


def compare(size, num_labels, repeats, seed=0) -> None:
    image, seeds = inputs(np.random.default_rng(seed), size, num_labels)
    reference, found, rows = [], [], []
    for _ in range(repeats):
        reference, *slow = timed(textbook, image, seeds, num_labels)
        found, *fast = timed(ours, image, seeds, num_labels)
        rows.append((*slow, *fast))
    slow_wall, slow_own, fast_wall, fast_own = (median(column) for column in zip(*rows, strict=True))
    report(
        what="both CRFs of an image",
        size=f"{size[0]}x{size[1]}",
        labels=num_labels,
        pydensecrf_seconds=round(slow_own, 3),
        lattice_seconds=round(fast_own, 3),
        ratio=round(slow_own / fast_own, 2),
        ratio_of_wall_seconds=round(slow_wall / fast_wall, 2),
        agreement=round(float(np.mean([a == b for a, b in zip(reference, found, strict=True)])), 6),
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["375x500", "750x1000"], help="height x width")
    parser.add_argument("--labels", nargs="+", type=int, default=[2, 3, 4], help="with the background")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    start = time.perf_counter()
    for num_labels in {min(count, 4) for count in options.labels}:
        ours(np.zeros((8, 8, 3), np.uint8), [np.zeros((8, 8), int)] * 2, num_labels)
    report(what="compile, or load compiled code", seconds=round(time.perf_counter() - start, 2))
    for size in options.sizes:
        height, width = (int(side) for side in size.split("x"))
        for num_labels in options.labels:
            compare((height, width), num_labels, options.repeats)


if __name__ == "__main__":
    main()
