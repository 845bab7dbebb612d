"""Every stage, end to end on a tiny set: what is written, and that nothing is made twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irn_pipeline.artifacts import (
    CAM,
    CAM_NETWORK,
    INSTANCE_LABEL,
    IR_LABEL,
    IRN_NETWORK,
    METRICS,
    SEMANTIC_LABEL,
)
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.synthetic import DEMO_CLASSES
from irn_pipeline.datasets.voc import load_voc
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.stages.catalogue import PIPELINE, main, stage_main
from irn_pipeline.trained_networks import segmenter_artifact
from tests.stages.conftest import TinyRun


def modification_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers_in(inner)
    elif value is not None:
        yield value


def test_every_picture_has_every_artifact(whole_run: TinyRun) -> None:
    run = RunFolder(whole_run.run_dir)
    records = load_voc(whole_run.voc_root, class_names=DEMO_CLASSES).images.records
    assert len(records) == 10
    for record in records:
        size = read_image(record.path).shape[:2]
        allowed = {0, *(class_id + 1 for class_id in record.class_ids)}
        cam = run.read(CAM, record.image_id)
        assert cam.size == size
        assert tuple(cam.class_ids) == record.class_ids
        assert cam.cam.dtype == cam.high_res_cam.dtype == np.float32
        for maps in (cam.cam, cam.high_res_cam):
            assert maps.min() >= 0
            assert maps.max() <= 1 + 1e-6
        confident = run.read(IR_LABEL, record.image_id)
        assert confident.shape == size
        assert set(np.unique(confident).tolist()) <= allowed | {255}
        label = run.read(SEMANTIC_LABEL, record.image_id)
        assert label.shape == size
        assert set(np.unique(label).tolist()) <= allowed
        instances = run.read(INSTANCE_LABEL, record.image_id)
        assert instances.size == size or len(instances) == 0
        assert set(instances.class_ids.tolist()) <= set(record.class_ids)
        assert np.isfinite(instances.scores).all()


def test_networks_and_records(whole_run: TinyRun) -> None:
    run = RunFolder(whole_run.run_dir)
    kinds = [
        run.read(artifact).kind for artifact in (CAM_NETWORK, IRN_NETWORK, segmenter_artifact("mask_rcnn"))
    ]
    assert kinds == ["cam", "irn", "mask_rcnn"]
    assert run.read(CAM_NETWORK).class_names == DEMO_CLASSES
    for stage in PIPELINE.stages:
        record = run.record("train_segmenter/mask_rcnn" if stage.name == "train_segmenter" else stage.name)
        assert record is not None
        assert record.complete
        assert record.counts["images"] > 0
        assert record.seconds > 0
        assert "torch" in record.versions
    left = [path.name for path in whole_run.run_dir.rglob("*") if path.name.startswith(".part-")]
    assert left == []
    assert not list(whole_run.run_dir.rglob("resume.pt"))


def test_metrics_hold_every_figure(whole_run: TinyRun) -> None:
    metrics = json.loads((whole_run.run_dir / "evaluate" / "metrics.json").read_text())
    assert metrics["pictures"] == 10
    assert metrics["segmenter"]["pictures"] == 4
    assert metrics["segmenters"] == {"mask_rcnn": metrics["segmenter"]}
    names = ("background", *DEMO_CLASSES)
    for kind in ("cam", "semantic_label"):
        assert 0 <= metrics[kind]["miou"] <= 1
        assert tuple(metrics[kind]["iou_per_class"]) == names
        present = [value for value in metrics[kind]["iou_per_class"].values() if value is not None]
        assert metrics[kind]["miou"] == pytest.approx(sum(present) / len(present), abs=1e-5)
    for kind in ("instance_label", "cam_components", "segmenter"):
        assert {"ap50", "ap70", "ap75", "ap50_class_agnostic", "coco"} <= metrics[kind].keys()
        assert tuple(metrics[kind]["ap50_per_class"]) == DEMO_CLASSES
        assert metrics[kind]["ap50"] >= metrics[kind]["ap70"] >= metrics[kind]["ap75"]
    for kind in ("cam", "semantic_label", "instance_label", "cam_components", "segmenter"):
        shares = metrics[kind].keys() - {"pictures", "instances", "abs_dic", "abs_dic_per_class"}
        counted = {key: metrics[kind][key] for key in shares}
        assert all(0 <= value <= 1 for value in numbers_in(counted)), kind


def test_a_second_run_does_nothing(run_copy: Callable[..., TinyRun]) -> None:
    copy = run_copy(*(stage.name for stage in PIPELINE.numbered))
    before = modification_times(copy.run_dir)
    assert main(["1-6", *copy.flags()]) == 0
    after = modification_times(copy.run_dir)
    assert before.keys() == after.keys()
    changed = [path.name for path in before if before[path] != after[path]]
    assert set(changed) <= {"stage.json"}


def test_a_deleted_artifact_alone_is_made_again(whole_run: TinyRun, run_copy: Callable[..., TinyRun]) -> None:
    copy = run_copy("train_cam", "make_cam")
    victim = RunFolder(copy.run_dir).path(CAM, "train_0003")
    victim.unlink()
    before = modification_times(copy.run_dir / "make_cam" / "cam")
    assert stage_main("make_cam", copy.flags()) == 0
    after = modification_times(copy.run_dir / "make_cam" / "cam")
    assert after.keys() - before.keys() == {victim}
    assert all(after[path] == time for path, time in before.items())
    assert victim.read_bytes() == RunFolder(whole_run.run_dir).path(CAM, "train_0003").read_bytes()
    record = RunFolder(copy.run_dir).record("make_cam")
    assert record is not None
    assert record.counts == {"images": 1, "kept": 9, "skipped": 0}


def test_two_halves_equal_the_whole(
    whole_run: TinyRun, run_copy: Callable[..., TinyRun], tmp_path: Path
) -> None:
    copy = run_copy("train_cam")
    ids = [f"train_{index:04d}" for index in range(10)]
    for name, half in (("first", ids[:4]), ("second", ids[4:])):
        image_list = tmp_path / f"{name}.txt"
        image_list.write_text("\n".join(half))
        assert stage_main("make_cam", [*copy.flags(), "--image-list", str(image_list)]) == 0
    for image_id in ids:
        ours = RunFolder(copy.run_dir).path(CAM, image_id).read_bytes()
        assert ours == RunFolder(whole_run.run_dir).path(CAM, image_id).read_bytes()


def test_labels_do_not_depend_on_the_workers(
    whole_run: TinyRun, run_copy: Callable[..., TinyRun], tmp_path: Path
) -> None:
    copy = run_copy("train_cam", "make_cam", "train_irn")
    image_list = tmp_path / "two.txt"
    image_list.write_text("train_0001\ntrain_0002\n")
    flags = [*copy.flags(), "--image-list", str(image_list), "--workers", "2"]
    assert stage_main("synthesize_labels", flags) == 0
    for image_id in ("train_0001", "train_0002"):
        label = RunFolder(copy.run_dir).read(SEMANTIC_LABEL, image_id)
        assert np.array_equal(label, RunFolder(whole_run.run_dir).read(SEMANTIC_LABEL, image_id))


def test_other_parameters_are_refused_with_both_ways_out(
    run_copy: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = run_copy("train_cam", "make_cam")
    before = modification_times(copy.run_dir)
    assert stage_main("make_cam", [*copy.flags(), "--scales", "1.0", "0.5"]) == 1
    message = capsys.readouterr().err
    assert "--run-dir" in message
    assert "--overwrite" in message
    assert "scales was [1.0], is now [1.0, 0.5]" in message
    assert modification_times(copy.run_dir) == before


def test_evaluate_alone_needs_no_segmenter(run_copy: Callable[..., TinyRun]) -> None:
    copy = run_copy("train_cam", "make_cam")
    assert stage_main("evaluate", copy.flags()) == 0
    metrics = RunFolder(copy.run_dir).read(METRICS)
    assert metrics.keys() == {"protocol", "pictures", "cam", "cam_components"}
