"""What the results of many pictures take on the disk, and the seconds to write and read them, by layout.

    python -m benchmarks.store_layouts [--pictures 20000] [--size 96 128] [--folder DIR]

The artifacts of make_cam, mine_relations and synthesize_labels are generated; no network runs. The layouts take turns.
It prints one JSON object a layout. `write`, `look` (which pictures are there) and `read` are seconds of the clock and,
with `_cpu`, of this process. Results must be equal: the files byte for byte, the full-size maps bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, IR_LABEL, SEMANTIC_LABEL
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.files.regular import regular_bytes
from irn_pipeline.files.shards import Layout
from irn_pipeline.ops.cam import full_size_cam, strided_cam
from irn_pipeline.structures import Cam, CompactCam, Instances

ROUNDS = 10
LAYOUTS: tuple[Layout, ...] = ("files", "shards")
_DIFFERENT = 32
"""So many pictures are generated, and come again and again."""
_COMPARED = 200


@dataclass
class Store:
    """One layout, with or without full-size maps, and what was measured."""

    name: str
    layout: Layout
    full_size: bool
    run: RunFolder
    seconds: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add what the block takes."""
        clock, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds.update({name: time.perf_counter() - clock, f"{name}_cpu": time.process_time() - cpu})

    def values(self, number: int, made: list[dict[str, Any]]) -> dict[Artifact[Any], Any]:
        """The artifacts of a picture."""
        one = made[number % len(made)]
        cam = one["full" if self.full_size else "compact"]
        return {
            CAM: cam,
            IR_LABEL: one["label"],
            INSTANCE_LABEL: one["instances"],
            SEMANTIC_LABEL: one["label"],
        }


def generated(size: tuple[int, int], seed: int) -> dict[str, Any]:
    """Maps at four scales of one or two classes, a label, and two or three objects."""
    rng = np.random.default_rng(seed)
    count, height, width = int(rng.integers(1, 3)), *size
    grids = [(round(scale * height / 16) + 1, round(scale * width / 16) + 1) for scale in (1, 0.5, 1.5, 2)]
    scales = tuple(rng.random((count, *grid), np.float32) for grid in grids)
    tensors = [torch.from_numpy(one) for one in scales]
    class_ids, cam = np.arange(count), strided_cam(tensors, size).numpy()
    high_res = full_size_cam(tensors, size).numpy()
    masks = np.stack([high_res[index % count] > 0.8 for index in range(count + 1)])
    scores = rng.random(len(masks), np.float32)
    return {
        "full": Cam(class_ids, cam, high_res),
        "compact": CompactCam(class_ids, cam, scales, size),
        "label": np.where(high_res.max(0) > 0.5, high_res.argmax(0) + 1, 0).astype(np.uint8),
        "instances": Instances(scores, masks, np.arange(len(masks)) % count),
    }


def compare(folder: Path, pictures: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Write and read with every layout, in turn.

    Args:
        folder: an empty one.
        pictures: their number.
        size: (H, W) of each in pixels.

    Returns:
        Figures of each layout.

    Raises:
        SystemExit: results differ.
    """
    torch.set_num_threads(1)
    made = [generated(size, seed) for seed in range(_DIFFERENT)]
    stores = [
        Store(
            f"{layout}, {maps} full-size maps", layout, maps == "with", RunFolder(folder / f"{layout}-{maps}")
        )
        for maps in ("with", "without")
        for layout in LAYOUTS
    ]
    parts = np.array_split(np.arange(pictures), ROUNDS)

    def in_turn(name: str, work: Callable[[Store, Any], None]) -> None:
        for turn, part in enumerate(parts):
            for store in stores[turn % len(stores) :] + stores[: turn % len(stores)]:
                with store.timed(name):
                    work(store, part.tolist())

    def write(store: Store, part: list[int]) -> None:
        with store.run.writing(store.layout, 0) as put:
            for number in part:
                for artifact, value in store.values(number, made).items():
                    put(artifact, value, f"picture{number:08d}")

    def look(store: Store, part: list[int]) -> None:
        run = RunFolder(store.run.root)
        if not all(run.has(artifact, f"picture{n:08d}") for n in part for artifact in store.values(n, made)):
            raise SystemExit(f"{store.name}: a result is missing")

    def read(store: Store, part: list[int]) -> None:
        run = RunFolder(store.run.root)
        for number in part:
            for artifact in store.values(number, made):
                run.read(artifact, f"picture{number:08d}")

    for work in (write, look, read):
        in_turn(work.__name__, work)
    _require_equal(stores, made, range(0, pictures, max(pictures // _COMPARED, 1)))
    return [
        {"layout": store.name, "pictures": pictures, **_taken(store.run.root), **_rounded(store)}
        for store in stores
    ]


def _require_equal(stores: list[Store], made: list[dict[str, Any]], numbers: range) -> None:
    for number in numbers:
        image_id = f"picture{number:08d}"
        for artifact in stores[0].values(number, made):
            bodies = [regular_bytes(RunFolder(s.run.root).place(artifact, image_id)) for s in stores]
            if bodies[0] != bodies[1] or bodies[2] != bodies[3]:
                raise SystemExit(f"{image_id}: the {artifact.name} differ between files and shards")
        full, compact = (stores[index].run.read(CAM, image_id).high_res_cam for index in (0, 2))
        if not np.array_equal(full, compact):
            raise SystemExit(f"{image_id}: the full-size maps differ")


def _taken(folder: Path) -> dict[str, int]:
    states = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return {
        "files": len(states),
        "bytes": sum(state.st_size for state in states),
        "disk_bytes": sum(state.st_blocks * 512 for state in states),
    }


def _rounded(store: Store) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in store.seconds.items()}


def main(words: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("H", "W"))
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; removed again")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for line in compare(Path(name), options.pictures, tuple(options.size)):
            sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
