"""The report of a run folder made by hand: what is shown, what is counted, and what is missing or damaged."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from irn_pipeline.artifacts import (
    CAM,
    CAM_NETWORK,
    INSTANCE_LABEL,
    IR_LABEL,
    IRN_NETWORK,
    METRICS,
    SEMANTIC_LABEL,
    Checkpoint,
)
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError, ConfigError
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.stages.report import STAGE, Params
from irn_pipeline.structures import Cam, GroundTruth, ImageRecord, ImageSet, Instances, strided_size

SIZE = (24, 32)
NAMES = ("cat", "<b>dog</b>")
IDS = ("one", "sub/two", "three", "four")


@dataclass(frozen=True)
class Data:
    """A data set in memory."""

    images: ImageSet = field(default_factory=lambda: ImageSet((), ()))
    truths: dict[str, GroundTruth] = field(default_factory=dict)
    origin: Path = Path("pictures")
    leading_names: int = 0
    pixels: str = ""

    @property
    def items(self) -> Sequence[ImageRecord]:
        return self.images.records

    @property
    def identity(self) -> Sequence[str]:
        return self.images.class_names

    def ground_truth(self, image_id: str) -> GroundTruth | None:
        return self.truths.get(image_id)


def true_label() -> np.ndarray:
    """The class 0 on the left quarter."""
    label = np.zeros(SIZE, np.uint8)
    label[:, :8] = 1
    return label


def instances_of(label: np.ndarray, scores: Sequence[float]) -> Instances:
    masks = np.repeat((label > 0)[None], len(scores), axis=0)
    return Instances(np.array(scores, np.float32), masks, np.zeros(len(scores), np.int64))


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Four pictures; only the first two have true masks."""
    records = []
    for number, image_id in enumerate(IDS):
        path = tmp_path / "pictures" / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 40 * number, np.uint8)).save(path)
        records.append(ImageRecord(image_id, path, (number % 2,)))
    truth = GroundTruth(true_label(), instances_of(true_label(), [1.0]), np.zeros(SIZE, bool))
    return Data(ImageSet(NAMES, tuple(records)), {"one": truth, "sub/two": truth})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run: perfect labels of the first picture, empty, covering and fragmented ones of the others."""
    run = RunFolder(tmp_path / "my run")
    full = np.full(SIZE, 2, np.uint8)
    labels = dict(zip(IDS, (true_label(), np.zeros(SIZE, np.uint8), full, true_label()), strict=True))
    scores: dict[str, list[float]] = {
        "one": [0.75, 0.25],
        "sub/two": [],
        "three": [1.0],
        "four": [0.5, *([0.0] * 12)],
    }
    for image_id in IDS:
        cam = np.zeros((1, *strided_size(SIZE)), np.float32)
        run.write(CAM, Cam(np.zeros(1, np.int64), cam, np.zeros((1, *SIZE), np.float32)), image_id)
        run.write(IR_LABEL, labels[image_id], image_id)
        run.write(SEMANTIC_LABEL, labels[image_id], image_id)
        run.write(INSTANCE_LABEL, instances_of(labels[image_id], scores[image_id]), image_id)
    run.write(CAM_NETWORK, Checkpoint("cam", "resnet18", NAMES, {}))
    for stage in ("train_cam", "make_cam", "mine_relations", "synthesize_labels", "evaluate"):
        run.write_record(
            StageRecord(
                stage,
                "f",
                {"beta": 10.0, "backbone": "resnet18"},
                {},
                True,
                {"images": 4},
                61.0,
                {"torch": "2"},
            )
        )
    run.stage_dir("train_cam").joinpath("losses.jsonl").write_text('{"step": 1, "classification": 0.5}\n')
    per_class = {"background": 0.9, NAMES[0]: 0.5, NAMES[1]: None}
    run.write(METRICS, {"pictures": 2, "semantic_label": {"miou": 0.7, "iou_per_class": per_class}})
    return run


def make(run: RunFolder, data: Data, **params: Any) -> str:
    """The text of the report."""
    execution = Execution(device="cpu", precision="float32", workers=1, quiet=True)
    run_stage(STAGE, Job(run, Params(**params), data, execution))
    return (run.stage_dir("report") / "report.html").read_text(encoding="utf-8")


def pictures_of(text: str) -> dict[str, Any]:
    found = re.search(r'id="pictures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return {picture["id"]: picture for picture in json.loads(found[1])}


def titles(picture: dict[str, Any]) -> list[str]:
    return [panel[0] for panel in picture["panels"]]


def test_whole_run(run: RunFolder, data: Data) -> None:
    run.write(
        IRN_NETWORK,
        Checkpoint("irn", "resnet18", (), IrnNetwork(backbone="resnet18").state_dict()),
    )
    (run.stage_dir("evaluate") / "sweep.json").write_text('[{"threshold": 0.1, "miou": 0.625, "ap50": 0.5}]')
    text = make(run, data)
    pictures = pictures_of(text)
    assert tuple(pictures) == IDS
    assert titles(pictures["one"]) == [
        *("photograph", "CAM", "confident label", "boundary", "displacement", "instance map"),
        *("instance labels", "semantic labels", "ground-truth instances", "ground-truth labels"),
    ]
    assert titles(pictures["three"])[-1] == "semantic labels"
    assert pictures["one"]["iou"] == 1
    assert pictures["one"]["score"] == 0.5
    assert pictures["one"]["instances"] == [["cat", 0.75], ["cat", 0.25]]
    assert pictures["one"]["aspect"] == pytest.approx(32 / 24, abs=1e-3)
    assert pictures["sub/two"]["iou"] == pytest.approx(
        (0.75 + 0) / 2
    )  # background 16 of 24 columns: 3/4; cat 0
    assert pictures["three"]["iou"] is None
    assert {key: picture["signs"] for key, picture in pictures.items()} == {
        "one": [],
        "sub/two": ["no instance"],
        "three": ["<b>dog</b> covers 100 %"],
        "four": ["12 fragments"],
    }
    assert "<b>dog" not in text
    assert "&lt;b&gt;dog" in text
    assert "my run" in text
    assert "70.0\xa0%" in text
    assert "best 62.5\xa0% at 0.1" in text
    assert text.count("1 min 01 s") >= 5
    assert 'class="note"' not in text.split("<noscript>")[0]
    assert "1 of 4 images: no instance in the label." in text
    assert "1 of 4 images: one class covers more than 90 %." in text
    assert "1 of 4 images: 10 fragments or more." in text
    assert "<h1>pictures<small>run my run</small></h1>" in text
    assert "CAM network: resnet18" in text


def chosen_of(text: str) -> list[tuple[str, str]]:
    """Rank and image id of the pictures on the first screen."""
    return re.findall(r'<h3><b>(\w[\w ]*)</b>.*?<p class="id" title="([^"]*)">', text, re.DOTALL)


def test_pictures_are_chosen_by_iou_where_there_is_truth(run: RunFolder, data: Data) -> None:
    text = make(run, data)
    assert chosen_of(text) == [("best", "one"), ("worst", "sub/two")]
    assert "label IoU 100.0\xa0%" in text
    assert "Chosen by rank among 2 images with ground-truth masks" in text
    assert text.index('id="chosen"') < text.index("<table")


def test_pictures_are_chosen_by_the_spread_of_their_maps_without_truth(run: RunFolder, data: Data) -> None:
    # Left halves: a map with the values 0 and v has the standard deviation v / 2.
    for image_id, value in zip(IDS, (0.2, 0.8, 0.4, 0.6), strict=True):
        whole = np.zeros((1, *SIZE), np.float32)
        whole[:, :, : SIZE[1] // 2] = value
        run.path(CAM, image_id).unlink()
        cam = np.zeros((1, *strided_size(SIZE)), np.float32)
        run.write(CAM, Cam(np.zeros(1, np.int64), cam, whole), image_id)
    text = make(run, replace(data, truths={}))
    assert chosen_of(text) == [("best", "sub/two"), ("median", "four"), ("median", "three"), ("worst", "one")]
    assert "spread 0.40" in text
    assert "Chosen by rank among 4 images: as there are no ground-truth masks" in text


def test_maps_that_cover_everything(run: RunFolder, data: Data) -> None:
    run.path(CAM, "four").unlink()
    cam = np.ones((1, *strided_size(SIZE)), np.float32)
    run.write(CAM, Cam(np.zeros(1, np.int64), cam, np.ones((1, *SIZE), np.float32)), "four")
    text = make(run, data)
    assert pictures_of(text)["four"]["signs"] == ["12 fragments", "map covers 100 %"]
    assert "1 of 4 images: the map covers nearly everything." in text
    assert "map covers" not in json.dumps(pictures_of(make(run, data, covering=1.0)))


def test_pictures_without_a_label(run: RunFolder, data: Data) -> None:
    for artifact in (SEMANTIC_LABEL, INSTANCE_LABEL):
        run.path(artifact, "one").unlink()
    assert "1 of 4 images: no label that can be read." in make(run, data)


def test_a_class_called_background_has_a_row_beside_the_background(run: RunFolder, data: Data) -> None:
    names = ("cat", "background")
    per_class = {"_background_": 0.875, "cat": 0.5, "background": 0.25}
    run.path(METRICS).unlink()
    run.write(METRICS, {"pictures": 2, "semantic_label": {"miou": 0.5, "iou_per_class": per_class}})
    text = make(run, replace(data, images=ImageSet(names, data.images.records)))
    table = text[text.index("<summary>Classes</summary>") : text.index("</details>")]
    rows = re.findall(
        r"<tr><td>(?:<span[^>]*></span>)?([^<]+)</td>.*?</span>([\d.]+)\xa0%</td>", table, re.DOTALL
    )
    assert rows == [("_background_", "87.5"), ("cat", "50.0"), ("background", "25.0")]


def test_without_a_data_set(run: RunFolder) -> None:
    text = make(run, Data())
    pictures = pictures_of(text)
    assert set(pictures) == set(IDS)
    assert titles(pictures["one"]) == ["CAM", "confident label", "instance labels", "semantic labels"]
    assert pictures["one"]["classes"] == ["cat"]
    assert pictures["one"]["iou"] is None
    assert "--voc-root" in text
    assert min(pictures.values(), key=lambda picture: picture["rank"])["id"] != "one"


def test_no_network_is_said_and_fields_can_be_left_out(run: RunFolder, data: Data) -> None:
    assert "train_irn has not finished" in make(run, data)
    run.write(IRN_NETWORK, Checkpoint("irn", "resnet18", (), {}))  # would be refused if it were read
    text = make(run, data, fields=False)
    assert "train_irn has not finished" not in text
    assert "boundary" not in titles(pictures_of(text)["one"])


def test_number_of_pictures(run: RunFolder, data: Data) -> None:
    text = make(run, data, max_pictures=2)
    assert len(pictures_of(text)) == 2
    assert "2 of 4 images are shown" in text
    assert 'id="pictures"' not in make(run, data, max_pictures=0)


def test_a_damaged_file_is_left_out(run: RunFolder, data: Data, caplog: pytest.LogCaptureFixture) -> None:
    run.path(CAM, "one").write_bytes(b"rubbish")
    data.items[0].path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        pictures = pictures_of(make(run, data))
    assert titles(pictures["one"])[0] == "confident label"
    assert titles(pictures["three"])[:2] == ["photograph", "CAM"]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("one.npy" in message for message in messages) == 1
    assert sum("one.png" in message and "empty" in message for message in messages) == 1


def test_labels_of_another_picture_size(run: RunFolder, data: Data, caplog: pytest.LogCaptureFixture) -> None:
    run.path(SEMANTIC_LABEL, "one").unlink()
    run.write(SEMANTIC_LABEL, np.zeros((5, 5), np.uint8), "one")
    with caplog.at_level(logging.WARNING):
        assert pictures_of(make(run, data))["one"]["iou"] is None
    assert "one: not shown" in caplog.text


def test_an_unfinished_run_is_shown(tmp_path: Path, data: Data) -> None:
    run = RunFolder(tmp_path / "young")
    run.write_record(StageRecord("train_cam", "f", {}, {}, False, {}, 0.0, {}))
    text = make(run, data)
    assert "not finished" in text
    assert 'id="gallery"' not in text
    assert make(run, data).count("<tr><td>") == text.count("<tr><td>")  # the report itself is no stage of it


def test_variants_of_a_training_are_stages(run: RunFolder, data: Data) -> None:
    name = "train_segmenter/deeplab"
    run.write_record(StageRecord(name, "f", {}, {}, True, {"images": 1}, 5.0, {}))
    (run.stage_dir(name) / "losses.jsonl").write_text('{"step": 1, "cross_entropy": 0.5}\n')
    (run.stage_dir(name) / "validation.jsonl").write_text('{"step": 1, "miou": 0.5}\n')
    text = make(run, data)
    assert f">{name}</h3>" in text
    assert f">{name}, validation</h3>" in text
    assert "of all models" not in text
    (run.stage_dir("train_segmenter/other")).mkdir()
    (run.stage_dir("train_segmenter/other") / "validation.jsonl").write_text('{"step": 2, "miou": 0.25}\n')
    assert ">miou of all models, validation</h3>" in make(run, data)
    assert text.index(f"<td>{name}</td>") < text.index("<td>evaluate</td>")


def test_nothing_to_report(tmp_path: Path, data: Data) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere: holds no results.*--run-dir"):
        make(RunFolder(tmp_path / "nowhere"), data)


def test_bad_parameters_and_files(run: RunFolder, data: Data) -> None:
    with pytest.raises(ConfigError, match="max_pictures"):
        make(run, data, max_pictures=-1)
    with pytest.raises(ConfigError, match="thumbnail"):
        make(run, data, thumbnail=8)
    for content in ("[", '{"miou": 1}'):
        (run.stage_dir("evaluate") / "sweep.json").write_text(content)
        with pytest.raises(ArtifactError, match=r"sweep\.json"):
            make(run, data)
