"""Labels made from other projects' CAM files, over the command line; and the presets that go with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, IR_LABEL, SEMANTIC_LABEL, write_cam
from irn_pipeline.cam_files import read_cam_file
from irn_pipeline.runtime.store import RunFolder
from irn_pipeline.structures import Cam
from stages import mine_relations, synthesize_labels
from stages.__main__ import PIPELINE, stage_main
from tests.stages.conftest import TinyRun

COUNT = 4
IDS = [f"train_{number:04d}" for number in range(COUNT)]
Foreign = Callable[[Cam], dict[str, Any]]


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


FORMATS: dict[str, Foreign] = {
    "irn": as_original,
    "AMN": as_amn,
    "AMN (twice)": as_amn_twice,
    "irn (float16)": as_half,
    "CLIP-ES (float16, cam derived)": as_clip_es,
    "irn (cam derived)": without_cam,
}


@pytest.fixture(scope="module")
def image_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of the pictures."""
    path = tmp_path_factory.mktemp("lists") / "four.txt"
    path.write_text("\n".join(IDS) + "\n")
    return path


@pytest.fixture
def run(run_copy: Callable[..., TinyRun], image_list: Path, tmp_path: Path) -> Callable[..., int]:
    """Function that runs a stage on the four pictures with the CAM files of a folder, into a run folder of a name."""
    copy = run_copy("train_irn")
    config = tmp_path / "loud.yaml"
    config.write_text(copy.config.read_text().replace("quiet: true", "quiet: false"))

    def call(stage: str, folder: Path, name: str, *more: str) -> int:
        target = tmp_path / name / "train_irn"
        if not target.exists():
            target.parent.mkdir()
            target.symlink_to(copy.run_dir / "train_irn")
        return stage_main(
            stage,
            ["--config", str(config), "--voc-root", str(copy.voc_root), "--image-list", str(image_list),
             "--run-dir", str(tmp_path / name), "--cam-dir", str(folder), *more],
        )  # fmt: skip

    return call


def save_all(source: RunFolder, folder: Path, change: Foreign) -> None:
    folder.mkdir()
    for image_id in IDS:
        np.save(folder / f"{image_id}.npy", change(source.read(CAM, image_id)))  # type: ignore[arg-type]


def labels(run: RunFolder) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for image_id in IDS:
        instances = run.read(INSTANCE_LABEL, image_id)
        found += [run.read(IR_LABEL, image_id), run.read(SEMANTIC_LABEL, image_id)]
        found += [instances.masks, instances.scores, instances.class_ids]
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_labels_equal_those_of_our_own_format(
    whole_run: TinyRun,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    save_all(RunFolder(whole_run.run_dir), tmp_path / "theirs", FORMATS[name])
    (tmp_path / "ours").mkdir()
    for image_id in IDS:
        same = read_cam_file(tmp_path / "theirs" / f"{image_id}.npy")[0]
        write_cam(tmp_path / "ours" / f"{image_id}.npy", same)
    for stage in ("mine_relations", "synthesize_labels"):
        capsys.readouterr()
        assert run(stage, tmp_path / "theirs", "run_theirs") == 0
        assert f"{stage}: 4 files: {name.replace(' (twice)', '')}\n" in capsys.readouterr().err
        assert run(stage, tmp_path / "ours", "run_ours") == 0
        assert f"{stage}: 4 files: irn\n" in capsys.readouterr().err
    theirs, ours = (labels(RunFolder(tmp_path / folder)) for folder in ("run_theirs", "run_ours"))
    assert all(np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True))
    assert any(label.any() for label in ours)
    record = RunFolder(tmp_path / "run_theirs").record("mine_relations")
    assert record is not None
    assert record.reads == {}
    if name in ("irn", "AMN", "AMN (twice)"):
        # Nothing is lost on the way, so stage make_cam's own files give the same as well.
        confident = [RunFolder(whole_run.run_dir).read(IR_LABEL, image_id) for image_id in IDS]
        assert all(np.array_equal(a, b) for a, b in zip(confident, ours[::5], strict=True))


def test_a_folder_that_covers_a_part_of_the_list(
    whole_run: TinyRun, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = RunFolder(whole_run.run_dir), tmp_path / "theirs"
    save_all(source, folder, as_original)
    for image_id in IDS[1:3]:
        (folder / f"{image_id}.npy").unlink()
    np.save(folder / f"{IDS[3]}.npy", as_amn(source.read(CAM, IDS[3])))  # type: ignore[arg-type]
    for stage in ("mine_relations", "synthesize_labels"):
        capsys.readouterr()
        assert run(stage, folder, "run_part") == 0
        lines = capsys.readouterr().err.splitlines()
        missing = [line for line in lines if "no such file" in line]
        assert len(missing) == 1
        assert f"2 images skipped, the first is {IDS[1]}: {folder / IDS[1]}.npy" in missing[0]
        assert [line for line in lines if line.endswith(f"{stage}: 1 files: irn, 1 files: AMN")]
        record = RunFolder(tmp_path / "run_part").record(stage)
        assert record is not None
        assert record.counts == {"images": 2, "kept": 0, "skipped": 2}


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("stage", ["mine_relations", "synthesize_labels"])
def test_files_that_cannot_be_used_are_named_and_skipped(
    whole_run: TinyRun,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    source, folder, marker = RunFolder(whole_run.run_dir), tmp_path / "theirs", tmp_path / "it_ran"
    save_all(source, folder, as_original)
    cam = source.read(CAM, IDS[1])
    cut = Cam(cam.class_ids, cam.cam[:, 2:], cam.high_res_cam[:, 8:])
    other = Cam(cam.class_ids + 70, cam.cam, cam.high_res_cam)
    contents: list[Any] = [{"keys": _Hostile(marker)}, as_original(cut), as_original(other)]
    for image_id, content in zip(IDS, contents, strict=False):
        np.save(folder / f"{image_id}.npy", content)
    assert run(stage, folder, "run_bad") == 0
    text = capsys.readouterr().err
    for image_id, reason in zip(IDS, ("refused", "picture, but", "maps of class 7"), strict=False):
        told = [line for line in text.splitlines() if f"{image_id}: skipped: {folder / image_id}.npy" in line]
        assert len(told) == 1
        assert reason in told[0]
    assert "1 images" in text
    assert not marker.exists()


def test_a_picture_without_class_is_background(
    whole_run: TinyRun, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    save_all(RunFolder(whole_run.run_dir), folder, as_original)
    np.save(folder / f"{IDS[0]}.npy", {"keys": torch.zeros(0, dtype=torch.int64)})  # type: ignore[arg-type]
    for stage in ("mine_relations", "synthesize_labels"):
        assert run(stage, folder, "run_empty") == 0
    assert "1 files: RIB without class" in capsys.readouterr().err
    made = RunFolder(tmp_path / "run_empty")
    size = RunFolder(whole_run.run_dir).read(CAM, IDS[0]).size
    assert np.array_equal(made.read(IR_LABEL, IDS[0]), np.zeros(size))
    assert np.array_equal(made.read(SEMANTIC_LABEL, IDS[0]), np.zeros(size))
    assert made.read(INSTANCE_LABEL, IDS[0]).masks.shape == (0, *size)


def test_classes_counted_from_one_are_told(
    whole_run: TinyRun, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = RunFolder(whole_run.run_dir), tmp_path / "theirs"
    save_all(source, folder, as_original)
    image_id = next(i for i in IDS if source.read(CAM, i).class_ids.max() < 2)
    cam = source.read(CAM, image_id)
    np.save(folder / f"{image_id}.npy", {**as_original(cam), "keys": cam.class_ids + 1})  # type: ignore[arg-type]
    assert run("mine_relations", folder, "run_shifted") == 0
    assert "1 files: irn, of classes that the tags do not name" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["mine_relations", "synthesize_labels", "evaluate"])
def test_a_wrong_folder_is_one_line_and_leaves_nothing(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    (tmp_path / "empty").mkdir()
    for folder, reason in ((tmp_path / "gone", "no such folder"), (tmp_path / "empty", "holds no .npy file")):
        assert run(stage, folder, "run_wrong") == 1
        line = capsys.readouterr().err
        assert line.startswith(f"error: --cam-dir {folder}: {reason}")
        assert line.count("\n") == 1
        assert not (tmp_path / "run_wrong" / stage).exists()


def test_their_maps_are_evaluated_as_ours(
    whole_run: TinyRun, run: Callable[..., int], tmp_path: Path
) -> None:
    save_all(RunFolder(whole_run.run_dir), tmp_path / "theirs", as_amn_twice)
    save_all(RunFolder(whole_run.run_dir), tmp_path / "same", as_original)
    figures = []
    for name in ("theirs", "same"):
        assert run("evaluate", tmp_path / name, f"run_{name}") == 0
        figures.append((tmp_path / f"run_{name}" / "evaluate" / "metrics.json").read_text())
    assert '"cam"' in figures[0]
    assert figures[0] == figures[1]


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
        type(PIPELINE),
        "_run",
        lambda self, work, values: taken.update({s.name: params for s, params in work}),
    )
    PIPELINE.run_range([], ["--preset", name])
    for stage in ("mine_relations", "synthesize_labels"):
        alone = taken[stage]
        taken.clear()
        PIPELINE.run_one(stage, ["--preset", name])
        assert taken[stage] == alone
        PIPELINE.run_range([], ["--preset", name])
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
    assert all(taken[s.name] == s.params() for s in PIPELINE.stages if s.name not in (mining_and_synthesis()))


def mining_and_synthesis() -> tuple[str, str]:
    return mine_relations.STAGE.name, synthesize_labels.STAGE.name


def test_a_preset_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_main("mine_relations", ["--preset", "advcm"]) == 1
    assert "no such preset; did you mean 'advcam'?" in capsys.readouterr().err
