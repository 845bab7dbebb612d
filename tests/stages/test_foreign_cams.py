"""Labels made from other projects' CAM files equal those of our own; and the presets that go with them.

The maps are made up and IRNet is untrained: nothing is learned here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import (
    CAM,
    INSTANCE_LABEL,
    IR_LABEL,
    IRN_NETWORK,
    SEMANTIC_LABEL,
    Checkpoint,
)
from irn_pipeline.cam_files import read_cam_file
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.invocation import Invocation
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.yaml_text import read_yaml
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.stages import evaluate, mine_relations, synthesize_labels
from irn_pipeline.stages.catalogue import PIPELINE, stage_main
from irn_pipeline.structures import Cam

STAGES: dict[str, Any] = {s.name: s for s in (mine_relations.STAGE, synthesize_labels.STAGE, evaluate.STAGE)}
SMALL: dict[str, dict[str, Any]] = {
    "mine_relations": {"crf_iterations": 2},
    "synthesize_labels": {
        "exp_times": 2,
        "radius": 2,
        "centroid_iterations": 5,
        "instance_bg_threshold": 0.1,
    },
    "evaluate": {},
}
LABELLING = ("mine_relations", "synthesize_labels")
Foreign = Callable[[Cam], dict[Any, Any]]


def background_first(maps: np.ndarray) -> np.ndarray:
    return np.concatenate([1 - maps.max(axis=0, initial=0, keepdims=True), maps])


def as_original(cam: Cam) -> dict[str, Any]:
    return {
        "keys": torch.from_numpy(cam.class_ids), "cam": torch.from_numpy(cam.cam), "high_res": cam.high_res_cam
    }  # fmt: skip


def as_amn(cam: Cam) -> dict[str, Any]:
    return {**as_original(cam), "cam": torch.from_numpy(background_first(cam.cam))}


def as_amn_twice(cam: Cam) -> dict[str, Any]:
    return {**as_amn(cam), "high_res": background_first(cam.high_res_cam)}


def as_half(cam: Cam) -> dict[str, Any]:
    return {
        "keys": cam.class_ids, "cam": cam.cam.astype(np.float16), "high_res": cam.high_res_cam.astype(np.float16)
    }  # fmt: skip


def as_clip_es(cam: Cam) -> dict[str, Any]:
    return {"keys": cam.class_ids, "attn_highres": cam.high_res_cam.astype(np.float16)}


def without_cam(cam: Cam) -> dict[str, Any]:
    return {"keys": torch.from_numpy(cam.class_ids), "high_res": cam.high_res_cam}


def as_seam(cam: Cam) -> dict[Any, Any]:
    return dict(zip(cam.class_ids.tolist(), cam.high_res_cam, strict=True))


FORMATS: dict[str, Foreign] = {
    "irn": as_original,
    "AMN": as_amn,
    "AMN (twice)": as_amn_twice,
    "irn (float16)": as_half,
    "CLIP-ES (float16, cam derived)": as_clip_es,
    "irn (cam derived)": without_cam,
    "SEAM, MCTformer (cam derived)": as_seam,
}


@dataclass(frozen=True)
class Bench:
    """Three pictures, their maps, and IRNet in a run folder."""

    voc_root: Path
    data: DataSet
    cams: dict[str, Cam]
    run: RunFolder

    def save(self, folder: Path, change: Foreign) -> Path:
        """Every picture's maps in the form that `change` gives them."""
        folder.mkdir()
        for image_id, cam in self.cams.items():
            np.save(folder / f"{image_id}.npy", change(cam))  # type: ignore[arg-type]
        return folder

    def work(self, stage: str, cam_dir: Path | None, run_dir: Path) -> StageRecord:
        """Run one stage on the maps of a folder, or else on make_cam's."""
        run_dir.mkdir(exist_ok=True)
        if not (run_dir / "train_irn").exists():
            (run_dir / "train_irn").symlink_to(self.run.root / "train_irn")
        params = STAGES[stage].params(cam_dir=None if cam_dir is None else str(cam_dir), **SMALL[stage])
        execution = Execution(device="cpu", precision="float32", workers=1, quiet=True)
        return run_stage(STAGES[stage], Job(RunFolder(run_dir), params, self.data, execution))

    def labels(self, run_dir: Path) -> list[np.ndarray]:
        """All that both stages have made."""
        run, found = RunFolder(run_dir), []
        for image_id in self.cams:
            instances = run.read(INSTANCE_LABEL, image_id)
            found += [run.read(IR_LABEL, image_id), run.read(SEMANTIC_LABEL, image_id)]
            found += [instances.masks, instances.scores, instances.class_ids]
        return found


def smooth_maps(count: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One bump a class, (count, H, W) float32 in [0, 1], in steps of 1/64."""
    y, x = np.mgrid[: size[0], : size[1]]
    centres = rng.uniform(0.2, 0.8, (count, 2)) * size
    bumps = [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 12.0**2)) for cy, cx in centres]
    return (np.round(64 * np.array(bumps)) / 64).astype(np.float32).reshape(count, *size)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("foreign")
    generate_demo(folder / "voc", num_images=3, num_heldout=1, min_size=(64, 64), max_size=(64, 64))
    data = load_source(Source(voc_root=str(folder / "voc")))
    rng, cams = np.random.default_rng(0), {}
    for record in data.items:
        truth = data.ground_truth(record.image_id)
        assert truth is not None
        height, width = truth.label.shape
        high_res = smooth_maps(len(record.class_ids), (height, width), rng)
        # The middle of a cell of 4 pixels is the mean of its inner four; a sum of 64ths over 4 fits in float16 too.
        cells = sum(high_res[:, i::4, j::4] for i in (1, 2) for j in (1, 2)) / np.float32(4)
        cams[record.image_id] = Cam(np.array(record.class_ids), cells, high_res)
    assert len(cams) == 3
    run = RunFolder(folder / "run")
    torch.manual_seed(0)
    state = IrnNetwork(backbone="resnet18").state_dict()
    run.write(IRN_NETWORK, Checkpoint("irn", "resnet18", DEMO_CLASSES, state))
    run.write_record(StageRecord("train_irn", "0", {}, {}, True, {}, 0.0, {}))
    return Bench(folder / "voc", data, cams, run)


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


@pytest.fixture(scope="module")
def expected(bench: Bench) -> list[np.ndarray]:
    """Labels made from our own CAM files, where stage make_cam leaves them."""
    bench.run.write_record(StageRecord("make_cam", "1", {}, {}, True, {}, 0.0, {}))
    for image_id, cam in bench.cams.items():
        bench.run.write(CAM, cam, image_id)
    for stage in LABELLING:
        assert bench.work(stage, None, bench.run.root).reads["make_cam"] == "1"
    labels = bench.labels(bench.run.root)
    for kind in range(3):
        assert all(made.any() for made in labels[kind::5])
    return labels


@pytest.mark.parametrize("name", FORMATS)
def test_labels_equal_those_of_our_own_format(
    bench: Bench, expected: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = bench.save(tmp_path / "theirs", FORMATS[name])
    for image_id, cam in bench.cams.items():
        found, _ = read_cam_file(folder / f"{image_id}.npy")
        assert np.array_equal(found.class_ids, cam.class_ids)
        assert np.array_equal(found.cam, cam.cam)
        assert np.array_equal(found.high_res_cam, cam.high_res_cam)
    for stage in LABELLING:
        record = bench.work(stage, folder, tmp_path / "run")
        assert record.reads == ({} if stage == "mine_relations" else {"train_irn": "0"})
        assert record.counts == {"images": 3, "kept": 0, "skipped": 0}
    told = [entry.getMessage() for entry in caplog.records if " files: " in entry.getMessage()]
    assert told == [f"{stage}: 3 files: {name.replace(' (twice)', '')}" for stage in LABELLING]
    labels = bench.labels(tmp_path / "run")
    assert all(np.array_equal(a, b) for a, b in zip(labels, expected, strict=True))


def test_a_folder_that_covers_a_part_of_the_list(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, (_, second, third) = bench.save(tmp_path / "theirs", as_amn), sorted(bench.cams)
    for image_id in (second, third):
        (folder / f"{image_id}.npy").unlink()
    for stage in LABELLING:
        record = bench.work(stage, folder, tmp_path / "run")
        assert record.counts == {"images": 1, "kept": 0, "skipped": 2}
        missing = [e.getMessage() for e in caplog.records if "no such file" in e.getMessage()]
        name = folder / f"{second}.npy"
        assert missing == [f"{stage}: 2 images skipped, the first is {second}: {name}: no such file"]
        caplog.clear()
    np.save(folder / f"{second}.npy", as_original(bench.cams[second]))  # type: ignore[arg-type]
    for stage in LABELLING:
        record = bench.work(stage, folder, tmp_path / "run")
        assert record.counts == {"images": 1, "kept": 1, "skipped": 1}


def test_their_maps_are_known_by_content(bench: Bench, tmp_path: Path) -> None:
    folder, image_id = bench.save(tmp_path / "theirs", as_original), min(bench.cams)
    for stage in LABELLING:
        bench.work(stage, folder, tmp_path / "run")
    moved = folder.rename(tmp_path / "moved")
    for stage in LABELLING:
        assert bench.work(stage, moved, tmp_path / "run").counts["kept"] == 3
    cam = bench.cams[image_id]
    other = Cam(cam.class_ids, cam.cam / 2, cam.high_res_cam)
    np.save(moved / f"{image_id}.npy", as_original(other))  # type: ignore[arg-type]
    for stage in LABELLING:
        with pytest.raises(
            ArtifactError, match=rf"--cam-dir {moved}/{image_id}.npy: its content has changed"
        ):
            bench.work(stage, moved, tmp_path / "run")


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("stage", LABELLING)
def test_files_that_cannot_be_used_are_named_and_skipped(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    ids, marker = sorted(bench.cams), tmp_path / "it_ran"
    folder = bench.save(tmp_path / "theirs", as_original)
    cam = bench.cams[ids[1]]
    cut = Cam(cam.class_ids, cam.cam[:, 2:], cam.high_res_cam[:, 8:])
    for image_id, content in zip(ids, ({"keys": _Hostile(marker)}, as_original(cut)), strict=False):
        np.save(folder / f"{image_id}.npy", content)  # type: ignore[arg-type]
    assert bench.work(stage, folder, tmp_path / "run").counts == {"images": 1, "kept": 0, "skipped": 2}
    for image_id, reason in zip(ids, ("refused", "image, but"), strict=False):
        told = [e.getMessage() for e in caplog.records if f"{image_id}: skipped: " in e.getMessage()]
        assert len(told) == 1
        assert told[0].startswith(f"{image_id}: skipped: {folder / image_id}.npy: ")
        assert reason in told[0]
    assert not marker.exists()


def test_a_picture_without_class_is_background(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, image_id = bench.save(tmp_path / "theirs", as_original), min(bench.cams)
    np.save(folder / f"{image_id}.npy", {"keys": torch.zeros(0, dtype=torch.int64)})  # type: ignore[arg-type]
    for stage in LABELLING:
        bench.work(stage, folder, tmp_path / "run")
        assert f"{stage}: 2 files: irn, 1 files: RIB without class" in caplog.text
    made, size = RunFolder(tmp_path / "run"), bench.cams[image_id].size
    assert np.array_equal(made.read(IR_LABEL, image_id), np.zeros(size))
    assert np.array_equal(made.read(SEMANTIC_LABEL, image_id), np.zeros(size))
    assert made.read(INSTANCE_LABEL, image_id).masks.shape == (0, *size)


def test_classes_of_another_count_are_told(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, image_id = bench.save(tmp_path / "theirs", as_original), min(bench.cams)
    content = as_original(bench.cams[image_id])
    number = len(DEMO_CLASSES)
    absent = sorted(set(range(number)) - set(content["keys"].tolist()))
    path = folder / f"{image_id}.npy"
    np.save(path, {**content, "keys": np.array(absent[:1] * len(content["keys"]))[:1], "cam": content["cam"][:1],
                   "high_res": content["high_res"][:1]})  # type: ignore[arg-type]  # fmt: skip
    bench.work("mine_relations", folder, tmp_path / "run")
    assert "2 files: irn, 1 files: irn, of classes that the tags do not name" in caplog.text
    np.save(path, {**content, "keys": content["keys"] + number})  # type: ignore[arg-type]
    bench.work("mine_relations", folder, tmp_path / "other_run")
    assert f"{image_id}: skipped: {path}: holds maps of class" in caplog.text
    assert f"the data set has {number} classes" in caplog.text


def test_their_maps_are_evaluated_as_ours(bench: Bench, tmp_path: Path) -> None:
    figures = []
    for name, change in (("theirs", as_amn_twice), ("same", as_original)):
        bench.work("evaluate", bench.save(tmp_path / name, change), tmp_path / f"run_{name}")
        figures.append((tmp_path / f"run_{name}" / "evaluate" / "metrics.json").read_text())
    assert '"cam"' in figures[0]
    assert figures[0] == figures[1]


def flags(bench: Bench, run_dir: Path, *more: str) -> list[str]:
    return ["--voc-root", str(bench.voc_root), "--run-dir", str(run_dir), "--device", "cpu", "--precision", "float32",
            "--workers", "1", "--quiet", *more]  # fmt: skip


def test_a_folder_and_a_preset_over_the_command_line(bench: Bench, tmp_path: Path) -> None:
    folder, run = bench.save(tmp_path / "theirs", as_original), RunFolder(tmp_path / "run")
    run.root.mkdir()
    (run.root / "train_irn").symlink_to(bench.run.root / "train_irn")
    wanted: dict[str, dict[str, Any]] = {
        "mine_relations": {"fg_threshold": 0.35, "bg_threshold": 0.15},
        "synthesize_labels": {"semantic_bg_threshold": 0.25, "cam_power": 1.5},
    }
    for stage, values in wanted.items():
        given = flags(bench, run.root, "--cam-dir", str(folder), "--preset", "advcam")
        assert stage_main(stage, given) == 0
        record = run.record(stage)
        assert record is not None
        assert {**record.params, **values, "cam_dir": str(folder)} == record.params
        assert record.counts == {"images": 3, "kept": 0, "skipped": 0}


@pytest.mark.parametrize("stage", STAGES)
def test_a_wrong_folder_is_one_line_and_leaves_nothing(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    (tmp_path / "empty").mkdir()
    for folder, reason in ((tmp_path / "gone", "no such folder"), (tmp_path / "empty", "holds no .npy file")):
        assert stage_main(stage, flags(bench, tmp_path / "run", "--cam-dir", str(folder))) == 1
        # Three pictures do not show all classes, which is said before.
        *before, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: --cam-dir {folder}: {reason}")
        assert all("warning" in text for text in before)
        assert not (tmp_path / "run").exists()


PUBLISHED = {
    "irn": (0.30, 0.05, 0.25, 1.0),
    "advcam": (0.35, 0.15, 0.25, 1.5),
    "rib_voc": (0.35, 0.17, 0.27, 1.3),
    "rib_coco": (0.35, 0.17, 0.22, None),
    "recam_voc": (0.35, 0.10, 0.28, 1.0),
    "recam_coco": (0.35, 0.10, 0.25, 1.0),
    "amn": (0.45, 0.15, 0.25, 1.3),
    "clims_voc": (0.30, 0.10, 0.20, None),
    "clims_coco": (0.35, 0.10, 0.25, None),
    "lpcam": (0.45, 0.25, 0.35, None),
    "cti": (0.40, 0.26, None, None),
}


def test_every_preset_is_published_and_the_other_way_round() -> None:
    assert PIPELINE.presets is not None
    assert {path.stem for path in PIPELINE.presets.iterdir()} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_sets_the_published_values_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(
        Invocation,
        "run",
        lambda self: taken.update({s.name: self.params[s.name] for s in self.stages}),
    )
    for stage in LABELLING:
        PIPELINE.run_one(stage, ["--preset", name])
    fg, bg, semantic, power = PUBLISHED[name]
    mining, synthesis = taken["mine_relations"], taken["synthesize_labels"]
    usual = synthesize_labels.Params()
    assert (mining.fg_threshold, mining.bg_threshold) == (fg, bg)
    assert synthesis.semantic_bg_threshold == (usual.semantic_bg_threshold if semantic is None else semantic)
    assert synthesis.cam_power == (usual.cam_power if power is None else power)
    rest = [f.name for f in fields(mining) if f.name not in ("fg_threshold", "bg_threshold")]
    assert all(getattr(mining, field) == getattr(mine_relations.Params(), field) for field in rest)
    rest = [f.name for f in fields(synthesis) if f.name not in ("semantic_bg_threshold", "cam_power")]
    assert all(getattr(synthesis, field) == getattr(usual, field) for field in rest)
    assert PIPELINE.presets is not None
    assert read_yaml(PIPELINE.presets / f"{name}.yaml").keys() <= {"plan", *LABELLING}


def test_a_preset_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_main("mine_relations", ["--preset", "advcm"]) == 1
    assert "no such preset; did you mean 'advcam'?" in capsys.readouterr().err
