"""Every recipe gets its figures on a small generated set, and a second call does nothing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import quality_and_seconds
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.nn.backbone import build_backbone


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("quality")
    generate_demo(folder / "voc", num_images=1, num_heldout=5, min_size=(64, 80), max_size=(80, 96))
    torch.manual_seed(0)
    torch.save(build_backbone("resnet18").state_dict(), folder / "weights.pt")
    return str(folder / "voc"), f"resnet18={folder / 'weights.pt'}"


def test_every_recipe_has_its_figures(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--voc-root", made[0], "--backbones", made[1], "--out", str(tmp_path), "--limit", "4"]
    words += ["--precision", "float32", "--scales", "1,0.5", "1", "--pixel-sides", "64"]
    assert quality_and_seconds.main(words) == 0
    out = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in out if line.startswith("{")]
    assert [row["recipe"] for row in rows] == ["resnet18-1.0_0.5", "resnet18-1.0", "resnet18-pixels-64"]
    for row in rows:
        assert row["pictures"] == 4 and row["make_cam_s"] > 0 and row["train_cam_s"] > 0
        assert 0 <= row["map_miou"] <= 1 and 0.1 <= row["map_threshold"] <= 0.5
        assert len(list((tmp_path / row["recipe"] / "make_cam" / "cam").glob("*.npy"))) == 4
    assert out[-3].split()[:1] + out[-3].split()[2:3] == ["resnet18-1.0_0.5", "1.0"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert quality_and_seconds.main(words) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")] == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_labels_are_made_and_judged(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--voc-root", made[0], "--backbones", made[1], "--out", str(tmp_path), "--precision", "float32"]
    words += ["--scales", "1", "--pixel-sides", "--labels", "--irn-epochs", "1"]
    assert quality_and_seconds.main(words) == 0
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert all(row[f"{stage}_s"] > 0 for stage in ("mine_relations", "train_irn", "synthesize_labels"))
    assert 0 <= row["label_miou"] <= 1 and 0 <= row["label_ap50"] <= 1


def test_a_wrong_place_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality_and_seconds.main(["--voc-root", str(tmp_path / "no"), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
