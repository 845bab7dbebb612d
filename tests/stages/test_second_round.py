"""Maps from a trained model: the second round of the pipeline, in a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import CAM, Checkpoint
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.synthetic import DEMO_CLASSES
from irn_pipeline.datasets.transforms import normalise, to_tensor
from irn_pipeline.ops.cam import merge_scales
from irn_pipeline.runtime.execution import Execution
from irn_pipeline.runtime.store import RunFolder, StageRecord
from stages.__main__ import main, stage_main
from stages._segmenter import SegmenterParams, build_segmenter, load_segmenter, segmenter_artifact
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


def test_the_second_round_goes_on_to_labels(whole_run: TinyRun, tmp_path: Path) -> None:
    model_dir, second = first_round(tmp_path / "first"), tmp_path / "second"
    # IRNet's backbone cannot come from a classifier that this folder does not have.
    command = ["2-5", *flags(whole_run, second), "--make_cam.from_model", str(model_dir)]
    assert main([*command, "--train_irn.backbone_weights", "none"]) == 0
    assert len(list((second / "synthesize_labels" / "semantic_label").iterdir())) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.parent.parent, "is no model's folder; give RUN_DIR/train_segmenter/deeplabv3"),
        (lambda f: f.parent / "mask_rcnn", "no trained model here"),
        (lambda f: first_round(f.parent.parent.parent / "b", "mask_rcnn"), "has no map of a whole class"),
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
