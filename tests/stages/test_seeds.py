"""Kinds of seeds as a user chooses them: maps of the right kind, flags of their own, and what they need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import CAM, CAM_NETWORK, Checkpoint
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.datasets.transforms import normalise, to_tensor
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ConfigError
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.ops.cam import merge_scales
from irn_pipeline.seeds import SEEDS, layercam, lpcam
from irn_pipeline.seeds.base import NoParams, Picture
from irn_pipeline.stages import make_cam
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.structures import Cam

CPU = Execution(device="cpu", precision="float32", workers=1, quiet=True)
FAST = make_cam.Params(scales=(1.0, 0.5), advcam_steps=3, lpcam_clusters=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seeds") / "voc"
    generate_demo(root, num_images=5, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> DataSet:
    return load_source(Source(voc_root=str(root)))


@pytest.fixture(scope="module")
def network(data: DataSet) -> CamNetwork:
    torch.manual_seed(0)
    return CamNetwork(num_classes=len(data.identity), backbone="resnet18")


def made(folder: Path, data: DataSet, network: CamNetwork, params: make_cam.Params) -> list[Cam]:
    run = RunFolder(folder)
    run.write(CAM_NETWORK, Checkpoint("cam", network.backbone.name, data.identity, network.state_dict()))
    run.write_record(StageRecord("train_cam", "0", {}, {}, True, {}, 0.0, {}))
    run_stage(make_cam.STAGE, Job(run, params, data, CPU))
    return [run.read(CAM, record.image_id) for record in data.items]


@pytest.mark.parametrize("name", [name for name in SEEDS if name != "defects"])  # it needs untagged images
def test_every_seed_gives_a_map_for_each_tag(
    name: str, tmp_path: Path, data: DataSet, network: CamNetwork
) -> None:
    used = {"advcam": ("advcam_steps",), "lpcam": ("lpcam_clusters",)}.get(name, ())
    plain = make_cam.Params(scales=FAST.scales)
    params = replace(plain, seeds=name, **{field: getattr(FAST, field) for field in used})  # type: ignore[arg-type]
    found = made(tmp_path / "run", data, network, params)
    for cam, record in zip(found, data.items, strict=True):
        height, width = read_image(record.path).shape[:2]
        assert cam.class_ids.tolist() == list(record.class_ids)
        assert cam.size == (height, width)
        assert np.isfinite(cam.cam).all() and cam.cam.min() >= 0 and 0.99 < cam.cam.max() <= 1
    default = made(tmp_path / "plain", data, network, plain)
    same = all(np.array_equal(a.cam, b.cam) for a, b in zip(found, default, strict=True))
    assert same == (name == "cam")
    again = made(tmp_path / "again", data, network, params)
    assert all(np.array_equal(a.cam, b.cam) for a, b in zip(found, again, strict=True))


def picture_of(data: DataSet, network: CamNetwork, number: int = 0) -> Picture:
    record = data.items[number]
    image = normalise(to_tensor(read_image(record.path)))
    size = (image.shape[1], image.shape[2])
    return Picture(network.eval(), (image,), (1.0,), list(record.class_ids), size)


def test_layercam_reaches_the_maps_of_a_network_that_pads_its_images(tmp_path: Path, data: DataSet) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    network = CamNetwork(num_classes=len(data.images.class_names), backbone="efficientnet_lite0")
    for stages in ((4,), (2, 3, 4)):
        params = make_cam.Params(scales=(1.0, 0.7), seeds="layercam", layercam_stages=stages)
        found = made(tmp_path / f"run{len(stages)}", data, network, params)
        for cam, record in zip(found, data.items, strict=True):
            assert cam.size == read_image(record.path).shape[:2]
            assert all(0.99 < one.max() <= 1 and one.std() > 0.01 for one in cam.cam)
    with pytest.raises(ConfigError, match="which this network resizes; choose other --layercam-stages"):
        made(tmp_path / "first", data, network, replace(params, layercam_stages=(0, 4)))


def test_the_default_is_the_published_map(tmp_path: Path, data: DataSet, network: CamNetwork) -> None:
    (first, *_) = made(tmp_path / "run", data, network, make_cam.Params(scales=(1.0,)))
    picture = picture_of(data, network)
    with torch.no_grad():
        pair = torch.stack([picture.scaled[0], picture.scaled[0].flip(-1)])
        maps = network.activation_maps(pair)
        expected, _ = merge_scales([(maps[0] + maps[1].flip(-1))[picture.class_ids]], picture.size)
    np.testing.assert_allclose(first.cam, expected.numpy(), atol=1e-4)


def test_layercam_of_the_last_stage_is_the_map_of_the_positive_weights(
    data: DataSet, network: CamNetwork
) -> None:
    picture = picture_of(data, network)
    (found,) = layercam.maps(picture, layercam.LayerCamParams((4,)), None)
    with torch.no_grad():
        pair = torch.stack([picture.scaled[0], picture.scaled[0].flip(-1)])
        weight = network.classifier.weight.flatten(1)[picture.class_ids].clamp(min=0)
        maps = torch.einsum("kd,bdhw->bkhw", weight, network.backbone(pair)[-1])
        expected = maps[0] + maps[1].flip(-1)
    torch.testing.assert_close(found, expected / expected.amax((1, 2), keepdim=True), rtol=1e-4, atol=1e-5)


def test_one_step_of_advcam_is_the_plain_map_weighed_by_picture_and_mirror(
    data: DataSet, network: CamNetwork
) -> None:
    picture = picture_of(data, network)
    seed = SEEDS["advcam"]
    (found,) = seed.maps(picture, seed.params(advcam_steps=1), None)
    with torch.no_grad():
        pair = torch.stack([picture.scaled[0], picture.scaled[0].flip(-1)])
        maps = network.activation_maps(pair)[:, picture.class_ids]
        cells = (maps > 0).sum((2, 3))
        shares = cells / cells.sum(0).clamp(min=1)
        expected = maps[0] * shares[0][:, None, None] + maps[1].flip(-1) * shares[1][:, None, None]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one / one.max(), other / other.max(), rtol=1e-3, atol=1e-4)


def test_a_class_without_prototypes_has_the_plain_map(data: DataSet, network: CamNetwork) -> None:
    picture = picture_of(data, network)
    with torch.no_grad():
        (found,) = lpcam.maps(picture, lpcam.LpCamParams(), [None] * len(data.identity))
        (expected,) = SEEDS["cam"].maps(picture, NoParams(), None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_cells_are_drawn_evenly_and_in_bounded_memory() -> None:
    sample = lpcam._Sample(100, torch.Generator().manual_seed(0))
    for part in range(50):
        sample.add(torch.full((40, 1), float(part)))
        assert sum(len(cells) for _, cells in sample.parts) <= 240
    cells = sample.cells()
    assert cells is not None and cells.shape == (100, 1)
    assert 20 < float(cells.mean()) < 29  # of 0..49, the first as likely as the last


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--seeds", "layercam", "--advcam-steps", "3"],
            "--advcam-steps: has no effect with layercam; it is for advcam",
        ),
        (["--lpcam-clusters", "3"], "--lpcam-clusters: has no effect with cam; it is for lpcam"),
        (["--seeds", "advcam", "--advcam-steps", "0"], "advcam_steps is 0; it must be 1 or more"),
        (
            ["--seeds", "layercam", "--layercam-stages", "7"],
            "layercam_stages are [7]; each must be from 0 to 4",
        ),
        (["--seeds", "lpcam", "--lpcam-cells", "5"], "at least as many cells"),
        (
            ["--seeds", "lpcam", "--from-cams", "maps"],
            "seeds lpcam are made with the classifier of train_cam",
        ),
        (
            ["--seeds", "layercam", "--from-model", "x"],
            "seeds layercam are made with the classifier of train_cam",
        ),
        (["--seeds", "lpcma"], "lpcma"),
    ],
)
def test_what_does_not_fit_is_refused(
    flags: list[str], said: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage_main("make_cam", ["--voc-root", str(root), "--run-dir", str(tmp_path / "run"), *flags]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]


def test_seeds_do_not_mix_in_one_folder(
    tmp_path: Path, root: Path, data: DataSet, network: CamNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "run", data, network, make_cam.Params(scales=(1.0,)))
    words = [
        "--voc-root",
        str(root),
        "--run-dir",
        str(tmp_path / "run"),
        "--scales",
        "1.0",
        "--device",
        "cpu",
    ]
    words += ["--precision", "float32"]
    assert stage_main("make_cam", [*words, "--seeds", "layercam"]) == 1
    assert "seeds" in capsys.readouterr().err
