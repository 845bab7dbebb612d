"""The pipeline does what it is for: on easy pictures its labels are better than the maps they start from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from irn_pipeline import run_stages

SIDE, COUNT = 96, 24
COLOURS = {"red": (200, 60, 50), "blue": (50, 70, 200)}
NETWORK = {"backbone": "resnet18", "batch_size": 4, "crop": SIDE, "optimizer": "adamw"}


def make_voc(root: Path) -> None:
    """Pictures of one or two discs of one class, or of both classes, on a grey ground; with true masks."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    for index in range(COUNT):
        image = rng.normal(120, 12, (SIDE, SIDE, 3))
        label, objects = np.zeros((2, SIDE, SIDE), np.uint8)
        kinds = [index % 2] if index % 3 else [0, 1]
        for number, kind in enumerate(kinds, start=1):
            middle, radius = (24 + 48 * (number - 1) + rng.integers(-4, 5), rng.integers(13, 20))
            disc = (rows - rng.integers(30, 66)) ** 2 + (columns - middle) ** 2 < radius**2
            image[disc] = rng.normal(list(COLOURS.values())[kind], 12, (int(disc.sum()), 3))
            label[disc], objects[disc] = kind + 1, number
        name = f"{index:03d}"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{name}.png")
        Image.fromarray(label).save(root / "SegmentationClass" / f"{name}.png")
        Image.fromarray(objects).save(root / "SegmentationObject" / f"{name}.png")
        tags = "".join(f"<object><name>{list(COLOURS)[kind]}</name></object>" for kind in kinds)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{tags}</annotation>")
    (root / "class_names.txt").write_text("\n".join(COLOURS) + "\n")


def test_labels_are_better_than_maps(tmp_path: Path) -> None:
    voc = tmp_path / "voc"
    make_voc(voc)
    run = run_stages(
        ["1-5", "evaluate"],
        voc_root=str(voc),
        run_dir=str(tmp_path / "run"),
        device="cpu",
        workers=1,
        precision="float32",
        quiet=True,
        plan="published",
        train_cam=NETWORK
        | {"backbone_weights": "none", "frozen_stages": 0, "frozen_batch_norm": False, "epochs": 6}
        | {"long_side": (96, 112), "lr": 1e-3, "head_lr_factor": 1.0},
        make_cam={"scales": (1.0,)},
        train_irn=NETWORK
        | {"backbone_weights": "cam", "epochs": 8, "lr": 5e-3, "displacement_lr_factor": 1.0}
        | {"rescale": (0.75, 1.25)},
        synthesize_labels={"exp_times": 4, "center_threshold": 1.0},
    )
    figures = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert figures["pictures"] == COUNT
    assert figures["semantic_label"]["miou"] > figures["cam"]["miou"] + 0.05
    assert figures["instance_label"]["ap50"] > figures["cam_components"]["ap50"] + 0.05
