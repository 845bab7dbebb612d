"""Stage 1's other ways: a linear probe on a fixed backbone, and ReCAM's second head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from irn_pipeline.artifacts import CAM, CAM_NETWORK, Checkpoint
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.nn.backbone import build_backbone
from irn_pipeline.nn.cam_network import CamNetwork, ReCamNetwork
from irn_pipeline.stages import make_cam, train_cam
from irn_pipeline.stages.catalogue import stage_main

CPU = Execution(device="cpu", precision="float32", workers=1, quiet=True)
TINY = train_cam.Params(
    backbone="resnet18", backbone_weights="none", frozen_stages=0, epochs=1, batch_size=4, crop=64,
    long_side=(64, 96), lr=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cam_training") / "voc"
    generate_demo(root, num_images=8, num_heldout=0, min_size=(64, 64), max_size=(64, 80))
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> DataSet:
    return load_source(Source(voc_root=str(root)))


def trained(folder: Path, data: DataSet, params: train_cam.Params) -> Checkpoint:
    run = RunFolder(folder)
    run_stage(train_cam.STAGE, Job(run, params, data, CPU))
    return run.read(CAM_NETWORK)


def maps_made(folder: Path, data: DataSet) -> list[Any]:
    run = RunFolder(folder)
    run_stage(make_cam.STAGE, Job(run, make_cam.Params(scales=(1.0,)), data, CPU))
    return [run.read(CAM, record.image_id) for record in data.items]


def test_a_probe_leaves_the_backbone_as_it_was(tmp_path: Path, data: DataSet) -> None:
    torch.manual_seed(4)
    weights = build_backbone("resnet18").state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    params = train_cam.Params(
        backbone="resnet18", backbone_weights=str(tmp_path / "weights.pth"), head="probe"
    )
    found = trained(tmp_path / "run", data, params)
    assert all(torch.equal(found.state[f"backbone.{name}"], value) for name, value in weights.items())
    assert "map_offset" not in found.state
    assert found.state["classifier.weight"].abs().max() > 0
    assert all(cam.cam.max() <= 1 for cam in maps_made(tmp_path / "run", data))


def test_a_probe_tells_the_classes_of_its_pictures_apart(tmp_path: Path, data: DataSet) -> None:
    found = trained(tmp_path / "run", data, replace(TINY, head="probe"))
    network = CamNetwork(num_classes=len(found.class_names), backbone="resnet18").eval()
    network.load_state_dict(found.state)
    # Scores without the bias: of each class, those of its pictures are above the others' on average.
    from irn_pipeline.datasets.transforms import normalise, read_resized

    with torch.no_grad():
        scores = torch.cat(
            [network(normalise(read_resized(record, 96, enlarge=False))[None]) for record in data.items]
        )
    for class_id in range(len(found.class_names)):
        tagged = torch.tensor([class_id in record.class_ids for record in data.items])
        if tagged.any() and not tagged.all():
            assert scores[tagged, class_id].mean() > scores[~tagged, class_id].mean()


def test_the_probe_of_a_transformer_takes_off_the_map_of_the_mean_feature(
    tmp_path: Path, data: DataSet
) -> None:
    pytest.importorskip("timm")
    params = replace(TINY, backbone="vit_tiny_patch16_224", head="probe")
    found = trained(tmp_path / "run", data, params)
    assert found.state["map_offset"].shape == (len(found.class_names),)
    network = CamNetwork(
        num_classes=len(found.class_names), backbone=found.backbone, centred_if_one_map=True
    ).eval()
    network.load_state_dict(found.state)
    features = torch.randn(1, 192, 3, 4)
    expected = network.classifier(features) - found.state["map_offset"][:, None, None]
    torch.testing.assert_close(network.logit_maps(features), expected)
    assert len(maps_made(tmp_path / "run", data)) == 8


def test_a_class_that_every_picture_has_is_refused_in_one_line(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "tags.csv"
    lines = [f"{path.name},blob" for path in sorted((root / "JPEGImages").iterdir())]
    table.write_text("image,labels\n" + "\n".join(lines) + "\n")
    words = [
        "--image-dir",
        str(root / "JPEGImages"),
        "--label-csv",
        str(table),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    words += ["--head", "probe", "--backbone", "resnet18", "--backbone-weights", "none", "--device", "cpu"]
    code = stage_main("train_cam", words)
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 1 and "a linear probe needs images without the class" in said[-1]


@pytest.mark.parametrize("flag", ["--epochs", "--lr", "--crop"])
def test_flags_of_a_training_are_refused_for_a_probe(
    flag: str, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--voc-root", str(root), "--run-dir", str(tmp_path / "run"), "--head", "probe", flag, "64"]
    assert stage_main("train_cam", words) == 1
    assert "--head probe fits the classifier alone" in capsys.readouterr().err


def test_recam_ends_with_the_product_of_both_heads(tmp_path: Path, data: DataSet) -> None:
    plain = trained(tmp_path / "plain", data, TINY)
    # At the rate 0 neither head learns: the second one stays what it was at the start.
    params = replace(TINY, recam=True, recam_epochs=1, recam_lr=0.0)
    both = trained(tmp_path / "both", data, params)
    network = CamNetwork(num_classes=len(plain.class_names), backbone="resnet18")
    torch.manual_seed(0)
    head = ReCamNetwork(network).head.weight.detach()
    torch.testing.assert_close(both.state["classifier.weight"], plain.state["classifier.weight"] * head)
    assert (tmp_path / "both" / "train_cam" / "recam" / "losses.jsonl").is_file()
    assert not (tmp_path / "both" / "train_cam" / "recam" / "resume.pt").exists()


def test_recam_learns_and_goes_on_after_an_interruption(
    tmp_path: Path, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(TINY, recam=True, recam_epochs=2)
    whole = trained(tmp_path / "whole", data, params)
    from irn_pipeline import cam_training

    original, calls = cam_training.recam_loss, [0]

    def failing(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:  # in the second epoch
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(cam_training, "recam_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", data, params)
    monkeypatch.setattr(cam_training, "recam_loss", original)
    resumed = trained(tmp_path / "cut", data, params)
    assert all(torch.equal(value, resumed.state[name]) for name, value in whole.state.items())
    plain, moved = trained(tmp_path / "plain", data, TINY), "backbone.layer4.0.conv1.weight"
    assert not torch.equal(whole.state[moved], plain.state[moved])
