"""What a stage reads follows from its parameters; a run that made nothing stands in nobody's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import irn_pipeline.stages.catalogue as command_line
from irn_pipeline.artifacts import (
    CAM_NETWORK,
    INSTANCE_LABEL,
    IR_LABEL,
    SEMANTIC_LABEL,
    Checkpoint,
    write_checkpoint,
)
from irn_pipeline.configs import config_folder
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.engine.command import Pipeline
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError, CheckpointError, DataError
from irn_pipeline.models import SegmenterParams, build_segmenter
from irn_pipeline.stages import (
    make_cam,
    mine_relations,
    synthesize_labels,
    train_cam,
    train_irn,
    train_segmenter,
)
from irn_pipeline.stages.catalogue import main, stage_main
from irn_pipeline.trained_networks import segmenter_artifact

CPU = Execution(device="cpu", precision="float32", workers=1, quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    root = tmp_path_factory.mktemp("read") / "voc"
    generate_demo(root, num_images=4, num_heldout=0, min_size=(64, 64), max_size=(64, 64))
    return load_source(Source(voc_root=str(root)))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def work(stage: Any, run: RunFolder, data: DataSet, params: Any, **execution: Any) -> StageRecord:
    return run_stage(stage, Job(run, params, data, replace(CPU, **execution)))


# --- what is read ---


@pytest.mark.parametrize(
    ("stage", "params", "expected"),
    [
        (train_irn.STAGE, train_irn.Params(), {IR_LABEL}),
        (train_irn.STAGE, train_irn.Params(backbone_weights="cam"), {IR_LABEL, CAM_NETWORK}),
        (train_irn.STAGE, train_irn.Params(original_checkpoint="res50_irn.pth"), set()),
        (
            train_irn.STAGE,
            train_irn.Params(original_checkpoint="res50_irn.pth", backbone_weights="cam"),
            set(),
        ),
        (train_segmenter.STAGE, SegmenterParams(), {INSTANCE_LABEL, SEMANTIC_LABEL}),
        (
            train_segmenter.STAGE,
            SegmenterParams(backbone_weights="cam"),
            {INSTANCE_LABEL, SEMANTIC_LABEL, CAM_NETWORK},
        ),
        (train_segmenter.STAGE, SegmenterParams(labels="truth"), set()),
        (train_segmenter.STAGE, SegmenterParams(labels="truth", backbone_weights="cam"), {CAM_NETWORK}),
        (
            train_segmenter.STAGE,
            SegmenterParams(
                model="semiconv_mask_rcnn", labels="truth", backbone_weights="cam", start_from="network.pt"
            ),
            set(),
        ),
        (make_cam.STAGE, make_cam.Params(), {CAM_NETWORK}),
    ],
)
def test_what_is_read_follows_from_the_parameters(stage: Any, params: Any, expected: set[Any]) -> None:
    assert set(stage.read(params)) == expected


@pytest.mark.parametrize(
    ("stage", "params", "expected"),
    [
        (train_cam.STAGE, train_cam.Params(), {}),
        (train_cam.STAGE, train_cam.Params(backbone_weights="none"), {}),
        (train_cam.STAGE, train_cam.Params(backbone_weights="r.pth"), {"backbone_weights": ["r.pth"]}),
        (
            train_cam.STAGE,
            train_cam.Params(backbone_weights="r.pth", original_checkpoint="o.pth"),
            {"original_checkpoint": ["o.pth"]},
        ),
        (train_irn.STAGE, train_irn.Params(backbone_weights="cam"), {}),
        (train_irn.STAGE, train_irn.Params(original_checkpoint="o.pth"), {"original_checkpoint": ["o.pth"]}),
        (
            make_cam.STAGE,
            make_cam.Params(from_model="one/train_segmenter/deeplabv3"),
            {"from_model": ["one/train_segmenter/deeplabv3/network.pt"]},
        ),
        (
            make_cam.STAGE,
            make_cam.Params(from_cams=("a", "b")),
            {"from_cams": [f"{folder}/train_{i:04d}.npy" for folder in "ab" for i in range(4)]},
        ),
        (
            mine_relations.STAGE,
            mine_relations.Params(cam_dir="a"),
            {"cam_dir": [f"a/train_{i:04d}.npy" for i in range(4)]},
        ),
        (
            synthesize_labels.STAGE,
            synthesize_labels.Params(cam_dir="a"),
            {"cam_dir": [f"a/train_{i:04d}.npy" for i in range(4)]},
        ),
        (
            train_segmenter.STAGE,
            SegmenterParams(model="semiconv_mask_rcnn", start_from="n.pt", backbone_weights="r.pth"),
            {"start_from": ["n.pt"]},
        ),
        (train_segmenter.STAGE, SegmenterParams(backbone_weights="r.pth"), {"backbone_weights": ["r.pth"]}),
    ],
)
def test_files_that_parameters_name_are_known(
    data: DataSet, run: RunFolder, stage: Any, params: Any, expected: dict[str, list[str]]
) -> None:
    found = stage.files(Job(run, params, data, CPU))
    assert {
        name: [path.as_posix() for one in sets for path in one.of.values()] for name, sets in found.items()
    } == expected


def test_a_list_of_ones_own_counts_by_its_content(data: DataSet, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("train_0000\n")
    for value, expected in (("train", set()), (str(tmp_path / "some.txt"), {"mean_shift_list"})):
        found = train_irn.STAGE.files(Job(run, train_irn.Params(mean_shift_list=value), data, CPU))  # type: ignore[misc]
        assert found.keys() == expected


def test_true_masks_need_no_stage_before(data: DataSet, run: RunFolder) -> None:
    params = SegmenterParams(
        model="deeplabv3",
        labels="truth",
        backbone="resnet18",
        backbone_weights="none",
        epochs=1,
        batch_size=2,
        crop=32,
    )
    record = work(train_segmenter.STAGE, run, data, params)
    assert (record.reads, record.counts, record.facts["precision"]) == ({}, {"images": 4}, "float32")
    assert run.has(segmenter_artifact("deeplabv3-on-truth"))


def test_true_masks_that_are_not_there_are_told(data: DataSet, run: RunFolder) -> None:
    without = replace(data, load_truth=lambda image_id: None)
    params = SegmenterParams(labels="truth", backbone="resnet18", backbone_weights="none")
    with pytest.raises(
        DataError, match=r"no ground-truth mask of an object in the 4 images.*SegmentationObject"
    ):
        work(train_segmenter.STAGE, run, without, params)


def test_the_cam_network_that_is_read_must_be_there_and_is_recorded(data: DataSet, run: RunFolder) -> None:
    run.write_record(StageRecord("mine_relations", "1", {}, {}, True, {}, 0.0, {}))
    params = train_irn.Params(backbone="resnet18", backbone_weights="cam")
    with pytest.raises(
        ArtifactError, match="train_irn reads the network of stage train_cam, which is not there"
    ):
        work(train_irn.STAGE, run, data, params)
    run.write_record(StageRecord("train_cam", "2", {}, {}, True, {}, 0.0, {}))
    run.write(CAM_NETWORK, Checkpoint("cam", "resnet18", DEMO_CLASSES, {"conv1.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError):  # no such weights: the training fails before it begins
        work(train_irn.STAGE, run, data, params)
    record = run.record("train_irn")
    assert record is not None
    assert record.reads == {"mine_relations": "1", "train_cam": "2"}


@pytest.mark.parametrize(
    ("stage", "words", "told"),
    [
        ("make_cam", ["--from-cams", "a", "--scales", "1.0"], "--scales: --from-cams gives the maps"),
        (
            "train_cam",
            ["--original-checkpoint", "o.pth", "--lr", "1"],
            "--lr: --original-checkpoint replaces",
        ),
        (
            "train_irn",
            ["--original-checkpoint", "o.pth", "--epochs=2"],
            "--epochs: --original-checkpoint replaces",
        ),
        ("sweep", ["--cam-dir", "a"], "--cam-dir: without --cam no activation maps are read"),
        ("train_irn", ["--original-checkpoint", "o.pth", "--backbone", "resnet50"], "nowhere"),
        ("sweep", ["--cam-dir", "a", "--cam"], "nowhere"),
    ],
)
def test_flags_of_what_is_not_read_are_refused(
    stage: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = ["--voc-root", "nowhere", "--run-dir", str(tmp_path / "run")]
    assert stage_main(stage, [*words, *where]) == 1
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1
    ranged = [word.replace("--", f"--{stage}.") if word.startswith("--") else word for word in words]
    assert (
        main(["1", stage, *(word.replace("-", "_").replace("__", "--", 1) for word in ranged), *where]) == 1
    )
    line = capsys.readouterr().err
    assert (told.split(": ")[-1] in line) and line.count("\n") == 1


# --- runs that failed before they made anything ---


def refused_start(folder: Path) -> list[SegmenterParams]:
    """Trained models that --start-from does not take: one of other classes, one that is no Mask R-CNN."""
    found = []
    for name, kind, classes in (("a.pt", "mask_rcnn", ("cat",)), ("b.pt", "cam", DEMO_CLASSES)):
        write_checkpoint(folder / name, Checkpoint(kind, "resnet18", classes, {"x": torch.zeros(1)}))
        found.append(
            SegmenterParams(
                model="semiconv_mask_rcnn",
                labels="truth",
                backbone="resnet18",
                channels=16,
                start_from=str(folder / name),
            )
        )
    return found


def missing_weights(folder: Path) -> list[train_cam.Params]:
    return [
        train_cam.Params(backbone="resnet18", backbone_weights=str(folder / n)) for n in ("a.pth", "b.pth")
    ]


@pytest.mark.parametrize(
    ("stage", "attempts"), [(train_segmenter.STAGE, refused_start), (train_cam.STAGE, missing_weights)]
)
def test_what_failed_at_the_start_does_not_block_the_next_try(
    data: DataSet, run: RunFolder, tmp_path: Path, stage: Any, attempts: Callable[[Path], list[Any]]
) -> None:
    for number, params in enumerate(attempts(tmp_path)):
        with pytest.raises(CheckpointError, match=r"[ab]\.pth?: "):
            work(stage, run, data, params, seed=number)
    record = run.record(stage.folder(params))
    assert record is not None
    assert not record.complete
    assert "b.pt" in str(record.params)


def test_a_network_to_start_from_is_known_by_its_content(
    data: DataSet, run: RunFolder, tmp_path: Path
) -> None:
    values: dict[str, Any] = {
        "labels": "truth", "backbone": "resnet18", "short_side": 32, "long_side": 32, "channels": 16,
        "boxes_per_image": 4, "epochs": 1, "batch_size": 4,
    }  # fmt: skip
    state = build_segmenter(SegmenterParams(**values), len(DEMO_CLASSES)).state_dict()
    network = tmp_path / "network.pt"
    write_checkpoint(network, Checkpoint("mask_rcnn", "resnet18", DEMO_CLASSES, state))
    params = SegmenterParams(model="semiconv_mask_rcnn", start_from=str(network), **values)
    done = work(train_segmenter.STAGE, run, data, params)
    moved = network.rename(tmp_path / "moved.pt")
    again = work(train_segmenter.STAGE, run, data, replace(params, start_from=str(moved)))
    assert again.fingerprint == done.fingerprint
    write_checkpoint(
        moved, Checkpoint("mask_rcnn", "resnet18", DEMO_CLASSES, {k: v + 1 for k, v in state.items()})
    )
    with pytest.raises(ArtifactError, match=r"--start-from .*moved.pt: its content has changed"):
        work(train_segmenter.STAGE, run, data, replace(params, start_from=str(moved)))


# --- a data set that was not named ---


@pytest.fixture
def ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The flags that ranges of stages were run with, in an empty working folder."""
    seen: list[list[str]] = []
    whole = Pipeline.run_range

    def run_range(self: Pipeline[Any], chosen: list[str], words: list[str]) -> None:
        seen.append(words)
        if "data/demo" not in words:
            whole(self, chosen, words)

    monkeypatch.setattr(Pipeline, "run_range", run_range)
    monkeypatch.setattr(command_line, "_make_demo_set", lambda: None)
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.mark.parametrize(
    "words", [["--run-dir", "runs/mine"], ["--run_dir=runs/mine"], ["--run-dir", "../mine"]]
)
@pytest.mark.parametrize("stages", [[], ["1-3"], ["evaluate", "report"]])
def test_a_forgotten_data_set_is_asked_for(
    ranges: list[list[str]], stages: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*stages, *words]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: no data set: give --voc-root DIR")
    assert line.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("words", [[], ["--quiet"], ["--run-dir", "runs/demo"], ["--run-dir=./runs/demo/"]])
def test_the_demo_runs_in_its_own_folder(ranges: list[list[str]], words: list[str]) -> None:
    assert main(["1-3", *words]) == 0
    assert ranges[0][:3] == ["--config", str(config_folder() / "demo.yaml"), "--voc-root"]


def test_the_demo_goes_on_where_it_was_begun(ranges: list[list[str]]) -> None:
    run = RunFolder(Path("elsewhere"))
    run.write_record(StageRecord("train_cam", "0", {}, {}, True, {}, 0.0, {}, data="data/demo"))
    run.write_record(StageRecord("make_cam", "0", {}, {}, True, {}, 0.0, {}))
    assert main(["--run-dir", "elsewhere"]) == 0
    assert "data/demo" in ranges[0]
    run.write_record(StageRecord("make_cam", "0", {}, {}, True, {}, 0.0, {}, data="photos.csv"))
    assert main(["--run-dir", "elsewhere"]) == 1
