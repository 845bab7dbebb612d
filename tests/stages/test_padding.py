"""Zeros around small pictures at inference, as the original has them: the mean displacement and the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, IRN_NETWORK, SEMANTIC_LABEL
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.transforms import normalise, random_crop, scaled_size, to_tensor
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.nn.irn_network import IrnNetwork, pad_image, side_as_trained
from irn_pipeline.ops.label_params import SynthesisParams
from irn_pipeline.ops.labels import labels_from_scores, walk_scores
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.trained_networks import padding
from tests.stages.conftest import TinyRun

SIDE = 128


def network_of(run: RunFolder) -> IrnNetwork:
    network = IrnNetwork(backbone="resnet18")
    network.load_state_dict(run.read(IRN_NETWORK).state)
    return network.eval()


def picture(run: TinyRun, image_id: str) -> Tensor:
    return normalise(to_tensor(read_image(run.voc_root / "JPEGImages" / f"{image_id}.jpg")))


def padded(image: Tensor) -> Tensor:
    canvas = torch.zeros(*image.shape[:-2], SIDE, SIDE)
    canvas[..., : image.shape[-2], : image.shape[-1]] = image
    return canvas


def ids(run: TinyRun, name: str) -> list[str]:
    return (run.voc_root / "ImageSets" / "Segmentation" / f"{name}.txt").read_text().split()


@pytest.mark.parametrize(
    ("extra", "listed", "crop", "pad"),
    [
        ([], "train", 512, False),
        (["--pad-to", str(SIDE)], "train", 512, True),
        (["--pad-to", str(SIDE), "--mean-shift-list", "val", "--mean-shift-crop", "48"], "val", 48, True),
    ],
)
def test_the_stored_mean_is_that_of_the_crops_of_the_inference_list(
    run_copy: Callable[..., TinyRun], extra: list[str], listed: str, crop: int, pad: bool
) -> None:
    tiny = run_copy("train_cam", "make_cam", "mine_relations")
    assert stage_main("train_irn", [*tiny.flags(), *extra]) == 0
    network = network_of(RunFolder(tiny.run_dir))
    stored = network.mean_shift.running_mean.clone()
    network.mean_shift.running_mean.zero_()
    crops = [picture(tiny, image_id)[:, :crop, :crop] for image_id in ids(tiny, listed)]
    with torch.no_grad():
        fields = [network(padded(image)[None] if pad else image[None])[1] for image in crops]
    expected = torch.stack([field.mean(dim=(0, 2, 3)) for field in fields]).mean(dim=0)
    torch.testing.assert_close(stored, expected, rtol=1e-4, atol=1e-5)
    assert stored.abs().max() > 1e-3


@torch.no_grad()
def test_labels_are_those_of_the_padded_picture(run_copy: Callable[..., TinyRun]) -> None:
    tiny = run_copy("train_cam", "make_cam", "mine_relations", "train_irn")
    assert stage_main("synthesize_labels", [*tiny.flags(), "--pad-to", str(SIDE)]) == 0
    run = RunFolder(tiny.run_dir)
    network = network_of(run)
    params = SynthesisParams(radius=3, instance_bg_threshold=0.01, min_area=0.0)
    unpadded_differ = 0
    for image_id in ids(tiny, "train"):
        image, cam = picture(tiny, image_id), run.read(CAM, image_id)
        size = (image.shape[1], image.shape[2])
        h, w = -(-size[0] // 4), -(-size[1] // 4)
        logits, field = network(
            padded(torch.stack([image, image.flip(-1)]))
        )  # the mirror is padded after the flip
        logits = logits[:, :h, :w]
        boundary = torch.sigmoid((logits[0] + logits[1].flip(-1)) / 2)
        scores, owners = walk_scores(
            cam.cam, cam.class_ids, boundary.numpy(), field[0, :, :h, :w].numpy(), size, params, device="cpu"
        )
        label, instances = labels_from_scores(scores, owners, size, params, None)
        assert (run.read(SEMANTIC_LABEL, image_id) == label).mean() > 0.999
        found = run.read(INSTANCE_LABEL, image_id)
        np.testing.assert_allclose(found.scores, instances.scores, atol=1e-3)
        unpadded_differ += not torch.allclose(network.predict(image)[0], boundary, atol=1e-3)
    assert unpadded_differ > 0


def test_a_picture_larger_than_the_padding_stays_whole(run_copy: Callable[..., TinyRun]) -> None:
    """The original cuts it."""
    tiny = run_copy("train_cam", "make_cam", "mine_relations", "train_irn", "synthesize_labels")
    other = replace(tiny, run_dir=tiny.run_dir.parent / "other")
    for stage in ("train_cam", "make_cam", "mine_relations", "train_irn"):
        (other.run_dir).mkdir(exist_ok=True)
        (other.run_dir / stage).symlink_to(tiny.run_dir / stage)
    assert stage_main("synthesize_labels", [*other.flags(), "--pad-to", "32"]) == 0
    assert stage_main("synthesize_labels", [*tiny.flags(), "--pad-to", "0", "--overwrite"]) == 0
    for image_id in ids(tiny, "train"):
        ours, plain = (RunFolder(one.run_dir).read(SEMANTIC_LABEL, image_id) for one in (other, tiny))
        assert np.array_equal(ours, plain)


def share_of_zeros(size: tuple[int, int], crop: int, scales: tuple[float, float]) -> float:
    """Mean over training crops made by the training's own transforms."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(4000):
        scaled = scaled_size(size, rng.uniform(*scales))
        window = random_crop(scaled, crop, rng)
        shares.append(1 - window.size[0] * window.size[1] / crop**2)
    return float(np.mean(shares))


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (64, 96), (600, 600), (100, 2000), (1200, 1600)])
@pytest.mark.parametrize(("crop", "scales"), [(512, (0.5, 1.5)), (384, (0.5, 1.5)), (160, (0.75, 1.5))])
def test_a_picture_gets_the_share_of_zeros_of_its_training_crops(
    size: tuple[int, int], crop: int, scales: tuple[float, float]
) -> None:
    side = side_as_trained(size, crop, scales)
    canvas = pad_image(torch.zeros(size), side).numel()
    assert 1 - size[0] * size[1] / canvas == pytest.approx(share_of_zeros(size, crop, scales), abs=0.01)


def test_published_pictures_are_padded_nearly_as_the_original_pads_them() -> None:
    assert side_as_trained((375, 500), 512, (0.5, 1.5)) == pytest.approx(512, rel=0.05)
    assert side_as_trained((1024, 1024), 512, (0.5, 1.5)) == 1024, "never seen with zeros"


def test_the_default_is_read_from_the_record_of_the_training(
    whole_run: TinyRun, run_copy: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = run_copy("train_cam", "make_cam", "mine_relations", "train_irn")
    trained = RunFolder(tiny.run_dir).record("train_irn")
    assert trained is not None
    assert trained.params["crop"] == 64
    sides = padding(RunFolder(tiny.run_dir), None)
    assert sides((64, 96)) == side_as_trained((64, 96), 64, (0.5, 1.5)) == 74
    assert padding(RunFolder(tiny.run_dir), 0)((64, 96)) == 0
    assert stage_main("synthesize_labels", [*tiny.flags(), "--pad-to", "0"]) == 0
    default, plain = RunFolder(whole_run.run_dir), RunFolder(tiny.run_dir)
    pictures = ids(tiny, "train")
    scores = [
        [run.read(INSTANCE_LABEL, image_id).scores for run in (default, plain)] for image_id in pictures
    ]
    assert any(ours.shape != other.shape or not np.allclose(ours, other) for ours, other in scores)
    assert stage_main("synthesize_labels", tiny.flags()) == 1
    assert "pad_to was 0, is now None" in capsys.readouterr().err
    # Labels of version 0.1, whose record does not name the parameter, have no padding either.
    record = plain.record("synthesize_labels")
    assert record is not None
    (tiny.run_dir / "synthesize_labels" / "stage.json").unlink()
    plain.write_record(replace(record, params={k: v for k, v in record.params.items() if k != "pad_to"}))
    assert stage_main("synthesize_labels", tiny.flags()) == 1
    assert "pad_to was 0, is now None" in capsys.readouterr().err
    assert stage_main("synthesize_labels", [*tiny.flags(), "--pad-to", "0"]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": "x"},
        {"crop": 0},
        {"crop": 10**9},
        {"rescale": []},
        {"rescale": [-1, 2]},
        {"cached_features": [0]},
        {"cached_features": "x"},
        {"cached_features": 1},
    ],
)
def test_an_impossible_record_is_one_error(
    run_copy: Callable[..., TinyRun], wrong: dict[str, object]
) -> None:
    tiny = run_copy("train_irn")
    run = RunFolder(tiny.run_dir)
    record = run.record("train_irn")
    assert record is not None
    (tiny.run_dir / "train_irn" / "stage.json").unlink()
    run.write_record(replace(record, params={**record.params, **wrong}))
    with pytest.raises(ArtifactError, match=r"stage\.json: damaged .*give --pad-to"):
        padding(run, None)
    assert padding(run, 512)((64, 96)) == 512


@torch.no_grad()
def test_padding_only_adds_below_and_right() -> None:
    network = IrnNetwork(backbone="resnet18").eval()
    image = torch.randn(3, 60, 72)
    torch.testing.assert_close(
        network.predict(image, pad_to=SIDE)[1], network(padded(image)[None])[1][0][:, :15, :18]
    )
    assert F.pad(image, (0, SIDE - 72, 0, SIDE - 60)).equal(padded(image))
