"""The table of seeds and refiners: its figures are those of the stages, and it goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import seeds_and_refiners
from benchmarks.seeds_and_refiners import Judged, figures, main
from irn_pipeline.artifacts import CAM_NETWORK, INSTANCE_LABEL, IRN_NETWORK, SEMANTIC_LABEL, Checkpoint
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.metrics.instance import InstanceEvaluator, PictureHits
from irn_pipeline.metrics.semantic import confusion_matrix, semantic_scores
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.stages import make_cam, synthesize_labels

CPU = Execution(device="cpu", precision="float32", workers=1, quiet=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of 4 pictures, and a run with two untrained networks."""
    folder = tmp_path_factory.mktemp("compared")
    generate_demo(folder / "voc", num_images=4, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    data, run = load_source(Source(voc_root=str(folder / "voc"))), RunFolder(folder / "run")
    torch.manual_seed(0)
    state = CamNetwork(num_classes=len(data.identity), backbone="resnet18").state_dict()
    run.write(CAM_NETWORK, Checkpoint("cam", "resnet18", data.identity, state))
    run.write(IRN_NETWORK, Checkpoint("irn", "resnet18", (), IrnNetwork(backbone="resnet18").state_dict()))
    for name in ("train_cam", "train_irn"):
        run.write_record(StageRecord(name, "0", {}, {}, True, {}, 0.0, {}))
    return folder / "voc", folder / "run"


def flags(made: tuple[Path, Path], out: Path) -> list[str]:
    return [
        *("--voc-root", str(made[0]), "--run-dir", str(made[1]), "--out", str(out), "--scales", "1.0"),
        *("--backgrounds", "0.25", "--device", "cpu", "--precision", "float32", "--workers", "1", "--quiet"),
    ]


def test_figures_are_those_of_the_stages(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags(made, tmp_path / "out"), "--seeds", "cam", "layercam", "--refiners", "walk", "none"]
    assert main(words) == 0
    first = capsys.readouterr().out
    rows = [json.loads(line) for line in first.splitlines() if line.startswith("{")]
    names = [(row["seed"], row["refiner"]) for row in rows]
    assert names == [("cam", "published"), *((s, r) for s in ("cam", "layercam") for r in ("walk", "none"))]
    assert first.count("\n| cam |") == 3

    data, run = load_source(Source(voc_root=str(made[0]))), RunFolder(made[1])
    run_stage(make_cam.STAGE, Job(run, make_cam.Params(scales=(1.0,)), data, CPU))
    run_stage(synthesize_labels.STAGE, Job(run, synthesize_labels.Params(), data, CPU))
    evaluator = InstanceEvaluator(data.images.num_classes)
    matrix = np.zeros((len(data.identity) + 1, len(data.identity) + 2), np.int64)
    for record in data.items:
        truth = data.ground_truth(record.image_id)
        assert truth is not None
        evaluator.add(run.read(INSTANCE_LABEL, record.image_id), truth)
        label = run.read(SEMANTIC_LABEL, record.image_id)
        matrix += confusion_matrix(label, truth.label, len(data.identity) + 1)
    for row in rows[:2]:
        assert row["miou"] == pytest.approx(100 * semantic_scores(matrix).miou, abs=1e-6)
        assert row["ap50"] == pytest.approx(100 * evaluator.result().mean_ap[0], abs=1e-4)
        low, high = row["miou_interval"]
        assert low <= row["miou"] <= high


def test_it_goes_on_where_it_was_stopped(
    made: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    assert main([*flags(made, out), "--seeds", "cam", "--refiners", "none"]) == 0
    first = capsys.readouterr().out
    files = sorted((out / "cam" / "none").iterdir())
    assert len(files) == 4
    calls: list[str] = []
    original = seeds_and_refiners.Comparison.judged

    def counted(self: seeds_and_refiners.Comparison, picture: object, name: str, truth: object) -> Judged:
        calls.append(name)
        return original(self, picture, name, truth)  # type: ignore[arg-type]

    monkeypatch.setattr(seeds_and_refiners.Comparison, "judged", counted)
    files[1].unlink()
    assert main([*flags(made, out), "--seeds", "cam", "--refiners", "none", "pamr"]) == 0
    assert sorted(calls) == ["none", "pamr", "pamr", "pamr", "pamr"]
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert again[0]["miou"] == json.loads(first.splitlines()[0])["miou"]


def test_what_does_not_fit_is_said_in_one_line(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(made, tmp_path / "out"), "--seeds", "cma"]) == 1
    assert "'cma' is none of cam, layercam" in capsys.readouterr().err
    assert main(["--voc-root", str(made[0])]) == 1
    assert "give --run-dir RUN" in capsys.readouterr().err
    empty = [
        word if word != str(made[1]) else str(tmp_path / "empty") for word in flags(made, tmp_path / "out")
    ]
    assert main(empty) == 1
    assert "lacks a finished train_cam or train_irn" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text("{}")
    assert main([*flags(made, tmp_path / "out"), "--seeds", "cam"]) == 1
    assert "figures of other networks" in capsys.readouterr().err


def judged(right: list[int]) -> Judged:
    """One picture of 10 pixels of class 0: so many are right at each of two scores of the background."""
    matrices = np.array([[[0, 0, 0], [10 - count, count, 0]] for count in right])
    nobody, nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    hits = PictureHits(nobody, nothing, np.zeros((3, 0), bool), nothing, np.zeros(0, bool), np.array([0]))
    return Judged(matrices, [hits, hits], 0.5)


def test_the_background_is_chosen_on_the_other_half() -> None:
    # The first half would choose the first score, where all of its own and none of the other half's pixels are right.
    pictures = [judged([10, 5]), judged([0, 8])]
    found = figures(pictures, 1, (0.2, 0.4))
    # Each half is judged with the other's choice: 5 and 0 of 10 pixels each; of the background there is nothing true.
    assert found["miou"] == pytest.approx(100 * (0 + 5 / 20) / 2)
    fixed = figures(pictures, 1, (0.2, 0.4), fixed=0.4)
    assert fixed["miou"] == pytest.approx(100 * (0 + 13 / 20) / 2)


def test_figures_survive_the_file(tmp_path: Path) -> None:
    one = replace(judged([3, 4]), seconds=1.25)
    one.write(tmp_path / "one.npz")
    again = Judged.read(tmp_path / "one.npz")
    assert np.array_equal(again.matrices, one.matrices) and again.seconds == 1.25
    assert again.hits[1].truths.tolist() == [0] and again.hits[0].hits.shape == (3, 0)
