"""The pipeline from Python: the README's block as it stands, settings, errors."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from irn_pipeline import Predictor, class_names, read_labels, run_stages
from irn_pipeline.artifacts import CAM_NETWORK, INSTANCE_LABEL, SEMANTIC_LABEL, Checkpoint
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.datasets.voc import load_voc
from irn_pipeline.engine.invocation import Invocation
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ArtifactError, ConfigError, DataError, IrnError, ShapeError
from irn_pipeline.structures import Instances
from tests.stages.conftest import CONFIG, TinyRun

README = Path(__file__).parents[2] / "README.md"


def test_block_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate_demo(tmp_path / "voc", num_images=4, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    records = load_voc(tmp_path / "voc", class_names=DEMO_CLASSES).images.records
    rows = ["image,label"]
    for record, name in zip(records, ("beach/dog", "beach/kite", "garden", "house"), strict=True):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        record.path.rename(tmp_path / "photos" / f"{name}.jpg")
        rows.append(",".join([f"{name}.jpg", *(DEMO_CLASSES[class_id] for class_id in record.class_ids)]))
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    (tmp_path / "mine.yaml").write_text(CONFIG)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "cat.jpg").write_bytes((tmp_path / "photos" / "garden.jpg").read_bytes())
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = (text for text in blocks if "run_stages" in text)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), found)

    assert found["run"] == Path("runs/mine")
    size = read_image(Path("photos/beach/dog.jpg")).shape[:2]
    label, instances, masks = found["label"], found["instances"], found["found"]
    assert isinstance(label, np.ndarray) and label.shape == size
    assert isinstance(instances, Instances) and instances.size == size
    assert set(found["names"]) <= set(rows[1].split(",")[1:])  # type: ignore[call-overload]
    assert isinstance(masks, Instances) and masks.size == read_image(Path("new/cat.jpg")).shape[:2]
    assert len(class_names("runs/mine")) == len(
        set(",".join(r.split(",", 1)[1] for r in rows[1:]).split(","))
    )
    done = RunFolder(Path("runs/mine")).record("synthesize_labels")
    assert done is not None
    assert (done.params["exp_times"], done.params["radius"]) == (6, 3), "the keyword, and the file's value"

    # Again: all is kept; other parameters are an exception, and another model too.
    run_stages(
        "make_cam-mine_relations",
        image_dir="photos",
        label_csv="tags.csv",
        run_dir="runs/mine",
        config="mine.yaml",
    )
    with pytest.raises(ArtifactError, match=r"beta was 10\.0, is now 2"):
        run_stages(
            "5", image_dir="photos", label_csv="tags.csv", run_dir="runs/mine", config="mine.yaml",
            synthesize_labels={"beta": 2, "exp_times": 6},
        )  # fmt: skip
    predictor = Predictor("runs/mine", "mask_rcnn")
    again = predictor(read_image(Path("new/cat.jpg")), min_score=0.0)
    assert np.array_equal(again.select(again.scores >= 0.5).masks, masks.masks)
    assert len(again) and again.scores.max() < 1
    with pytest.raises(ArtifactError, match="trained in runs/mine: mask_rcnn"):
        Predictor("runs/mine", "deeplabv3")
    with pytest.raises(DataError, match=r"cat\.png"):
        predictor("new/cat.png")


class Seen:
    """What a call would have run."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.params: dict[str, object] = {}
        self.values: object = None


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    made = Seen()

    def note(self: Invocation) -> None:
        made.params = {stage.name: self.params[stage.name] for stage in self.stages}
        made.names, made.values = list(made.params), self.values

    monkeypatch.setattr(Invocation, "run", note)
    return made


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        ("2-3", ["make_cam", "mine_relations"]),
        ("train_irn-evaluate", ["train_irn", "synthesize_labels", "train_segmenter", "evaluate"]),
        (["export_labels", "make_cam"], ["make_cam", "export_labels"]),
        (["train_cam-make_cam", "5"], ["train_cam", "make_cam", "synthesize_labels"]),
    ],
)
def test_ways_to_name_stages(seen: Seen, stages: str | list[str], names: list[str]) -> None:
    assert run_stages(stages, run_dir="x", voc_root="y") == Path("x")
    assert seen.names == names


def test_values_arrive_as_from_a_file(seen: Seen, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(yaml.safe_dump({"seed": 3, "workers": 2, "train_cam": {"epochs": 9, "lr": 0.5}}))
    run_stages(
        ["1-3", "predict"], run_dir=tmp_path / "run", config=config, preset="advcam", image_dir=tmp_path, workers=4,
        label_csv="naïve, table.csv", classes="cat", train_cam={"lr": np.float64(0.25), "long_side": (64, 96)},
        make_cam={"scales": 1.0}, predict={"images": tmp_path / "new"}, synthesize_labels=None,
    )  # fmt: skip
    values, params = seen.values, seen.params
    assert (values.seed, values.workers) == (3, 4)  # type: ignore[attr-defined]
    assert (values.image_dir, values.label_csv) == (str(tmp_path), "naïve, table.csv")  # type: ignore[attr-defined]
    assert values.run_dir == str(tmp_path / "run")  # type: ignore[attr-defined]
    assert values.classes == ["cat"]  # type: ignore[attr-defined]
    cam = params["train_cam"]
    assert (cam.epochs, cam.lr, cam.long_side) == (9, 0.25, (64, 96))  # type: ignore[attr-defined]
    assert params["make_cam"].scales == (1.0,)  # type: ignore[attr-defined]
    assert params["mine_relations"].fg_threshold == 0.35, "the preset's"  # type: ignore[attr-defined]
    assert params["predict"].images == str(tmp_path / "new")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        ("1", {"voc_rot": "x"}, r"run_stages\(\): unknown key 'voc_rot'; did you mean 'voc_root'\?"),
        ("1", {"train_cam": {"epoch": 1}}, "unknown key 'epoch' in train_cam; did you mean 'epochs'"),
        ("1", {"train_cam": 3}, "train_cam must be a dictionary of parameters, got 3"),
        ("1", {"voc_root": "x", "train_cam": {"epochs": "three"}}, "train_cam.epochs"),
        ("1", {"voc_root": object()}, "values must be numbers, texts, lists or paths"),
        ("make_cams", {"voc_root": "x"}, "no stage 'make_cams'; did you mean 'make_cam'"),
        ("train_irn-make_cam", {"voc_root": "x"}, "make_cam comes before train_irn"),
        ("1", {}, "no data set: give --voc-root DIR"),
        ("1", {"config": "none.yaml"}, "none.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_an_exception(
    tmp_path: Path, stages: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_stages(stages, run_dir=tmp_path, **settings)


def test_logging_of_the_caller_is_put_back(tmp_path: Path) -> None:
    root, handler = logging.getLogger(), logging.FileHandler(tmp_path / "own.log")
    root.addHandler(handler)
    before, level = root.handlers[:], root.level
    try:
        with pytest.raises(IrnError):
            run_stages("make_cam", run_dir=tmp_path, voc_root=tmp_path / "none", quiet=True)
        assert (root.handlers, root.level) == (before, level)
        root.error("still open")
    finally:
        root.removeHandler(handler)
        handler.close()
    assert "still open" in (tmp_path / "own.log").read_text()


def test_labels_are_read_without_fragments(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    masks = np.zeros((2, 3, 4), np.bool_)
    masks[0, 0], masks[1, 2] = True, True
    made = Instances(np.array([0.5, 0], np.float32), masks, np.array([1, 0]))
    run.write(SEMANTIC_LABEL, np.full((3, 4), 2, np.uint8), "a/b")
    run.write(INSTANCE_LABEL, made, "a/b")
    run.write(CAM_NETWORK, Checkpoint("cam", "resnet18", ("cat", "犬"), {}))
    label, instances = read_labels(tmp_path, "a/b")
    assert (label == 2).all()
    assert instances.scores.tolist() == [0.5]
    assert np.array_equal(instances.masks, masks[:1])
    assert len(read_labels(str(tmp_path), "a/b", keep_fragments=True)[1]) == 2
    assert class_names(tmp_path) == ("cat", "犬")
    with pytest.raises(ArtifactError, match="run stage synthesize_labels first"):
        read_labels(tmp_path, "c")
    with pytest.raises(ArtifactError, match="run stage train_cam first"):
        class_names(tmp_path / "empty")


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_no_picture_is_an_error(whole_run: TinyRun, image: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"must be \(H, W, 3\) uint8 RGB"):
        Predictor(whole_run.run_dir, "mask_rcnn")(image)
