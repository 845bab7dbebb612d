"""The picture of the README: which pictures it shows, that it says so, and what it draws."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from PIL import Image

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, SEMANTIC_LABEL
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.structures import Cam, ImageRecord, Instances, strided_size

SIZE = (24, 32)
SCRIPT = Path(__file__).parents[2] / "docs" / "render_overview.py"


@pytest.fixture(scope="module")
def overview() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_overview", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ious", "chosen"),
    [
        # By IoU: 9 8 7 6 5 4 3 2 1 0; the four in the middle and the last.
        ([0.1 * n for n in range(10)], [6, 5, 4, 3, 0]),
        ([0.1 * n for n in range(9)], [6, 5, 4, 3, 0]),
        ([0.5, None, 0.1, 0.9], [3, 0, 2]),
        ([None, 0.5], [1]),
    ],
)
def test_pictures_around_the_median_and_the_worst(overview, ious, chosen):
    records = [ImageRecord(str(number), Path(), ()) for number in range(len(ious))]
    rows = overview.choose(records, ious)
    assert [int(row.record.image_id) for row in rows] == chosen
    known = sum(iou is not None for iou in ious)
    for number, row in enumerate(rows[:-1], 1):
        assert row.caption.startswith(f"median {number} of {known} images, label IoU ")
    assert rows[-1].caption == f"worst of {known} images, label IoU {100 * ious[chosen[-1]]:.0f} %"


def test_nothing_to_choose_from(overview):
    with pytest.raises(ArtifactError, match="synthesize_labels"):
        overview.choose([ImageRecord("a", Path(), ())], [None])


@pytest.fixture
def demo(tmp_path: Path) -> tuple[RunFolder, Path]:
    """Six pictures with true masks on the left half; labels that agree with a sixth of it, two sixths, ..."""
    root, run = tmp_path / "set", RunFolder(tmp_path / "run")
    for folder in (
        "JPEGImages",
        "SegmentationClass",
        "SegmentationObject",
        "Annotations",
        "ImageSets/Segmentation",
    ):
        (root / folder).mkdir(parents=True)
    (root / "class_names.txt").write_text("cat\n")
    names = [f"p{number}" for number in range(6)]
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(names) + "\n")
    half = np.zeros(SIZE, np.uint8)
    half[:, :16] = 1
    for number, name in enumerate(names):
        Image.fromarray(np.full((*SIZE, 3), 100, np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(
            "<annotation><object><name>cat</name></object></annotation>"
        )
        for folder in ("SegmentationClass", "SegmentationObject"):
            Image.fromarray(half).save(root / folder / f"{name}.png")
        label = np.zeros(SIZE, np.uint8)
        label[:, : 2 * number + 4] = 1
        run.write(SEMANTIC_LABEL, label, name)
        found = Instances(np.ones(1, np.float32), label[None] > 0, np.zeros(1, np.int64))
        run.write(INSTANCE_LABEL, found, name)
        cam = np.zeros((1, *strided_size(SIZE)), np.float32)
        run.write(CAM, Cam(np.zeros(1, np.int64), cam, np.zeros((1, *SIZE), np.float32)), name)
    return run, root


def test_the_picture(overview, demo, tmp_path, capsys, caplog):
    run, root = demo
    out = tmp_path / "new" / "overview.png"
    words = ["--run-dir", str(run.root), "--voc-root", str(root), "--out", str(out)]
    with caplog.at_level("INFO"):
        assert overview.main(words) == 0
    said = caplog.text + "".join(capsys.readouterr())
    assert "p0: worst of 6 images" in said
    assert "p5" not in said.replace(str(root), "")  # the best one is not shown
    picture = cv2.imread(str(out))[..., ::-1]
    height = round(overview.CELL * SIZE[0] / SIZE[1])
    assert picture.shape[0] == 2 * overview.LINE + 5 * (overview.LINE + height + overview.GAP)
    assert picture.shape[1] == overview.GAP + 5 * (overview.CELL + overview.GAP)
    # The worst one is the last row: a label of 4 of 32 columns beside the truth of 16.
    row = picture[-overview.LINE - overview.GAP - height // 2]

    def starts(column):
        return overview.GAP + column * (overview.CELL + overview.GAP)

    coloured = [
        bool(np.ptp(row[starts(column) + round(overview.CELL * share)]) > 30)
        for column in (3, 4)
        for share in (0.06, 0.3, 0.8)
    ]
    assert coloured == [True, False, False, True, True, False]


@pytest.mark.parametrize("words", [["--out", "overview.gif"], ["--run-dir", "nowhere"]])
def test_one_clear_line(overview, demo, tmp_path, monkeypatch, capsys, words):
    run, root = demo
    monkeypatch.chdir(tmp_path)
    given = ["--run-dir", str(run.root), "--voc-root", str(root), "--out", "a.png", *words]
    assert overview.main(given) != 0
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    assert "error" in said.lower() or words[1] in said or "synthesize_labels" in said
    assert not (tmp_path / "overview.gif").exists()
