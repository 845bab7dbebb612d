"""Seeds that are fitted before maps are made: the stage resumes, repeats itself, and keeps to tags and parameters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from irn_pipeline.activation_maps import MapMaker
from irn_pipeline.artifacts import CAM, CAM_NETWORK, SEED_CLASSIFIER, SEMANTIC_LABEL, Checkpoint
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.datasets.synthetic import DEMO_CLASSES
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.seeds import cells
from irn_pipeline.seeds.cells import CellClassifier
from irn_pipeline.stages.catalogue import main, stage_main
from irn_pipeline.structures import Cam
from tests.stages.conftest import TinyRun

SMALL = {"pixels": ["--pixel-side", "96"], "centre": ["--centre-side", "96"]}
RunCopy = Callable[..., TinyRun]


def make(run: TinyRun, seeds: str, *more: str) -> int:
    return stage_main("make_cam", [*run.flags(), "--seeds", seeds, *SMALL.get(seeds, []), *more])


def cams_of(run: TinyRun) -> dict[str, Cam]:
    folder = RunFolder(run.run_dir)
    return {
        path.stem: folder.read(CAM, path.stem)
        for path in sorted((run.run_dir / "make_cam" / "cam").iterdir())
    }


def same(one: dict[str, Cam], other: dict[str, Cam]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(cam.high_res_cam, other[image_id].high_res_cam) for image_id, cam in one.items()
    )


def elsewhere(run: TinyRun, folder: Path) -> TinyRun:
    shutil.copytree(run.run_dir / "train_cam", folder / "train_cam")
    return TinyRun(run.voc_root, run.config, folder)


@pytest.mark.parametrize("seeds", ["pixels", "centre"])
def test_every_picture_gets_maps_of_its_tags_and_the_same_ones_again(
    seeds: str, run_copy: RunCopy, tmp_path: Path
) -> None:
    run = run_copy("train_cam")
    assert make(run, seeds) == 0
    made = cams_of(run)
    data = load_source(Source(voc_root=str(run.voc_root)))
    assert set(made) == {record.image_id for record in data.items}
    for record in data.items:
        cam = made[record.image_id]
        assert tuple(cam.class_ids) == record.class_ids
        assert cam.high_res_cam.min() >= 0 and cam.high_res_cam.max() <= 1
        assert cam.high_res_cam.std() > 0
    kept = RunFolder(run.run_dir).read(SEED_CLASSIFIER)
    assert kept.kind == seeds and kept.class_names == DEMO_CLASSES
    assert len(kept.state["bias"]) == (len(DEMO_CLASSES) + 1 if seeds == "pixels" else 1)
    again = elsewhere(run, tmp_path / "again")
    assert make(again, seeds) == 0
    assert same(made, cams_of(again))


def test_an_interrupted_stage_goes_on_without_fitting_again(
    run_copy: RunCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_copy("train_cam")
    assert make(run, "pixels") == 0
    made = cams_of(run)
    for path in sorted((run.run_dir / "make_cam" / "cam").iterdir())[3:]:
        path.unlink()
    monkeypatch.setattr(MapMaker, "_prepared", lambda _: pytest.fail("fitted again"))
    assert make(run, "pixels") == 0
    assert same(made, cams_of(run))


def test_a_classifier_that_other_parameters_left_behind_is_not_used(
    run_copy: RunCopy, tmp_path: Path
) -> None:
    run = run_copy("train_cam")
    assert make(run, "pixels") == 0
    shutil.rmtree(run.run_dir / "make_cam" / "cam")  # as a kill before the first map leaves it
    other = elsewhere(run, tmp_path / "other")
    for one in (run, other):
        assert make(one, "pixels", "--pixel-high", "0.7", "--seed", "3") == 0
    assert same(cams_of(run), cams_of(other))


@pytest.mark.parametrize(
    ("seeds", "words", "told"),
    [
        ("centre", [], "seeds was pixels, is now centre"),
        ("cam", [], "seeds was pixels, is now cam"),
        ("pixels", ["--pixel-low", "0.1"], "pixel_low was 0.2, is now 0.1"),
        ("pixels", ["--seed", "4"], "seed was 0, is now 4"),
        ("pixels", ["--image-list", "LIST"], "the list of images changed"),
    ],
)
def test_results_of_other_seeds_parameters_and_pictures_are_not_mixed(
    seeds: str,
    words: list[str],
    told: str,
    run_copy: RunCopy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_copy("train_cam")
    assert make(run, "pixels") == 0
    made = cams_of(run)
    listed = tmp_path / "some.txt"
    listed.write_text("\n".join(list(made)[:4]))
    assert make(run, seeds, *[word.replace("LIST", str(listed)) for word in words]) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
    assert same(made, cams_of(run))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "pixels", "--scales", "1.0"], "--scales: seeds pixels see images at one size"),
        (
            ["--seeds", "centre", "--feature-affinity", "2"],
            "--feature-affinity: seeds centre already use these features",
        ),
        (
            ["--seeds", "centre", "--pixel-side", "96"],
            "--pixel-side: has no effect with centre; it is for pixels",
        ),
        (["--centre-radius", "0.5"], "--centre-radius: has no effect with cam; it is for centre"),
        (["--seeds", "pixels", "--from-cams", "a"], "seeds pixels are made with the classifier of train_cam"),
        (["--seeds", "pixels", "--pixel-side", "10"], "pixel_side is 10; it must be 64 pixels at least"),
        (["--seeds", "pixels", "--pixel-low", "0.6"], "pixel_low is 0.6 and pixel_high 0.5"),
        (["--seeds", "centre", "--centre-border", "0.5"], "centre_border is 0.5 and centre_radius 0.4"),
        (["--seeds", "middle"], "invalid choice: 'middle'"),
    ],
)
def test_flags_without_effect_and_impossible_values_are_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = ["--voc-root", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    assert stage_main("make_cam", [*where, *words]) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_damaged_classifier_is_named(run_copy: RunCopy, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_copy("train_cam")
    assert make(run, "centre") == 0
    next((run.run_dir / "make_cam" / "cam").iterdir()).unlink()
    folder = RunFolder(run.run_dir)
    kept = folder.read(SEED_CLASSIFIER)
    for damage in (
        lambda: folder.write(SEED_CLASSIFIER, replace(kept, state={"bias": kept.state["bias"]})),
        lambda: folder.path(SEED_CLASSIFIER).write_bytes(b"damaged"),
    ):
        damage()
        assert make(run, "centre") == 1
        error = capsys.readouterr().err
        assert "make_cam/network.pt: holds no classifier of cells; delete it to fit it again" in error
        assert "Traceback" not in error
    folder.path(SEED_CLASSIFIER).unlink()
    assert make(run, "centre") == 0
    assert torch.equal(folder.read(SEED_CLASSIFIER).state["weight0"], kept.state["weight0"])


@pytest.mark.parametrize("seeds", ["pixels", "centre"])
def test_negatives_are_ground_everywhere(
    seeds: str, run_copy: RunCopy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_copy("train_cam")
    data = load_source(Source(voc_root=str(run.voc_root)))
    bare = data.items[0]
    rows = [
        [
            record.path.name,
            *(int(k in record.class_ids and record is not bare) for k in range(len(DEMO_CLASSES))),
        ]
        for record in data.items
    ]
    table = tmp_path / "tags.csv"
    table.write_text("\n".join(",".join(map(str, row)) for row in [["image", *DEMO_CLASSES], *rows]) + "\n")
    seen: list[Tensor] = []
    add = cells.CellSample.add

    def recorded(sample: cells.CellSample, features: list[Tensor], targets: Tensor) -> None:
        seen.append(targets)
        add(sample, features, targets)

    monkeypatch.setattr(cells.CellSample, "add", recorded)
    words = [
        "--image-dir",
        str(run.voc_root / "JPEGImages"),
        "--label-csv",
        str(table),
        "--classes",
        *DEMO_CLASSES,
    ]
    flags = ["--config", str(run.config), "--run-dir", str(run.run_dir), *words]
    assert stage_main("make_cam", [*flags, "--seeds", seeds, *SMALL[seeds]]) == 0
    assert len(seen) == len(rows)
    assert sum(bool((targets == 0).all()) for targets in seen) == 1
    assert len(cams_of(run)) == len(rows) - 1


def test_defects_are_found_against_images_without_a_tag(run_copy: RunCopy, tmp_path: Path) -> None:
    run = run_copy("train_cam")
    data = load_source(Source(voc_root=str(run.voc_root)))
    # Half of the images count as free of anything.
    rows = [
        [record.path.name, *(int(k in record.class_ids and n % 2) for k in range(len(DEMO_CLASSES)))]
        for n, record in enumerate(data.items)
    ]
    table = tmp_path / "tags.csv"
    table.write_text("\n".join(",".join(map(str, row)) for row in [["image", *DEMO_CLASSES], *rows]) + "\n")
    images = ["--image-dir", str(run.voc_root / "JPEGImages"), "--label-csv", str(table)]
    flags = ["--config", str(run.config), *images, "--classes", *DEMO_CLASSES]
    wanted = [*flags, "--seeds", "defects", "--defect-side", "96"]
    made = []
    for place in (run, elsewhere(run, tmp_path / "again")):
        assert stage_main("make_cam", [*wanted, "--run-dir", str(place.run_dir)]) == 0
        made.append(cams_of(place))
    assert set(made[0]) == {record.image_id for record in data.items[1::2]}
    assert same(*made)
    kept = RunFolder(run.run_dir).read(SEED_CLASSIFIER)
    assert len(kept.state["gates"]) == len(kept.state["routes"]) == len(DEMO_CLASSES)
    # IRNet has no part in labels of components, so a range leaves it out.
    labels = ["--synthesize_labels.refiner", "none", "--synthesize_labels.parts", "components"]
    seeds = ["--make_cam.seeds", "defects", "--make_cam.defect_side", "96"]
    assert main(["2-5", *flags, *seeds, *labels, "--run-dir", str(run.run_dir)]) == 0
    assert not (run.run_dir / "train_irn").exists() and not (run.run_dir / "mine_relations").exists()
    assert all(RunFolder(run.run_dir).has(SEMANTIC_LABEL, image_id) for image_id in made[0])


def test_defects_need_images_without_a_tag(run_copy: RunCopy, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(run_copy("train_cam"), "defects", "--defect-side", "96") == 1
    error = capsys.readouterr().err
    assert "images without a tag have 0 cells" in error and "Traceback" not in error


def test_the_next_stages_take_the_maps(run_copy: RunCopy) -> None:
    run = run_copy("train_cam")
    words = ["2-3", "--make_cam.seeds", "pixels", "--make_cam.pixel_side", "96"]
    assert main([*words, *run.flags()]) == 0
    assert len(list((run.run_dir / "mine_relations" / "ir_label").iterdir())) == 10


@pytest.mark.parametrize("seeds", ["pixels", "centre"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "vit_tiny_patch16_224"])
def test_backbones_of_timm_and_both_precisions(
    backbone: str, precision: str, seeds: str, whole_run: TinyRun, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    network = CamNetwork(num_classes=len(DEMO_CLASSES), backbone=backbone)
    folder = RunFolder(tmp_path / "run")
    folder.write(CAM_NETWORK, Checkpoint("cam", backbone, DEMO_CLASSES, network.state_dict()))
    folder.write_record(StageRecord("train_cam", "0", {}, {}, True, {}, 0.0, {}))
    run = TinyRun(whole_run.voc_root, whole_run.config, folder.root)
    assert make(run, seeds, "--precision", precision) == 0
    assert all(np.isfinite(cam.high_res_cam).all() for cam in cams_of(run).values())
    stages = min(3, len(network.backbone.channels))
    classifier = CellClassifier.from_state(folder.read(SEED_CLASSIFIER).state)
    assert [weight.shape[1] for weight in classifier.weights] == list(network.backbone.channels[-stages:])
