"""Labels again from kept scores, and figures over thresholds. IRNet is untrained: nothing is learned here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import (
    CAM,
    CAM_SWEEP,
    INSTANCE_LABEL,
    IRN_NETWORK,
    SEMANTIC_LABEL,
    SWEEP,
    WALKED_SCORES,
    Checkpoint,
)
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError, ConfigError, DataError, ShapeError
from irn_pipeline.evaluation import SemanticTally
from irn_pipeline.export.report_records import read_sweep
from irn_pipeline.metrics.instance import InstanceEvaluator
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.ops.background_search import best_background
from irn_pipeline.ops.cam import cam_label
from irn_pipeline.ops.label_params import LabelParams
from irn_pipeline.ops.labels import labels_from_scores
from irn_pipeline.stages import mine_relations, sweep, synthesize_labels
from irn_pipeline.structures import Cam
from irn_pipeline.walked_scores import WalkedScores, read_walked_scores, write_walked_scores

SMALL: dict[str, Any] = {"exp_times": 2, "radius": 2, "centroid_iterations": 5}
CPU = Execution(device="cpu", precision="float32", workers=1, quiet=True)
THRESHOLDS = (0.1, 0.3, 0.6)


class Bench:
    """Three pictures, their maps and IRNet."""

    def __init__(self, folder: Path) -> None:
        generate_demo(folder / "voc", num_images=3, num_heldout=1, min_size=(64, 64), max_size=(64, 68))
        self.data: DataSet = load_source(Source(voc_root=str(folder / "voc")))
        torch.manual_seed(0)
        state = IrnNetwork(backbone="resnet18").state_dict()
        self.network = Checkpoint("irn", "resnet18", DEMO_CLASSES, state)

    def new_run(self, folder: Path) -> RunFolder:
        run, rng = RunFolder(folder), np.random.default_rng(0)
        run.write(IRN_NETWORK, self.network)
        for stage in ("train_irn", "make_cam"):
            run.write_record(StageRecord(stage, "0", {}, {}, True, {}, 0.0, {}))
        for record in self.data.items:
            truth = self.data.ground_truth(record.image_id)
            assert truth is not None
            height, width = truth.label.shape
            y, x = np.mgrid[:height, :width] / 64
            centres = rng.uniform(0.2, 0.8, (len(record.class_ids), 2, 1, 1))
            maps = np.exp(-((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) / 0.1).astype(np.float32)
            run.write(CAM, Cam(np.array(record.class_ids), maps[:, ::4, ::4], maps), record.image_id)
        return run

    def work(self, run: RunFolder, **params: Any) -> StageRecord:
        values = synthesize_labels.Params(**{**SMALL, **params})
        return run_stage(synthesize_labels.STAGE, Job(run, values, self.data, CPU))

    def labels(self, run: RunFolder) -> list[np.ndarray[Any, Any]]:
        found: list[np.ndarray[Any, Any]] = []
        for record in self.data.items:
            instances = run.read(INSTANCE_LABEL, record.image_id)
            label = run.read(SEMANTIC_LABEL, record.image_id)
            found += [label, instances.masks, instances.class_ids]
        return found

    def sweep(self, run: RunFolder, **params: Any) -> Any:
        run_stage(sweep.STAGE, Job(run, sweep.Params(**params), self.data, CPU))
        return run.read(CAM_SWEEP if params.get("cam") else SWEEP)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def run(bench: Bench, tmp_path: Path) -> RunFolder:
    return bench.new_run(tmp_path / "run")


def test_labels_from_scores_equal_those_of_the_whole_way(
    bench: Bench, run: RunFolder, tmp_path: Path
) -> None:
    bench.work(run, keep_scores=True)
    other = {"semantic_bg_threshold": 0.45, "instance_bg_threshold": 0.35}
    run.path(IRN_NETWORK).unlink()  # neither network nor maps are read
    for record in bench.data.items:
        run.path(CAM, record.image_id).unlink()
    before = {r.image_id: run.path(WALKED_SCORES, r.image_id).read_bytes() for r in bench.data.items}
    again = bench.work(run, from_scores=True, **other)
    assert again.counts["images"] == 3
    assert {name: run.path(WALKED_SCORES, name).read_bytes() for name in before} == before
    fresh = bench.new_run(tmp_path / "fresh")
    expected = bench.work(fresh, **other)
    assert not any(fresh.has(WALKED_SCORES, name) for name in before)
    assert (again.fingerprint, again.reads) == (expected.fingerprint, expected.reads)
    assert again.params["from_scores"] is True
    assert again.params["semantic_bg_threshold"] == 0.45
    for made, wanted in zip(bench.labels(run), bench.labels(fresh), strict=True):
        assert made.shape == wanted.shape
        assert (made == wanted).mean() >= 0.999
    assert {"read", "network", "walk", "labels", "write"} == expected.sections.keys()
    assert bench.work(run, **other).counts["kept"] == 3  # the same labels, asked for in the plain way


def test_a_score_for_each_picture_is_the_same_with_and_without_kept_scores(
    bench: Bench, run: RunFolder, tmp_path: Path
) -> None:
    bench.work(run, keep_scores=True)
    plain = bench.labels(run)
    again = bench.work(run, from_scores=True, bg_search=(0.1, 0.9))
    fresh = bench.new_run(tmp_path / "fresh")
    expected = bench.work(fresh, bg_search=(0.1, 0.9))
    assert again.fingerprint == expected.fingerprint
    searched = bench.labels(run)
    for made, wanted in zip(searched, bench.labels(fresh), strict=True):
        assert made.shape == wanted.shape
        assert (made == wanted).mean() >= 0.999
    # It is one of the scores that are compared, and not that of the thresholds in every picture.
    assert any(not np.array_equal(a, b) for a, b in zip(plain, searched, strict=True))
    for record, label in zip(bench.data.items, searched[::3], strict=True):
        kept = run.read(WALKED_SCORES, record.image_id)
        assert kept.evidence is not None
        found = best_background(kept.evidence, (0.1, 0.9))
        assert found is not None
        by_score = LabelParams(semantic_bg_threshold=found)
        maps = torch.from_numpy(kept.maps).float()
        assert (label == labels_from_scores(maps, kept.class_ids, kept.size, by_score)[0]).all()


def test_scores_without_evidence_say_what_to_do_and_nothing_is_lost(bench: Bench, run: RunFolder) -> None:
    bench.work(run, keep_scores=True)
    labels = bench.labels(run)
    for record in bench.data.items:  # as they were written before there was evidence
        kept = run.read(WALKED_SCORES, record.image_id)
        run.write(WALKED_SCORES, replace(kept, evidence=None), record.image_id)
    with pytest.raises(
        ArtifactError, match=r"written by a version without --bg-search.*--overwrite --keep-scores"
    ):
        bench.work(run, from_scores=True, bg_search=(0.1, 0.9))
    assert all(np.array_equal(a, b) for a, b in zip(labels, bench.labels(run), strict=True))
    assert bench.work(run, from_scores=True, semantic_bg_threshold=0.4).counts["images"] == 3


def test_scores_can_be_kept_later_and_are_no_other_result(bench: Bench, run: RunFolder) -> None:
    first = bench.work(run)
    with pytest.raises(ArtifactError, match=r"no scores were kept of 3 images.*--keep-scores"):
        bench.work(run, from_scores=True, semantic_bg_threshold=0.5)
    labels = bench.labels(run)
    second = bench.work(run, keep_scores=True)
    assert second.fingerprint == first.fingerprint
    assert second.counts["images"] == 3
    assert all(np.array_equal(a, b) for a, b in zip(labels, bench.labels(run), strict=True))
    assert bench.work(run, from_scores=True).counts["kept"] == 3


def test_scores_made_otherwise_are_refused_and_nothing_is_lost(bench: Bench, run: RunFolder) -> None:
    with pytest.raises(ArtifactError, match="--keep-scores first"):
        bench.work(run, from_scores=True)
    bench.work(run, keep_scores=True)
    labels = bench.labels(run)
    with pytest.raises(ArtifactError, match=r"beta was 10.0, is now 8.0\); with --from-scores only semantic"):
        bench.work(run, from_scores=True, beta=8.0, semantic_bg_threshold=0.4)
    run.write_record(StageRecord("make_cam", "1", {}, {}, True, {}, 0.0, {}))
    with pytest.raises(ArtifactError, match="results of make_cam that it reads were made again"):
        bench.work(run, from_scores=True, semantic_bg_threshold=0.4)
    assert all(np.array_equal(a, b) for a, b in zip(labels, bench.labels(run), strict=True))


def test_the_crf_backend_is_no_part_of_the_result(bench: Bench, run: RunFolder) -> None:
    pytest.importorskip("pydensecrf")
    prints = [
        run_stage(
            mine_relations.STAGE,
            Job(run, mine_relations.Params(crf_iterations=1, crf_backend=backend), bench.data, CPU),
        ).fingerprint
        for backend in ("lattice", "pydensecrf")
    ]
    assert prints[0] == prints[1]


def test_a_crf_library_that_is_missing_ends_the_stage(
    bench: Bench, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    job = Job(run, mine_relations.Params(crf_backend="pydensecrf"), bench.data, CPU)
    with pytest.raises(ConfigError, match="--crf-backend lattice"):
        run_stage(mine_relations.STAGE, job)


def test_sweep_equals_labels_made_and_measured_one_by_one(bench: Bench, run: RunFolder) -> None:
    bench.work(run, keep_scores=True, min_area=0.002)
    found = bench.sweep(run, thresholds=THRESHOLDS)
    for entry in found:
        threshold = entry["threshold"]
        bench.work(
            run, from_scores=True, min_area=0.002,
            semantic_bg_threshold=threshold, instance_bg_threshold=threshold,
        )  # fmt: skip
        names = bench.data.images.class_names
        semantic, instances = SemanticTally(names), InstanceEvaluator(len(names), (0.5,))
        for record in bench.data.items:
            truth, made = bench.data.ground_truth(record.image_id), run.read(INSTANCE_LABEL, record.image_id)
            assert truth is not None
            semantic.add(run.read(SEMANTIC_LABEL, record.image_id), truth)
            instances.add(made.select(made.scores > 0), truth)
        assert entry["miou"] == semantic.report()["miou"]
        assert entry["ap50"] == pytest.approx(instances.result().mean_ap[0], abs=1e-6)
    assert len({entry["miou"] for entry in found}) == 3
    path = run.path(SWEEP)
    assert path == run.root / "evaluate" / "sweep.json"
    series = read_sweep(json.loads(path.read_text()), str(path))
    assert [one.name for one in series] == ["miou", "ap50"]
    assert tuple(x for x, _ in series[0].points) == THRESHOLDS


def test_sweep_of_the_cams_needs_no_scores(bench: Bench, run: RunFolder) -> None:
    found = bench.sweep(run, cam=True, thresholds=(0.6, 0.1, 0.1))
    assert [entry["threshold"] for entry in found] == [0.1, 0.6]
    for entry in found:
        tally = SemanticTally(bench.data.images.class_names)
        for record in bench.data.items:
            cam, truth = run.read(CAM, record.image_id), bench.data.ground_truth(record.image_id)
            assert truth is not None
            tally.add(cam_label(cam.high_res_cam, cam.class_ids, entry["threshold"]), truth)
        assert entry["miou"] == tally.report()["miou"]
    assert not run.has(SWEEP)


def test_a_sweep_of_nothing_says_what_to_do(bench: Bench, run: RunFolder) -> None:
    with pytest.raises(ArtifactError, match="run stage synthesize_labels"):
        bench.sweep(run)
    run.write_record(StageRecord("synthesize_labels", "0", {}, {}, True, {}, 0.0, {}))
    with pytest.raises(DataError, match=r"no kept scores of the 3 images.*--keep-scores"):
        bench.sweep(run)
    image_id = bench.data.items[0].image_id
    small = WalkedScores(np.array([0]), np.ones((1, 2, 2), np.float16), (8, 8))
    run.write(WALKED_SCORES, small, image_id)
    with pytest.raises(ArtifactError, match=f"scores of {image_id} do not match"):
        bench.sweep(run)


@pytest.mark.parametrize("thresholds", [(), (0.5, 1.5), (float("nan"),)])
def test_impossible_thresholds_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        sweep.Params(thresholds=thresholds)


def test_the_table_marks_the_best() -> None:
    lines = sweep.sweep_table(
        [{"threshold": 0.1, "miou": 0.25, "ap50": None}, {"threshold": 0.25, "miou": 0.5, "ap50": 0.125}]
    ).splitlines()
    assert [line.split() for line in lines] == [
        ["threshold", "mIoU", "AP50"], ["0.1", "25.0", "-"], ["0.25", "50.0*", "12.5*"]
    ]  # fmt: skip


def test_scores_come_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((2, 3, 4)).astype(np.float16)
    path = tmp_path / "a.npz"
    for count in (2, 0):
        evidence = None if count else np.array([0.5, -np.inf], np.float32)
        write_walked_scores(path, WalkedScores(np.arange(count), maps[:count], (9, 14), evidence))
        found = read_walked_scores(path)
        assert (found.evidence is None) == (evidence is None)
        assert evidence is None or np.array_equal(found.evidence, evidence)
        assert found.size == (9, 14)
        assert np.array_equal(found.maps, maps[:count])
        assert found.class_ids.tolist() == list(range(count))
    with pytest.raises(ShapeError, match="walked scores of 2 maps"):
        WalkedScores(np.arange(2), maps, (9, 17))
    good = {"class_ids": np.arange(2), "maps": maps, "size": np.array([9, 14])}
    bad: list[dict[str, Any]] = [
        {"maps": maps[:1]},
        {"maps": maps.astype(np.float32)},
        {"maps": maps * np.float16("inf")},
        {"class_ids": np.array([0, 300])},
        {"class_ids": np.array([{}, {}], object)},
        {"size": np.array([9])},
        {"evidence": np.array([0.5, np.nan])},
        {"evidence": np.zeros((2, 2))},
        {"proof": np.zeros(2)},
    ]
    for change in bad:
        np.savez(path, **{**good, **change})
        with pytest.raises(ArtifactError, match=r"a\.npz: holds no walked scores .*--keep-scores"):
            read_walked_scores(path)
    for content in (b"", b"PK\x03\x04 cut", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"a\.npz: holds no walked scores"):
            read_walked_scores(path)


def test_labels_of_an_earlier_version_are_made_again_with_what_came_later(
    bench: Bench, run: RunFolder
) -> None:
    bench.work(run, keep_scores=True, min_area=0.0)
    record = run.record("synthesize_labels")
    assert record is not None and record.params["instance_score"] == "max"
    earlier = {name: value for name, value in record.params.items() if name != "instance_score"}
    run.write_record(replace(record, params=earlier))
    bench.work(run, keep_scores=True, min_area=0.0)  # the same, as what came later has its default
    masks = [run.read(INSTANCE_LABEL, item.image_id) for item in bench.data.items]
    bench.work(run, from_scores=True, min_area=0.0, instance_score="mean")
    for item, before in zip(bench.data.items, masks, strict=True):
        now = run.read(INSTANCE_LABEL, item.image_id)
        # Kept scores are in float16, so a few pixels may change sides.
        assert now.masks.shape == before.masks.shape
        assert (now.masks == before.masks).mean() > 0.999
        assert (now.scores <= before.scores + 1e-3).all()
    with pytest.raises(ArtifactError, match="instance_score was mean, is now max"):
        bench.work(run, keep_scores=True, min_area=0.0)
