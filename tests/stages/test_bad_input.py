"""What users get wrong, over the command line: one clear line, or a warning, a skip and a count."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from irn_pipeline.artifacts import (
    CAM,
    CAM_NETWORK,
    INSTANCE_LABEL,
    IR_LABEL,
    IRN_NETWORK,
    SEMANTIC_LABEL,
    Checkpoint,
    write_checkpoint,
)
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.stages.catalogue import main, stage_main
from irn_pipeline.trained_networks import segmenter_artifact
from tests.stages.conftest import TinyRun

ANNOTATION = "<annotation><object><name>{}</name></object></annotation>\n"


def lines_but_the_loaders(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines of standard error without those about the tiny set's classes."""
    about_data = ("classes with no image: ", " warnings about the data set; ")
    lines = capsys.readouterr().err.splitlines(keepends=True)
    return [line for line in lines if not any(part in line for part in about_data)]


def the_only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which must be one error line, behind the loader's warnings about the tiny set."""
    text = "".join(lines_but_the_loaders(capsys))
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "Traceback" not in text
    return text


def make_voc(root: Path, source: TinyRun, image_ids: list[str]) -> Path:
    """A VOC folder with some pictures of the demo set."""
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (root / folder).mkdir(parents=True)
        for image_id in image_ids:
            name = f"{image_id}.{suffix}"
            shutil.copy(source.voc_root / folder / name, root / folder / name)
    shutil.copy(source.voc_root / "class_names.txt", root)
    return root


@pytest.fixture
def voc(whole_run: TinyRun, tmp_path: Path) -> Path:
    """Three good pictures."""
    return make_voc(tmp_path / "voc", whole_run, ["train_0000", "train_0001", "train_0002"])


def no_root(root: Path) -> Path:
    shutil.rmtree(root)
    return root


def empty_root(root: Path) -> Path:
    shutil.rmtree(root)
    root.mkdir()
    return root


def no_picture(root: Path) -> Path:
    shutil.rmtree(root / "JPEGImages")
    (root / "JPEGImages").mkdir()
    return root / "JPEGImages"


def unknown_class(root: Path) -> Path:
    path = root / "Annotations" / "train_0001.xml"
    path.write_text(ANNOTATION.format("unicorn"))
    return path


def damaged_xml(root: Path) -> Path:
    path = root / "Annotations" / "train_0001.xml"
    path.write_text("<annotation><object>")
    return path


def no_xml(root: Path) -> Path:
    (root / "Annotations" / "train_0001.xml").unlink()
    return root / "Annotations"


def no_label_at_all(root: Path) -> Path:
    for path in (root / "Annotations").iterdir():
        path.write_text("<annotation></annotation>")
    return root


@pytest.mark.parametrize(
    "damage", [no_root, empty_root, no_picture, unknown_class, damaged_xml, no_xml, no_label_at_all]
)
@pytest.mark.parametrize("stage", ["train_cam", "make_cam"])
def test_data_sets_that_cannot_be_used(
    whole_run: TinyRun,
    voc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Path],
    stage: str,
) -> None:
    culprit = damage(voc)
    run_dir = tmp_path / "run"
    flags = ["--config", str(whole_run.config), "--voc-root", str(voc), "--run-dir", str(run_dir)]
    assert stage_main(stage, flags) == 1
    assert str(culprit) in the_only_line(capsys)
    assert not run_dir.exists()


def test_a_list_that_names_absent_pictures(
    whole_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_list = tmp_path / "list.txt"
    image_list.write_text("train_0000\n2007_000032\n")
    assert main([*whole_run.flags(), "--image-list", str(image_list)]) == 1
    line = the_only_line(capsys)
    assert str(image_list) in line
    assert "2007_000032" in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["7"], "'7'"),
        (["0-3"], "'0-3'"),
        (["5-2"], "'5-2'"),
        (["make_cm"], "did you mean 'make_cam'?"),
        (["2", "nonsense"], "'nonsense'"),
        (["2", "--make_cam.scale", "1.0"], "did you mean 'make_cam.scales'?"),
        (["make_cam", "--sclaes", "1.0"], "did you mean 'scales'?"),
        (["2", "--make_cam.scales", "big"], "scales"),
        (["train_irn", "--crop", "63"], "crop is 63"),
        (["make_cam", "--device", "cuda:42"], "cuda:42"),
        (["make_cam", "--image-list", "nowhere"], "nowhere"),
        (["make_cam", "--class-names", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_impossible_words_and_flags(
    whole_run: TinyRun, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole_run.run_dir.rglob("*")}
    split = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    assert main([*words[:split], *whole_run.flags(), *words[split:]]) == 1
    assert named in the_only_line(capsys)
    assert before == {path: path.stat().st_mtime_ns for path in whole_run.run_dir.rglob("*")}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("make_cam: {scalse: [1.0]}\n", "'scalse' in make_cam; did you mean 'scales'?"),
        ("voc_rot: here\n", "did you mean 'voc_root'?"),
        ("train_cam: {epochs: many}\n", "epochs"),
        ("train_cam: 3\n", "train_cam"),
        ("classes: cat\n", "wrong.yaml: classes must be a list, found 'cat'; write 'classes: [cat]'"),
        ("a: [", "YAML"),
    ],
)
@pytest.mark.parametrize("command", ["1-3", "train_cam"])
def test_wrong_yaml_files(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, named: str, command: str
) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(content)
    flags = ["--config", str(config), "--voc-root", str(voc), "--run-dir", str(tmp_path / "run")]
    assert main([command, *flags]) == 1
    line = the_only_line(capsys)
    assert named in line
    assert not (tmp_path / "run").exists()


def test_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_main("make_cam", ["--run-dir", str(tmp_path / "run")]) == 1
    assert "--voc-root" in the_only_line(capsys)


def test_a_missing_stage_is_named(
    whole_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, needed in (
        ("make_cam", "train_cam"),
        ("mine_relations", "make_cam"),
        ("train_irn", "mine_relations"),
        ("synthesize_labels", "make_cam"),
        ("train_segmenter", "synthesize_labels"),
    ):
        flags = [*whole_run.flags(), "--run-dir", str(tmp_path / "run")]
        assert stage_main(stage, flags) == 1
        assert f"run stage {needed} on this --run-dir first" in the_only_line(capsys)


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def other_classes(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(checkpoint.kind, checkpoint.backbone, ("cat", "dog"), checkpoint.state)


def other_backbone(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(checkpoint.kind, "resnet34", checkpoint.class_names, checkpoint.state)


def unknown_backbone(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(checkpoint.kind, "vgg16", checkpoint.class_names, checkpoint.state)


def other_kind(checkpoint: Checkpoint) -> Checkpoint:
    kind = "irn" if checkpoint.kind == "cam" else "cam"
    return Checkpoint(kind, checkpoint.backbone, checkpoint.class_names, {"x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("stage", "artifact", "change"),
    [
        ("make_cam", CAM_NETWORK, other_classes),
        ("make_cam", CAM_NETWORK, other_backbone),
        ("make_cam", CAM_NETWORK, unknown_backbone),
        ("make_cam", CAM_NETWORK, other_kind),
        ("synthesize_labels", IRN_NETWORK, other_backbone),
        ("synthesize_labels", IRN_NETWORK, other_kind),
    ],
)
def test_checkpoints_of_another_network(
    run_copy: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
    stage: str,
    artifact: Artifact[Checkpoint],
    change: Callable[[Checkpoint], Checkpoint],
) -> None:
    copy = run_copy("train_cam", "make_cam", "train_irn")
    run = RunFolder(copy.run_dir)
    changed = change(run.read(artifact))
    run.path(artifact).unlink()
    write_checkpoint(run.path(artifact), changed)
    run.path(CAM, "train_0004").unlink()
    assert stage_main(stage, copy.flags()) == 1
    assert str(run.path(artifact)) in the_only_line(capsys)


@pytest.mark.parametrize("content", ["hostile", "text", "resnet34"])
@pytest.mark.parametrize("stage", ["train_cam", "train_irn", "train_segmenter"])
def test_weights_that_cannot_be_used(
    run_copy: Callable[..., TinyRun],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    stage: str,
) -> None:
    copy = run_copy("make_cam", "mine_relations", "synthesize_labels")
    weights, marker = tmp_path / "weights.pth", tmp_path / "it_ran"
    if content == "hostile":
        torch.save({"conv1.weight": _Hostile(marker)}, weights)
    elif content == "text":
        weights.write_text("no weights")
    else:
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, weights)
    assert stage_main(stage, [*copy.flags(), "--backbone-weights", str(weights)]) == 1
    assert str(weights) in the_only_line(capsys)
    assert not marker.exists()


def spoil(path: Path, marker: Path) -> None:
    """Put a hostile pickle in a file's place."""
    path.unlink(missing_ok=True)
    np.save(path, {"keys": np.zeros(1, np.int64), "cam": _Hostile(marker)})  # type: ignore[arg-type]


def without_quiet(copy: TinyRun, tmp_path: Path) -> TinyRun:
    config = tmp_path / "loud.yaml"
    config.write_text(copy.config.read_text().replace("quiet: true", "quiet: false"))
    return TinyRun(copy.voc_root, config, copy.run_dir)


@pytest.mark.parametrize("stage", ["mine_relations", "synthesize_labels"])
def test_hostile_and_alien_cams_are_skipped_and_counted(
    run_copy: Callable[..., TinyRun], tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    copy = without_quiet(run_copy("train_cam", "make_cam", "train_irn"), tmp_path)
    run, marker = RunFolder(copy.run_dir), tmp_path / "it_ran"
    spoil(run.path(CAM, "train_0001"), marker)
    cam = run.read(CAM, "train_0002")
    cut = type(cam)(cam.class_ids, cam.cam[:, 2:], cam.high_res_cam[:, 8:])
    run.write(CAM, cut, "train_0002")
    run.path(CAM, "train_0003").unlink()
    assert stage_main(stage, copy.flags()) == 0
    text = capsys.readouterr().err
    for image_id in ("train_0001", "train_0002", "train_0003"):
        warnings = [line for line in text.splitlines() if f"{image_id}: skipped: " in line]
        assert len(warnings) == 1
        assert str(run.path(CAM, image_id)) in warnings[0]
    assert "7 images" in text
    assert "3 skipped" in text
    assert "Traceback" not in text
    assert not marker.exists()
    record = run.record(stage)
    assert record is not None
    assert record.counts == {"images": 7, "kept": 0, "skipped": 3}


@pytest.mark.parametrize("stage", ["mine_relations", "synthesize_labels"])
def test_nothing_but_hostile_cams_is_an_error(
    run_copy: Callable[..., TinyRun], tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    copy = run_copy("train_cam", "make_cam", "train_irn")
    marker = tmp_path / "it_ran"
    for path in (copy.run_dir / "make_cam" / "cam").iterdir():
        spoil(path, marker)
    assert stage_main(stage, copy.flags()) == 1
    lines = lines_but_the_loaders(capsys)
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert "every one of the 10 images was skipped" in lines[-1]
    assert len(lines) == 11
    assert not marker.exists()


def cut_jpeg(root: Path, image_id: str) -> Path:
    path = root / "JPEGImages" / f"{image_id}.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return path


def test_a_cut_jpeg_among_good_ones_is_skipped(
    run_copy: Callable[..., TinyRun], voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    culprit = cut_jpeg(voc, "train_0001")
    copy = without_quiet(run_copy("train_cam", "train_irn", voc_root=voc), tmp_path)
    for stage in ("make_cam", "mine_relations", "synthesize_labels"):
        assert stage_main(stage, copy.flags()) == 0
        text = capsys.readouterr().err
        assert f"train_0001: skipped: {culprit}" in text
        assert "2 images" in text
        assert "1 skipped" in text


def test_a_cut_jpeg_is_left_out_of_a_training_and_counted(
    whole_run: TinyRun, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    culprit = cut_jpeg(voc, "train_0001")
    run_dir = tmp_path / "run"
    flags = ["--config", str(whole_run.config), "--voc-root", str(voc), "--run-dir", str(run_dir)]
    assert stage_main("train_cam", flags) == 0
    text = capsys.readouterr().err
    assert f"train_0001: left out: {culprit}" in text
    assert "1 of 3 images cannot be read and are left out" in text
    assert RunFolder(run_dir).record("train_cam").counts == {"images": 2}


def test_a_picture_that_breaks_during_a_training_stops_it_with_one_line(
    whole_run: TinyRun,
    voc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    culprit = cut_jpeg(voc, "train_0001")
    # As if it had been whole when the stage looked at every picture.
    monkeypatch.setattr(DataSet, "readable", lambda self, job, negatives=False: self.images)
    flags = ["--config", str(whole_run.config), "--voc-root", str(voc), "--run-dir", str(tmp_path / "run")]
    assert stage_main("train_cam", flags) == 1
    # The lines before it warn of a class that none of the three pictures shows.
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert str(culprit) in line
    assert "cut off" in line


def test_pictures_without_a_label_are_left_out_and_counted(
    run_copy: Callable[..., TinyRun], voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (voc / "Annotations" / "train_0001.xml").write_text("<annotation></annotation>")
    copy = run_copy("train_cam", voc_root=voc)
    assert stage_main("make_cam", copy.flags()) == 0
    assert "2 images are used" in capsys.readouterr().err
    assert not RunFolder(copy.run_dir).has(CAM, "train_0001")


def odd_pictures(folder: Path) -> dict[str, tuple[int, int]]:
    """Write odd pictures; their sizes (H, W)."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (37, 50), np.uint8)
    Image.fromarray(grey).save(folder / "grey.jpg")
    Image.fromarray(rng.integers(0, 256, (41, 33, 4), np.uint8), "RGBA").save(folder / "rgba.png")
    Image.fromarray(rng.integers(0, 65536, (30, 45)).astype(np.uint16)).save(folder / "sixteen bits.png")
    Image.fromarray(np.full((1, 1, 3), 90, np.uint8)).save(folder / "one.pixel.png")
    Image.fromarray(rng.integers(0, 256, (1, 60, 3), np.uint8)).save(folder / "line.png")
    Image.fromarray(rng.integers(0, 256, (70, 3, 3), np.uint8)).save(folder / "column.jpg")
    return {
        "grey": (37, 50), "rgba": (41, 33), "sixteen bits": (30, 45), "one.pixel": (1, 1), "line": (1, 60),
        "column": (70, 3),
    }  # fmt: skip


def test_odd_pictures_simply_work(
    run_copy: Callable[..., TinyRun], whole_run: TinyRun, tmp_path: Path
) -> None:
    root = make_voc(tmp_path / "odd", whole_run, [])
    sizes = odd_pictures(root / "JPEGImages")
    for image_id in sizes:
        (root / "Annotations" / f"{image_id}.xml").write_text(ANNOTATION.format(first_class(root)))
    copy = run_copy("train_cam", "train_irn", voc_root=root)
    run = RunFolder(copy.run_dir)
    for stage in ("make_cam", "mine_relations", "synthesize_labels"):
        assert stage_main(stage, copy.flags()) == 0
        record = run.record(stage)
        assert record is not None
        assert record.counts == {"images": len(sizes), "kept": 0, "skipped": 0}
    for path in (root / "JPEGImages").iterdir():
        size = sizes[path.stem]
        assert read_image(path).shape == (*size, 3)
        assert run.read(CAM, path.stem).size == size
        assert np.isfinite(run.read(CAM, path.stem).high_res_cam).all()
        assert run.read(IR_LABEL, path.stem).shape == size
        assert run.read(SEMANTIC_LABEL, path.stem).shape == size
        assert run.read(INSTANCE_LABEL, path.stem).size == size


def first_class(root: Path) -> str:
    return (root / "class_names.txt").read_text().splitlines()[0]


def test_maps_of_another_data_set_are_not_evaluated(
    run_copy: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = run_copy("make_cam")
    run = RunFolder(copy.run_dir)
    cam = run.read(CAM, "train_0002")
    run.write(CAM, type(cam)(cam.class_ids, cam.cam[:, 2:], cam.high_res_cam[:, 8:]), "train_0002")
    assert stage_main("evaluate", copy.flags()) == 1
    line = the_only_line(capsys)
    assert "train_0002" in line
    assert str(copy.run_dir) in line
    assert not (copy.run_dir / "evaluate" / "metrics.json").exists()


def test_a_segmenter_of_another_network_is_not_evaluated(
    run_copy: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = run_copy("train_segmenter")
    path = RunFolder(copy.run_dir).path(segmenter_artifact("mask_rcnn"))
    path.unlink()
    write_checkpoint(path, Checkpoint("mask_rcnn", "resnet18", ("cat", "dog"), {"x": torch.zeros(1)}))
    assert stage_main("evaluate", copy.flags()) == 1
    assert str(path) in the_only_line(capsys)


def test_more_classes_than_voc_are_evaluated(
    run_copy: Callable[..., TinyRun], whole_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = run_copy("make_cam")
    root = tmp_path / "voc"
    shutil.copytree(whole_run.voc_root, root)
    path = root / "SegmentationClass" / "train_0000.png"
    label = np.asarray(Image.open(path)).copy()
    label[:5, :5] = 12
    path.unlink()
    Image.fromarray(label).save(path)
    flags = [*copy.flags(), "--voc-root", str(root)]
    # The demo set has fewer classes than that: a wrong truth must not become a wrong figure.
    assert stage_main("evaluate", flags) == 1
    assert str(path) in the_only_line(capsys)
    names = [*(root / "class_names.txt").read_text().split(), *(f"extra{i}" for i in range(30))]
    (root / "class_names.txt").write_text("\n".join(names))
    assert stage_main("evaluate", flags) == 0
