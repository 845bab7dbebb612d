"""Pictures of one size pass through the networks together, and the results are those of one picture at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import CAM, CAM_NETWORK, IRN_NETWORK, WALKED_SCORES, Checkpoint
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.nn.backbone import Backbone
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.stages.catalogue import stage_main

SIZES = [(48, 64)] * 5 + [(64, 48)] * 2 + [(50, 70)]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three sizes, one that cannot be read, and a run folder with two untrained networks."""
    folder = tmp_path_factory.mktemp("together")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    lines = ["image,label"]
    for number, size in enumerate(SIZES):
        blocks = rng.integers(0, 256, (6, 8, 3), np.uint8)
        cv2.imwrite(str(folder / "photos" / f"p{number}.png"), cv2.resize(blocks, size[::-1]))
        lines.append(f"p{number}.png,{'cat' if number % 2 else 'dog'}")
    (folder / "tags.csv").write_text("\n".join(lines) + "\n")
    run = RunFolder(folder / "run")
    torch.manual_seed(0)
    state = CamNetwork(num_classes=2, backbone="resnet18").state_dict()
    run.write(CAM_NETWORK, Checkpoint("cam", "resnet18", ("cat", "dog"), state))
    run.write(IRN_NETWORK, Checkpoint("irn", "resnet18", (), IrnNetwork(backbone="resnet18").state_dict()))
    for name in ("train_cam", "train_irn"):
        run.write_record(StageRecord(name, "0", {}, {}, True, {}, 0.0, {}))
    return folder


def results(begun: Path, place: Path, *extra: str) -> RunFolder:
    shutil.copytree(begun / "run", place)
    words = [
        "--image-dir",
        str(begun / "photos"),
        "--label-csv",
        str(begun / "tags.csv"),
        "--run-dir",
        str(place),
    ]
    words += [
        "--plan",
        "published",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--workers",
        "2",
        "--quiet",
        *extra,
    ]
    assert stage_main("make_cam", [*words, "--scales", "1", "0.5"]) == 0
    assert stage_main("synthesize_labels", [*words, "--keep-scores"]) == 0
    return RunFolder(place)


def test_results_are_those_of_one_at_a_time(
    begun: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    passes: list[int] = []

    def count(module: torch.nn.Module, images: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, Backbone):
            passes.append(len(images[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    request.addfinalizer(hook.remove)
    alone = results(begun, tmp_path / "alone")
    assert set(passes) == {2}
    passes.clear()
    many = results(begun, tmp_path / "many", "--images-at-once", "3")
    # Picture and mirror of 3 and 2 pictures of the first size, of 2 of the second and 1 of the third.
    assert sorted(passes) == sorted([6, 4, 4, 2] * 3)
    data = load_source(Source(image_dir=str(begun / "photos"), label_csv=str(begun / "tags.csv")))
    assert len(data.items) == len(SIZES)
    for record in data.items:
        one, other = (run.read(CAM, record.image_id) for run in (alone, many))
        assert one.class_ids.tolist() == other.class_ids.tolist() == list(record.class_ids)
        np.testing.assert_allclose(one.cam, other.cam, atol=1e-5)
        np.testing.assert_allclose(one.high_res_cam, other.high_res_cam, atol=1e-5)
        walked, others = (run.read(WALKED_SCORES, record.image_id) for run in (alone, many))
        assert walked.class_ids.tolist() == others.class_ids.tolist()
        np.testing.assert_allclose(walked.maps, others.maps, atol=2e-3)


def test_the_three_fields_of_many_pictures_are_those_of_each() -> None:
    torch.manual_seed(0)
    network = IrnNetwork(backbone="resnet18").eval()
    images = torch.randn(3, 3, 50, 70)
    for pad_to in (0, 96):
        for image, found in zip(images, network.predict_many(images, pad_to=pad_to), strict=True):
            expected = network.predict_with_features(image, pad_to=pad_to)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_large_pictures_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irn_pipeline.nn.backbone.LARGE_PICTURE", 50 * 70 - 1)
    torch.manual_seed(0)
    irn, cams = IrnNetwork(backbone="resnet18").eval(), CamNetwork(num_classes=2, backbone="resnet18").eval()
    passes: list[int] = []
    for network in (irn, cams):
        network.backbone.register_forward_pre_hook(lambda _, images: passes.append(len(images[0])))
    images = torch.randn(2, 3, 50, 70)
    assert len(irn.predict_many(images)) == 2
    with torch.no_grad():
        assert cams.paired_activation_maps(images).shape == (2, 2, 4, 5)
    assert passes == [1] * 8
