"""All stages on pictures of five channels and 16 bits, and the set's later commands and models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml

from irn_pipeline import Predictor, read_labels
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ShapeError
from irn_pipeline.nn.backbone import ResNet
from irn_pipeline.stages.catalogue import PIPELINE, main
from tests.stages.conftest import CONFIG


def scene(seed: int, channels: int = 5) -> np.ndarray:
    """(48, 64, C) uint16: class "left" is bright in the first channel, "right" in the second."""
    values = np.random.default_rng(seed).normal(1000, 50, (48, 64, channels))
    for place, column in enumerate((16, 48)):
        if seed % 3 in (place, 2):
            rows, columns = np.mgrid[:48, :64]
            values[(rows - 24) ** 2 + (columns - column) ** 2 < 100, place] += 3000
    return values.astype(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "img").mkdir()
    rows = ["image,label"]
    for seed in range(6):
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(folder / "img" / f"{seed}.tif", scene(seed), **options)
        rows.append(f"{seed}.tif," + ("left", "right", "left,right")[seed % 3])
    (folder / "tags.csv").write_text("\n".join(rows))
    config = yaml.safe_load(CONFIG)
    config["mine_relations"] = {"crf_iterations": 1}
    config.pop("evaluate")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["1-6", *flags(folder)]) == 0
    return folder


def flags(folder: Path, *, run: str = "run") -> list[str]:
    where = ["--image-dir", str(folder / "img"), "--label-csv", str(folder / "tags.csv")]
    return [*where, "--run-dir", str(folder / run), "--config", str(folder / "tiny.yaml")]


def test_every_network_has_five_channels_and_every_record_says_so(folder: Path) -> None:
    for stage in ("train_cam", "train_irn", "train_segmenter/mask_rcnn"):
        state = torch.load(folder / "run" / stage / "network.pt", weights_only=True)["network"]
        first = next(value for name, value in state.items() if name.endswith("conv1.weight"))
        assert first.shape == (64, 5, 7, 7), stage
    run = RunFolder(folder / "run")
    told = {record.facts["pixels"] for name in run.folders() if (record := run.record(name))}
    assert len(told) == 1 and told.pop().startswith("5 channels ")
    label, _ = read_labels(folder / "run", "2")
    assert label.shape == (48, 64)


def test_predictions_are_by_the_run_s_scale(folder: Path, tmp_path: Path) -> None:
    predict = ["predict", "--run-dir", str(folder / "run"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*predict, "--images", str(folder / "img"), "--min-score", "0.0", "--quiet"]) == 0
    assert len(list((tmp_path / "out" / "overlays").glob("*.jpg"))) == 6
    predictor = Predictor(folder / "run", device="cpu")
    by_path, by_array = predictor(folder / "img" / "1.tif", min_score=0), predictor(scene(1), min_score=0)
    np.testing.assert_array_equal(by_path.masks, by_array.masks)
    with pytest.raises(ShapeError, match=r"must be \(H, W, 5\), got \(48, 64, 3\)"):
        predictor(scene(1, channels=3))


def test_other_channels_need_another_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make_cam", *flags(folder), "--channels", "3"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "pixels.json: this run has images of 5 channels and 16 bits, here are --channels 3" in line
    assert main(["make_cam", *flags(folder)]) == 0


def test_two_channels_of_five(folder: Path) -> None:
    assert main(["1", *flags(folder, run="two"), "--channels", "2"]) == 0
    state = torch.load(folder / "two" / "train_cam" / "network.pt", weights_only=True)["network"]
    assert state["backbone.conv1.weight"].shape == (64, 2, 7, 7)
    shutil.rmtree(folder / "two")


def test_scenes_are_cut_and_put_together_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strip with one object across each seam; what is not cut is the same to the last byte."""
    shutil.copytree(folder / "run" / "train_cam", tmp_path / "run" / "train_cam")
    shutil.copytree(folder / "run" / "train_irn", tmp_path / "run" / "train_irn")
    shutil.copy(folder / "run" / "pixels.json", tmp_path / "run")
    (tmp_path / "img").mkdir()
    shutil.copy(folder / "img" / "0.tif", tmp_path / "img")
    strip = np.concatenate([scene(seed) for seed in (0, 1, 2) * 4], axis=1)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "img" / "strip.tif", strip, **options)
    (tmp_path / "tags.csv").write_text("image,label\n0.tif,left\nstrip.tif,left,right\n")
    shutil.copy(folder / "tiny.yaml", tmp_path)
    widths: list[int] = []
    forward = ResNet.forward

    def seen(network: ResNet, images: torch.Tensor) -> list[torch.Tensor]:
        widths.append(images.shape[-1])
        return forward(network, images)

    monkeypatch.setattr(ResNet, "forward", seen)
    assert main(["2", *flags(tmp_path), "--make_cam.tile", "256"]) == 0
    assert main(["synthesize_labels", *flags(tmp_path), "--tile", "256"]) == 0
    assert 64 in widths and max(widths) <= 256
    for name, size in (("0", (48, 64)), ("strip", (48, 768))):
        label, instances = read_labels(tmp_path / "run", name)
        assert label.shape == instances.size == size
    own = (tmp_path / "run" / "make_cam" / "cam" / "0.npy").read_bytes()
    assert own == (folder / "run" / "make_cam" / "cam" / "0.npy").read_bytes()


def test_a_tile_that_is_too_small(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make_cam", *flags(folder), "--tile", "20"]) == 1
    assert "tile is 20; it must be 0 (never cut) or 256 pixels at least" in capsys.readouterr().err


def test_the_detectors_keep_their_flag_channels() -> None:
    """In the command of train_segmenter alone it is the pyramid's; the run folder tells the images' there."""
    taken = {stage.name: PIPELINE.taken({stage.name: ""}) for stage in PIPELINE.stages + PIPELINE.tools}
    assert {name: flags for name, flags in taken.items() if flags} == {"train_segmenter": {"channels"}}
