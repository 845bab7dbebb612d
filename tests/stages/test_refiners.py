"""Refiners and foreign class masks in stage 5, as a user chooses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from irn_pipeline.artifacts import (
    CAM,
    INSTANCE_LABEL,
    IRN_NETWORK,
    SEMANTIC_LABEL,
    Checkpoint,
    write_label,
)
from irn_pipeline.cam_files import cam_of_label
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.ops.label_params import SynthesisParams
from irn_pipeline.ops.parting import parted_label, parted_maps
from irn_pipeline.refiners import REFINERS, sam
from irn_pipeline.stages import synthesize_labels
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.structures import Cam, FloatArray, Instances, LabelArray, strided_size

CPU = Execution(device="cpu", precision="float32", workers=1, quiet=True)
PLAIN = synthesize_labels.Params(exp_times=3, min_area=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("refiners") / "voc"
    generate_demo(root, num_images=4, num_heldout=0, min_size=(64, 80), max_size=(80, 98))
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> DataSet:
    return load_source(Source(voc_root=str(root)))


def blurred(mask: FloatArray) -> FloatArray:
    return ndimage.gaussian_filter(mask, 3).astype(np.float32)


def prepared_run(folder: Path, data: DataSet) -> RunFolder:
    """As if stages 2 and 4 had run: maps that are blurred truths, and an untrained IRNet."""
    run = RunFolder(folder)
    torch.manual_seed(0)
    run.write(IRN_NETWORK, Checkpoint("irn", "resnet18", (), IrnNetwork(backbone="resnet18").state_dict()))
    for record in data.items:
        truth = data.ground_truth(record.image_id)
        assert truth is not None
        exact = cam_of_label(np.where(truth.label == 255, 0, truth.label).astype(np.uint8))
        high_res = np.stack([blurred(one) for one in exact.high_res_cam])
        h, w = strided_size(exact.size)
        run.write(
            CAM, Cam(exact.class_ids, high_res[:, ::4, ::4][:, :h, :w].copy(), high_res), record.image_id
        )
    for name in ("make_cam", "train_irn"):
        run.write_record(StageRecord(name, "0", {}, {}, True, {}, 0.0, {}))
    return run


def labels_of(
    folder: Path, data: DataSet, params: synthesize_labels.Params
) -> list[tuple[LabelArray, Instances]]:
    run = prepared_run(folder, data)
    run_stage(synthesize_labels.STAGE, Job(run, params, data, CPU))
    names = [record.image_id for record in data.items]
    return [(run.read(SEMANTIC_LABEL, name), run.read(INSTANCE_LABEL, name)) for name in names]


@pytest.mark.parametrize("name", [name for name in REFINERS if name != "sam"])
def test_every_refiner_gives_labels_of_the_tags(name: Any, tmp_path: Path, data: DataSet) -> None:
    if name == "crf":
        pytest.importorskip("pydensecrf")
    found = labels_of(tmp_path / "run", data, replace(PLAIN, refiner=name))
    for (label, instances), record in zip(found, data.items, strict=True):
        height, width = read_image(record.path).shape[:2]
        assert label.shape == instances.size == (height, width)
        assert {int(v) - 1 for v in np.unique(label)} - {-1} <= set(record.class_ids)
        truth = data.ground_truth(record.image_id)
        assert truth is not None
        if name not in ("walk", "features"):  # an untrained network leads these astray
            assert (label == truth.label)[truth.label != 255].mean() > 0.8
        if REFINERS[name].label is not None:
            covered = np.zeros(label.shape, np.uint8)
            for mask, class_id in zip(instances.masks, instances.class_ids.tolist(), strict=True):
                covered[mask] = class_id + 1
            assert np.array_equal(covered, label)


def test_components_are_parted_where_they_do_not_touch_and_need_no_irnet(
    tmp_path: Path, data: DataSet
) -> None:
    params = replace(PLAIN, refiner="none", parts="components")
    run = prepared_run(tmp_path / "run", data)
    run.path(IRN_NETWORK).unlink()
    run_stage(synthesize_labels.STAGE, Job(run, params, data, CPU))
    for record in data.items:
        label, found = run.read(SEMANTIC_LABEL, record.image_id), run.read(INSTANCE_LABEL, record.image_id)
        parts = [
            ndimage.label(label == class_id + 1)[0] == number
            for class_id in record.class_ids
            for number in range(1, ndimage.label(label == class_id + 1)[1] + 1)
        ]
        assert {mask.tobytes() for mask in found.masks} == {mask.tobytes() for mask in parts}


def test_components_are_for_the_refiner_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_main("synthesize_labels", ["--parts", "components"]) == 1
    assert "parts components leaves IRNet out, which refiner walk needs" in capsys.readouterr().err
    words = ["--parts", "components", "--refiner", "none", "--center-threshold", "2"]
    assert stage_main("synthesize_labels", words) == 1
    assert "--center-threshold: --parts components leaves IRNet out" in capsys.readouterr().err


def test_the_walk_is_the_default_and_what_it_was(tmp_path: Path, data: DataSet) -> None:
    from irn_pipeline.datasets.transforms import normalise, to_tensor
    from irn_pipeline.ops.labels import synthesize
    from irn_pipeline.trained_networks import load_irn

    found = labels_of(tmp_path / "run", data, replace(PLAIN, pad_to=0))
    run = RunFolder(tmp_path / "run")
    network = load_irn(run, CPU)
    for (label, instances), record in zip(found, data.items, strict=True):
        image = read_image(record.path)
        boundary, displacement = network.predict(normalise(to_tensor(image)))
        cam = run.read(CAM, record.image_id)
        expected, parts = synthesize(
            cam.cam, cam.class_ids, boundary.numpy(), displacement.numpy(), image.shape[:2], PLAIN
        )
        assert np.array_equal(label, expected) and np.array_equal(instances.masks, parts.masks)


def toward(columns: list[int], size: tuple[int, int]) -> FloatArray:
    """A displacement in which the picture's halves point to a column of cells each."""
    h, w = strided_size(size)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    goal = np.where(x < w / 2, columns[0], columns[1])
    return np.stack([h / 2 - y, goal - x]).astype(np.float32)


def test_a_region_is_parted_where_the_displacement_parts() -> None:
    label = np.zeros((32, 64), np.uint8)
    label[8:24, 4:60] = 3
    label[0, 0] = 255
    cam = cam_of_label(label)
    assert cam.class_ids.tolist() == [2]
    params = SynthesisParams(min_area=0.0)
    found = parted_label(label, cam, toward([4, 12], (32, 64)), params)
    assert found.class_ids.tolist() == [2, 2] and found.scores.tolist() == [1.0, 1.0]
    assert [int(mask.sum()) for mask in found.masks] == [16 * 28, 16 * 28]
    assert not found.masks[0][:, 32:].any() and not found.masks[1][:, :32].any()
    maps, owners = parted_maps(torch.from_numpy(cam.cam), cam.class_ids, toward([4, 12], (32, 64)), params)
    assert owners.tolist() == [2, 2]
    torch.testing.assert_close(maps.sum(0), torch.from_numpy(cam.cam[0]))


def test_an_empty_label_has_no_instance() -> None:
    label = np.zeros((9, 13), np.uint8)
    cam = cam_of_label(label)
    assert cam.size == (9, 13) and len(cam.class_ids) == 0
    assert len(parted_label(label, cam, np.zeros((2, 3, 4), np.float32), SynthesisParams())) == 0


def semantic_folder(folder: Path, data: DataSet, left_out: int = 0) -> Path:
    folder.mkdir()
    for record in data.items[left_out:]:
        truth = data.ground_truth(record.image_id)
        assert truth is not None
        write_label(folder / f"{record.image_id}.png", truth.label)
    return folder


def test_foreign_masks_are_parted_as_they_are(tmp_path: Path, data: DataSet) -> None:
    folder = semantic_folder(tmp_path / "masks", data)
    params = replace(PLAIN, refiner="none", semantic_dir=str(folder))
    run = RunFolder(tmp_path / "run")
    torch.manual_seed(0)
    run.write(IRN_NETWORK, Checkpoint("irn", "resnet18", (), IrnNetwork(backbone="resnet18").state_dict()))
    run.write_record(StageRecord("train_irn", "0", {}, {}, True, {}, 0.0, {}))
    run_stage(synthesize_labels.STAGE, Job(run, params, data, CPU))  # needs no make_cam
    for record in data.items:
        truth, label = data.ground_truth(record.image_id), run.read(SEMANTIC_LABEL, record.image_id)
        assert truth is not None
        assert np.array_equal(label, np.where(truth.label == 255, 0, truth.label))
        instances = run.read(INSTANCE_LABEL, record.image_id)
        assert (instances.masks.sum(0) == (label > 0)).all()


def test_foreign_masks_can_be_walked(tmp_path: Path, data: DataSet) -> None:
    folder = semantic_folder(tmp_path / "masks", data)
    found = labels_of(tmp_path / "run", data, replace(PLAIN, semantic_dir=str(folder)))
    assert any(label.any() for label, _ in found)


def run_command(root: Path, run_dir: Path, *flags: str) -> int:
    words = ["--voc-root", str(root), "--run-dir", str(run_dir), "--device", "cpu", "--precision", "float32"]
    return stage_main("synthesize_labels", [*words, "--workers", "1", *flags])


def test_pictures_without_a_foreign_mask_and_wrong_ones_are_told(
    tmp_path: Path, root: Path, data: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = semantic_folder(tmp_path / "masks", data, left_out=1)
    second, third = data.items[1].image_id, data.items[2].image_id
    write_label(folder / f"{second}.png", np.zeros((5, 6), np.uint8))
    write_label(folder / f"{third}.png", np.full(read_image(data.items[2].path).shape[:2], 77, np.uint8))
    prepared_run(tmp_path / "run", data)
    run_command(root, tmp_path / "run", "--semantic-dir", str(folder), "--refiner", "none")
    said = capsys.readouterr().err
    assert f"{data.items[0].image_id}.png: no such file" in said
    assert f"{second}.png: is for a 5x6 image" in said
    assert f"{third}.png: holds maps of class 76" in said or f"{third}.png: holds class 76" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--refiner", "none", "--beta", "3"], "--beta: --refiner none takes no random walk"),
        (["--pamr-iterations", "3"], "--pamr-iterations: has no effect with walk; it is for pamr"),
        (
            ["--refiner", "crf", "--bg-search", "0.2", "0.5"],
            "--bg-search: --refiner crf makes labels without scores",
        ),
        (["--refiner", "crf", "--keep-scores"], "refiner crf makes labels without scores"),
        (["--refiner", "pamr", "--pamr-iterations", "-1"], "pamr_iterations is -1"),
        (["--refiner", "features", "--feature-power", "0"], "feature_power is 0"),
        (
            ["--semantic-dir", "nowhere"],
            "--semantic-dir nowhere: no such folder; give the folder that holds one file ID.png",
        ),
        (["--semantic-dir", "a", "--cam-dir", "b"], "semantic_dir and cam_dir both name"),
        (["--refiner", "sam"], "--refiner sam needs --sam-checkpoint DIR"),
        (["--refiner", "sam", "--sam-checkpoint", "nowhere"], "nowhere: holds no config.json"),
        (["--refiner", "wlak"], "wlak"),
    ],
)
def test_what_does_not_fit_is_refused(
    flags: list[str], said: str, root: Path, tmp_path: Path, data: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared_run(tmp_path / "run", data)
    assert run_command(root, tmp_path / "run", *flags) == 1
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_masks_of_the_true_objects_give_the_true_label(
    tmp_path: Path, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for Segment Anything that answers with given masks."""
    truths = {read_image(r.path).tobytes(): data.ground_truth(r.image_id) for r in data.items}

    def given(params: Any, device: Any) -> sam.MaskMaker:
        def masks_of(image: LabelArray) -> list[Any]:
            truth = truths[image.tobytes()]
            assert truth is not None
            return [truth.label == value for value in np.unique(truth.label) if value not in (0, 255)]

        return masks_of

    walked = labels_of(tmp_path / "walk", data, PLAIN)
    refiner = replace(sam.REFINER, prepare=given)
    monkeypatch.setitem(REFINERS, "sam", refiner)
    snapped = labels_of(tmp_path / "sam", data, replace(PLAIN, refiner="sam", sam_max_area=1.0))
    for (before, _), (after, instances), record in zip(walked, snapped, data.items, strict=True):
        truth = data.ground_truth(record.image_id)
        assert truth is not None
        for value in np.unique(after[(after > 0) & (after < 255)]):
            # Whole masks, and what no mask covers of the walk's region.
            masks = [truth.label == v for v in np.unique(truth.label) if v not in (0, 255)]
            inside = np.any(masks, axis=0)
            taken = [mask for mask in masks if (after[mask] == value).any()]
            assert all((after[mask] == value).all() for mask in taken)
            assert (before[(after == value) & ~inside] == value).all()
        assert (instances.masks.any(0) == ((after > 0) & (after < 255))).all()
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(walked, snapped, strict=True))


def tiny_sam(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "global_attn_indexes": [0], "mlp_dim": 32, "image_size": 64, "patch_size": 8, "window_size": 4,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    transformers.SamModel(config).save_pretrained(folder)
    transformers.SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}
    ).save_pretrained(folder)
    return folder


def test_a_model_of_transformers_makes_masks_of_the_pictures_size(tmp_path: Path) -> None:
    folder = tiny_sam(tmp_path / "sam")
    params = sam.SamParams(sam_checkpoint=str(folder), sam_points=2, sam_iou=-100.0)
    masks = sam.prepare(params, torch.device("cpu"))(
        np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    )
    assert all(mask.shape == (40, 56) and mask.dtype == np.bool_ for mask in masks)


def test_the_stage_runs_with_random_weights(tmp_path: Path, data: DataSet) -> None:
    folder = tiny_sam(tmp_path / "sam")
    params = replace(PLAIN, refiner="sam", sam_checkpoint=str(folder), sam_points=2)
    found = labels_of(tmp_path / "run", data, params)
    assert len(found) == 4


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    params = sam.SamParams(sam_checkpoint=str(tmp_path / "vit"))
    with pytest.raises(CheckpointError, match="holds a model of kind 'vit'") as caught:
        sam.prepare(params, torch.device("cpu"))
    assert "\n" not in str(caught.value)
    folder = tiny_sam(tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        sam.prepare(sam.SamParams(sam_checkpoint=str(folder)), torch.device("cpu"))
    assert "\n" not in str(caught.value)
