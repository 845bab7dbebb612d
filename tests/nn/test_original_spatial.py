"""Checkpoints of the authors' SpatialEmbeddings: names written out from their code, loaded and written back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from irn_pipeline.artifacts import Checkpoint
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.original_names import load_original_spatial, to_original_spatial
from irn_pipeline.nn.segmenters.spatial_embeddings import SpatialEmbeddings
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.trained_networks import segmenter_artifact
from tests.datasets.test_cityscapes import STREET, write

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
CONV = ("weight", "bias")


def down(name: str) -> list[str]:
    return [f"{name}.conv.{part}" for part in CONV] + [f"{name}.bn.{part}" for part in NORM]


def bottleneck(name: str) -> list[str]:
    convs = [f"{name}.conv{kind}.{part}" for kind in ("3x1_1", "1x3_1", "3x1_2", "1x3_2") for part in CONV]
    return convs + [f"{name}.bn{number}.{part}" for number in (1, 2) for part in NORM]


def names_of_the_original() -> set[str]:
    """Of the state dict of their BranchedERFNet in a DataParallel."""
    names = down("encoder.initial_block")
    for index in range(15):  # two downsamplers, five and eight bottlenecks
        block = f"encoder.layers.{index}"
        names += down(block) if index in (0, 6) else bottleneck(block)
    names += [f"encoder.output_conv.{part}" for part in CONV]
    for decoder in ("decoders.0", "decoders.1"):
        for index in range(6):
            block = f"{decoder}.layers.{index}"
            names += down(block) if index in (0, 3) else bottleneck(block)
        names += [f"{decoder}.output_conv.{part}" for part in CONV]
    return {f"module.{name}" for name in names}


def network(classes: int = 1, bandwidth: str = "circular") -> SpatialEmbeddings:
    torch.manual_seed(0)
    made = SpatialEmbeddings(num_classes=classes, bandwidth=bandwidth)  # type: ignore[arg-type]
    with torch.no_grad():
        for value in made.state_dict().values():
            if value.is_floating_point():
                value += 0.01 * torch.rand_like(value)
    return made.eval()


@pytest.fixture
def trained() -> SpatialEmbeddings:
    return network()


@pytest.fixture
def path(trained: SpatialEmbeddings, tmp_path: Path) -> Path:
    """As their train.py saves it."""
    state = to_original_spatial(trained.state_dict())
    state["module.encoder.output_conv.weight"] += 1
    file = tmp_path / "best_iou_model.pth"
    torch.save({"epoch": 199, "best_iou": 0.5, "model_state_dict": state, "optim_state_dict": {}}, file)
    return file


def test_the_names_are_theirs_and_the_unused_head_is_as_large_as_theirs(trained):
    state = to_original_spatial(trained.state_dict())
    assert state.keys() == names_of_the_original()
    assert state["module.encoder.output_conv.weight"].shape == (4, 128, 1, 1)
    assert state["module.encoder.output_conv.bias"].shape == (4,)


def test_a_loaded_network_gives_the_same_fields(trained, path):
    loaded = SpatialEmbeddings(num_classes=1, bandwidth="circular").eval()
    load_original_spatial(loaded, path)
    picture = torch.rand(1, 3, 24, 40)
    with torch.no_grad():
        ours, theirs = loaded(picture), trained(picture)
    for part in ("offset", "bandwidth", "seed"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part))
    assert not torch.equal(ours.offset, torch.zeros_like(ours.offset))


def test_other_models_are_not_exported(tmp_path, capsys):
    params = {"model": "spatial_embeddings", "backbone": "resnet18"}
    run, artifact = RunFolder(tmp_path), segmenter_artifact("spatial_embeddings")
    state = SpatialEmbeddings(num_classes=1, backbone="resnet18").state_dict()
    run.write(artifact, Checkpoint("spatial_embeddings", "resnet18", ("car",), state))
    run.write_record(StageRecord(artifact.stage, "0", params, {}, True, {}, 0.0, {}))
    assert stage_main("export_model", ["--run-dir", str(tmp_path)]) == 1
    assert "is a spatial_embeddings on resnet18; the authors' code has" in capsys.readouterr().err
    assert not (tmp_path / "export_model" / "spatial_embeddings.pth").exists()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"bandwidth": "elliptical"}, "its bandwidth is circular; add --bandwidth circular"),
        ({"classes": 3}, "has 1 seed maps, one for each class, and the data set has 3 classes"),
    ],
)
def test_networks_of_other_outputs_are_refused(made, message, path):
    with pytest.raises(CheckpointError, match=message):
        load_original_spatial(network(**made), path)


def test_files_that_are_no_such_checkpoint_are_refused(trained, tmp_path):
    file = tmp_path / "x.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(
        CheckpointError, match="not a checkpoint of the authors' SpatialEmbeddings; expected tensors"
    ):
        load_original_spatial(trained, file)
    state = to_original_spatial(trained.state_dict())
    torch.save({k: v for k, v in state.items() if k != "module.decoders.0.layers.3.bn.weight"}, file)
    with pytest.raises(CheckpointError, match=r"does not fit .*'decoders.0.layers.3.bn.weight' is missing"):
        load_original_spatial(trained, file)
    state["module.decoders.0.output_conv.bias"] = torch.zeros(7)
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="has 7 outputs; expected 3"):
        load_original_spatial(trained, file)


def test_the_flag_puts_the_checkpoint_in_the_place_of_a_training(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "streets", "train", "aachen", 0, STREET)
    run = tmp_path / "run"
    flags = ["--cityscapes-root", str(tmp_path / "streets"), "--run-dir", str(run), "--device", "cpu"]
    words = [*flags, "--model", "spatial_embeddings", "--original-checkpoint", str(path), "--classes", "car"]
    assert stage_main("train_segmenter", words) == 1
    assert capsys.readouterr().err.endswith("its bandwidth is circular; add --bandwidth circular\n")
    assert stage_main("train_segmenter", [*words, "--bandwidth", "circular"]) == 0
    network = run / "train_segmenter" / "spatial_embeddings" / "network.pt"
    assert network.is_file()
    assert stage_main("export_model", ["--run-dir", str(run)]) == 0
    theirs, ours = (
        torch.load(file, weights_only=True)["model_state_dict"]
        for file in (path, run / "export_model" / "spatial_embeddings.pth")
    )
    # All but the head that their code never uses, and which is zero in ours.
    assert theirs.keys() == ours.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == [
        "module.encoder.output_conv.weight"
    ]
    pictures = str(tmp_path / "streets" / "leftImg8bit")
    asked = ["--model", "spatial_embeddings", "--images", pictures, "--seed-threshold", "0.9"]
    assert stage_main("predict", ["--run-dir", str(run), "--device", "cpu", *asked]) == 0
    assert (run / "predict" / "spatial_embeddings" / "predictions.json").is_file()
