"""Checkpoints of the original implementation in place of both trainings, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from irn_pipeline.artifacts import CAM, CAM_NETWORK, INSTANCE_LABEL, IRN_NETWORK
from irn_pipeline.datasets.synthetic import DEMO_CLASSES
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.stages.catalogue import main
from tests.stages.conftest import TinyRun

CAM_NAMES = {
    "backbone.conv1.": "stage1.0.", "backbone.bn1.": "stage1.1.", "backbone.layer1.": "stage1.4.",
    "backbone.layer2.": "stage2.0.", "backbone.layer3.": "stage3.0.", "backbone.layer4.": "stage4.0.",
    "classifier.": "classifier.",
}  # fmt: skip
IRN_NAMES = {
    "backbone.conv1.": "stage1.0.", "backbone.bn1.": "stage1.1.", "backbone.layer1.": "stage2.0.",
    "backbone.layer2.": "stage3.0.", "backbone.layer3.": "stage4.0.", "backbone.layer4.": "stage5.0.",
    "boundary_head.": "fc_edge6.", "displacement_merge.conv.": "fc_dp6.0.", "displacement_merge.norm.": "fc_dp6.1.",
    "displacement_top.conv.": "fc_dp7.0.", "displacement_top.norm.": "fc_dp7.1.", "displacement_head.": "fc_dp7.3.",
    "mean_shift.": "mean_shift.",
    **{
        f"{branch}.{index}.{part}.": f"fc_{short}{index + 1}.{number}."
        for branch, short in (("boundary", "edge"), ("displacement", "dp"))
        for index in range(5)
        for number, part in enumerate(("conv", "norm"))
    },
}  # fmt: skip


def save_as_original(network: torch.nn.Module, names: dict[str, str], path: Path) -> dict[str, torch.Tensor]:
    """Write a network under the original's names; returns its weights."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    renamed = {}
    for key, value in state.items():
        ours = next(prefix for prefix in names if key.startswith(prefix))
        renamed[names[ours] + key.removeprefix(ours)] = value
    torch.save(renamed, path)
    return state


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """res50_cam.pth and res50_irn.pth, of smaller networks, in `tmp_path`; their weights."""
    torch.manual_seed(0)
    irn = IrnNetwork(backbone="resnet18")
    irn.mean_shift.running_mean.copy_(torch.tensor([0.25, -0.5]))
    return {
        "cam": save_as_original(
            CamNetwork(num_classes=len(DEMO_CLASSES), backbone="resnet18"),
            CAM_NAMES,
            tmp_path / "res50_cam.pth",
        ),
        "irn": save_as_original(irn, IRN_NAMES, tmp_path / "res50_irn.pth"),
    }


def flags(whole_run: TinyRun, tmp_path: Path) -> list[str]:
    (tmp_path / "mine.yaml").write_text(
        "device: cpu\nprecision: float32\nworkers: 1\nquiet: true\nmake_cam: {scales: [1.0]}\n"
        "synthesize_labels: {exp_times: 2}\n"
        "train_cam: {backbone: resnet18}\ntrain_irn: {backbone: resnet18}\n"
    )
    return [
        *("--voc-root", str(whole_run.voc_root), "--run-dir", str(tmp_path / "run")),
        *("--config", str(tmp_path / "mine.yaml")),
        *("--train_cam.original_checkpoint", str(tmp_path / "res50_cam.pth")),
        *("--train_irn.original_checkpoint", str(tmp_path / "res50_irn.pth")),
    ]


def test_labels_from_both_checkpoints_without_training(
    whole_run: TinyRun, tmp_path: Path, checkpoints: dict[str, dict[str, torch.Tensor]]
) -> None:
    """Stage 3 makes what stage 4 learns from, so it is not needed."""
    assert main(["1", "2", "4", "5", *flags(whole_run, tmp_path)]) == 0
    run = RunFolder(tmp_path / "run")
    for artifact, kind in ((CAM_NETWORK, "cam"), (IRN_NETWORK, "irn")):
        state = run.read(artifact).state
        assert state.keys() == checkpoints[kind].keys()
        for name, value in checkpoints[kind].items():
            assert torch.equal(state[name], value), name
    for image_id in (whole_run.voc_root / "ImageSets/Segmentation/train.txt").read_text().split():
        assert run.has(CAM, image_id)
        assert run.has(INSTANCE_LABEL, image_id)
    record = run.record("train_irn")
    assert record is not None
    assert record.counts == {"images": 0}


def test_the_checkpoint_of_the_other_stage_is_refused(
    whole_run: TinyRun,
    tmp_path: Path,
    checkpoints: dict[str, dict[str, torch.Tensor]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "res50_irn.pth").rename(tmp_path / "res50_cam.pth")
    (tmp_path / "res50_irn.pth").write_bytes(b"")
    assert main(["1", *flags(whole_run, tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "res50_cam.pth: does not fit a CamNetwork" in message
    assert "is it the other network's checkpoint" in message
    assert not RunFolder(tmp_path / "run").has(CAM_NETWORK)
