"""Maps from a trained model or from other maps, in a run folder of its own, and maps spread over like cells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from irn_pipeline.artifacts import CAM, CAM_NETWORK, Checkpoint
from irn_pipeline.cam_files import read_cam_file
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.synthetic import DEMO_CLASSES
from irn_pipeline.datasets.transforms import normalise, to_tensor
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.models import SegmenterParams, build_segmenter
from irn_pipeline.nn.backbone import LARGE_PICTURE
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.ops.cam import merge_cams, merge_scales
from irn_pipeline.ops.feature_affinity import spread_maps
from irn_pipeline.stages.catalogue import main, stage_main
from irn_pipeline.structures import Cam
from irn_pipeline.trained_networks import load_segmenter, segmenter_artifact
from tests.stages.conftest import TinyRun


def first_round(folder: Path, model: str = "deeplabv3", classes: tuple[str, ...] = DEMO_CLASSES) -> Path:
    """An untrained model in a run folder, as train_segmenter would leave a trained one."""
    run = RunFolder(folder)
    torch.manual_seed(1)
    params = SegmenterParams(model=model, backbone="resnet18", short_side=64, long_side=96, channels=32)  # type: ignore[arg-type]
    state = build_segmenter(params, len(classes)).state_dict()
    artifact = segmenter_artifact(model)
    run.write(artifact, Checkpoint(model, "resnet18", classes, state))
    values = {"model": model, "backbone": "resnet18", "short_side": 64, "long_side": 96, "channels": 32}
    run.write_record(StageRecord(artifact.stage, "0", values, {}, True, {}, 0.0, {}))
    return folder / artifact.stage


def flags(whole_run: TinyRun, run_dir: Path) -> list[str]:
    return replace(whole_run, run_dir=run_dir).flags()


def test_the_maps_are_the_models_probabilities_of_the_tags(whole_run: TinyRun, tmp_path: Path) -> None:
    model_dir = first_round(tmp_path / "first")
    second = tmp_path / "second"
    assert stage_main("make_cam", [*flags(whole_run, second), "--from-model", str(model_dir)]) == 0
    execution = Execution(device="cpu", precision="float32", workers=1, quiet=True)
    model, _ = load_segmenter(RunFolder(tmp_path / "first"), "deeplabv3", execution)
    files = sorted((second / "make_cam" / "cam").iterdir())
    assert len(files) == 10
    for path in files[:3]:
        cam = RunFolder(second).read(CAM, path.stem)
        image = to_tensor(read_image(whole_run.voc_root / "JPEGImages" / f"{path.stem}.jpg"))
        batch = normalise(image)[None]
        with torch.no_grad():
            both = [model._logits(one).softmax(1)[0] for one in (batch, batch.flip(-1))]  # type: ignore[operator]
        maps = (both[0] + both[1].flip(-1))[torch.from_numpy(cam.class_ids) + 1]
        expected = merge_scales([maps], (image.shape[1], image.shape[2]))
        np.testing.assert_allclose(cam.cam, expected[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(cam.high_res_cam, expected[1].numpy(), atol=1e-5)
        assert len(cam.class_ids) and cam.high_res_cam.max() == pytest.approx(1, abs=1e-3)


def test_the_model_is_found_from_its_run_folder(
    whole_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first_round(tmp_path / "first").parent.parent)
    command = [*flags(whole_run, tmp_path / "second"), "--from-model", "train_segmenter/deeplabv3"]
    assert stage_main("make_cam", command) == 0
    assert len(cams_of(tmp_path / "second")) == 10


def test_the_second_round_goes_on_to_labels(whole_run: TinyRun, tmp_path: Path) -> None:
    model_dir, second = first_round(tmp_path / "first"), tmp_path / "second"
    # IRNet's backbone cannot come from a classifier that this folder does not have.
    command = ["2-5", *flags(whole_run, second), "--make_cam.from_model", str(model_dir)]
    assert main([*command, "--train_irn.backbone_weights", "none"]) == 0
    assert len(list((second / "synthesize_labels" / "semantic_label").iterdir())) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.parent.parent, "is not a model's folder; give RUN_DIR/train_segmenter/deeplabv3"),
        (lambda f: f.parent / "mask_rcnn", "no trained model here"),
        (lambda f: first_round(f.parent.parent.parent / "b", "mask_rcnn"), "has no map for each class"),
        (
            lambda f: first_round(f.parent.parent.parent / "c", classes=("one", "two")),
            "was trained on other classes",
        ),
    ],
)
def test_other_models_are_refused(
    whole_run: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], Path],
    message: str,
) -> None:
    given = change(first_round(tmp_path / "a"))
    assert stage_main("make_cam", [*flags(whole_run, tmp_path / "second"), "--from-model", str(given)]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def cam_network(run_dir: Path) -> CamNetwork:
    state = RunFolder(run_dir).read(CAM_NETWORK).state
    network = CamNetwork(num_classes=len(DEMO_CLASSES), backbone="resnet18")
    network.load_state_dict(state)
    return network.eval()


def cams_of(run_dir: Path) -> dict[str, Cam]:
    run = RunFolder(run_dir)
    return {path.stem: run.read(CAM, path.stem) for path in sorted((run_dir / "make_cam" / "cam").iterdir())}


def other_maps(whole_run: TinyRun, folder: Path) -> Path:
    """Files of other maps for the pictures of a run, with the classes the other way round."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    for image_id, cam in cams_of(whole_run.run_dir).items():
        kept = {"keys": cam.class_ids[::-1].copy()}
        shapes = {"cam": cam.cam.shape, "high_res": cam.high_res_cam.shape}
        kept |= {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
        np.save(folder / f"{image_id}.npy", kept)  # type: ignore[arg-type]
    return folder


def test_maps_of_several_folders_are_merged(whole_run: TinyRun, tmp_path: Path) -> None:
    others = other_maps(whole_run, tmp_path / "others")
    folders = [str(whole_run.run_dir / "make_cam" / "cam"), str(others)]
    # No network is needed, so none is in this run folder.
    assert stage_main("make_cam", [*flags(whole_run, tmp_path / "run"), "--from-cams", *folders]) == 0
    first, found = cams_of(whole_run.run_dir), cams_of(tmp_path / "run")
    assert len(found) == 10
    for image_id, cam in found.items():
        expected = merge_cams([first[image_id], read_cam_file(others / f"{image_id}.npy")[0]])
        assert cam.class_ids.tolist() == first[image_id].class_ids.tolist()
        np.testing.assert_allclose(cam.cam, expected.cam, atol=1e-6)
        np.testing.assert_allclose(cam.high_res_cam, expected.high_res_cam, atol=1e-6)


def test_maps_are_spread_by_the_classifiers_features(
    whole_run: TinyRun, run_copy: Callable[..., TinyRun]
) -> None:
    run = run_copy("train_cam")
    given = str(whole_run.run_dir / "make_cam" / "cam")
    command = [*run.flags(), "--from-cams", given, "--feature-affinity", "2"]
    assert stage_main("make_cam", command) == 0
    network, first = cam_network(run.run_dir), cams_of(whole_run.run_dir)
    for image_id, cam in list(cams_of(run.run_dir).items())[:3]:
        image = to_tensor(read_image(whole_run.voc_root / "JPEGImages" / f"{image_id}.jpg"))
        with torch.no_grad():
            features = [stage[0] for stage in network.backbone(normalise(image)[None])[2:]]
        spread = spread_maps([torch.from_numpy(first[image_id].cam)], features, 2)
        expected = merge_scales([spread], (image.shape[1], image.shape[2]))
        np.testing.assert_allclose(cam.cam, expected[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(cam.high_res_cam, expected[1].numpy(), atol=1e-4)
        assert not np.allclose(cam.cam, first[image_id].cam, atol=0.05)


def test_spread_maps_of_the_classifier_go_on_to_labels(run_copy: Callable[..., TinyRun]) -> None:
    run = run_copy("train_cam")
    command = ["2-5", *run.flags(), "--make_cam.feature_affinity", "2", "--train_irn.backbone_weights", "cam"]
    assert main(command) == 0
    assert len(list((run.run_dir / "synthesize_labels" / "semantic_label").iterdir())) == 10
    # Changed parameters do not mix with maps that are there.
    assert stage_main("make_cam", run.flags()) == 1


def test_a_large_pictures_features_come_from_a_smaller_copy(
    whole_run: TinyRun, run_copy: Callable[..., TinyRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LARGE_PICTURE == 2**20
    monkeypatch.setattr("irn_pipeline.activation_maps.LARGE_PICTURE", 40 * 40)
    asked: list[tuple[int, int]] = []

    def recorded(maps: list[Tensor], features: list[Tensor], power: float) -> Tensor:
        asked.append((int(features[-1].shape[-2]), int(features[-1].shape[-1])))
        return spread_maps(maps, features, power)

    monkeypatch.setattr("irn_pipeline.activation_maps.spread_maps", recorded)
    run = run_copy("train_cam")
    given = str(whole_run.run_dir / "make_cam" / "cam")
    assert stage_main("make_cam", [*run.flags(), "--from-cams", given, "--feature-affinity", "2"]) == 0
    # Of 1600 pixels remain at most 12 cells of 16 x 16, their edges counted; the maps are of the whole size anyway.
    assert len(asked) == 10 and all(h * w <= 12 for h, w in asked)
    sizes = {image_id: cam.size for image_id, cam in cams_of(whole_run.run_dir).items()}
    assert {image_id: cam.size for image_id, cam in cams_of(run.run_dir).items()} == sizes


def test_maps_that_do_not_fit_are_skipped_and_named(
    whole_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = other_maps(whole_run, tmp_path / "others")
    names = sorted(path.name for path in others.iterdir())
    (others / names[0]).unlink()
    (others / names[1]).write_bytes(b"no maps")
    kept = np.load(others / names[2], allow_pickle=True).item()
    first = {key: value[:1] for key, value in kept.items()}
    first["keys"] = (first["keys"] + 1) % len(DEMO_CLASSES)
    np.save(others / names[2], first)
    folders = [str(whole_run.run_dir / "make_cam" / "cam"), str(others)]
    assert stage_main("make_cam", [*flags(whole_run, tmp_path / "run"), "--from-cams", *folders]) == 0
    told = capsys.readouterr().err
    assert f"{others / names[0]}: no such file" in told
    assert str(others / names[1]) in told
    assert f"{others / names[2]}: maps to merge must be of the same classes" in told
    assert "Traceback" not in told
    assert len(cams_of(tmp_path / "run")) == 7


def test_what_is_read_is_not_cleared(
    run_copy: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_copy("train_cam", "make_cam", "synthesize_labels", "train_segmenter")
    own = run.run_dir / "make_cam" / "cam"
    before = sorted(path.name for path in own.iterdir())
    command = [*run.flags(), "--from-cams", str(own), "--overwrite"]
    assert stage_main("make_cam", command) == 1
    assert (
        f"--from-cams {own}: is inside {own.parent}, which --overwrite would replace"
        in capsys.readouterr().err
    )
    assert sorted(path.name for path in own.iterdir()) == before
    model = run.run_dir / "train_segmenter" / "semiconv_mask_rcnn" / "network.pt"
    shutil.copytree(model.parent.with_name("mask_rcnn"), model.parent)
    command = [*run.flags(), "--model", "semiconv_mask_rcnn", "--start-from", str(model), "--overwrite"]
    assert stage_main("train_segmenter", command) == 1
    assert f"--start-from {model}: is in" in capsys.readouterr().err
    assert model.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from-cams", "nowhere"], "--from-cams nowhere: no such folder"),
        (["--feature-affinity", "-1"], "it must be a number from 0 on"),
        (["--from-cams", "a", "--from-model", "b"], "give one of them"),
    ],
)
def test_wrong_sources_are_refused(
    whole_run: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    code = stage_main("make_cam", [*flags(whole_run, tmp_path / "run"), *arguments])
    told = capsys.readouterr().err
    assert code != 0 and message in told and "Traceback" not in told
