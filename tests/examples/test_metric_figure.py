"""The figure of metric embeddings: colours of known embeddings, and the command on an untrained model."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from examples import metric_figure as example
from irn_pipeline.artifacts import Checkpoint
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.models import SegmenterParams, build_segmenter
from irn_pipeline.trained_networks import segmenter_artifact


def test_equal_embeddings_have_equal_colours_and_others_differ():
    embeddings = torch.zeros(5, 4, 6)
    embeddings[0, :, 3:] = 10.0
    embeddings[3, 2:] = 4.0
    colours = example.principal_colours(embeddings)
    quarters = [colours[rows, columns].reshape(-1, 3) for rows in (slice(2), slice(2, 4)) for columns in
                (slice(3), slice(3, 6))]  # fmt: skip
    assert all((quarter == quarter[0]).all() for quarter in quarters)
    assert len({tuple(quarter[0].tolist()) for quarter in quarters}) == 4


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    folder = RunFolder(tmp_path / "run")
    for model in ("metric_embeddings", "deeplabv3"):
        values = {"model": model, "backbone": "resnet18", "embedding_dims": 8, "min_seediness": 0.0}
        state = build_segmenter(SegmenterParams(**values), 2).state_dict()
        artifact = segmenter_artifact(model)
        folder.write(artifact, Checkpoint(model, "resnet18", ("a", "b"), state))
        folder.write_record(StageRecord(artifact.stage, "0", values, {}, True, {}, 0.0, {}))
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (50, 37), "teal").save(tmp_path / "images" / name)
    return tmp_path


def words(folder, *more):
    return [
        "x",
        "--run-dir",
        str(folder / "run"),
        "--images",
        str(folder / "images"),
        "--out",
        str(folder / "out"),
        *more,
    ]


def test_every_picture_has_a_figure_of_five_panels(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", words(run))
    assert example.main() == 0
    assert sorted(path.name for path in (run / "out").iterdir()) == ["a.jpg.png", "b.png.png"]
    page = Image.open(run / "out" / "a.jpg.png")
    assert page.size == (2 * 5 * (50 + 6), 2 * (37 + 14 + 6))
    # seeds are drawn in the fourth panel: yellow somewhere
    panel = np.asarray(page)[28:102, 2 * 3 * 56 : 2 * (3 * 56 + 50)]
    assert (panel == [255, 255, 0]).all(-1).any()


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--model", "deeplabv3"], "has no seeds"), (["--model", "other"], "no trained model")],
)
def test_a_model_without_seeds_is_one_line(run, monkeypatch, capsys, more, message):
    monkeypatch.setattr(sys, "argv", words(run, *more))
    with pytest.raises(SystemExit):
        example.main()
    assert message in capsys.readouterr().err
