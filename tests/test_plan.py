"""Values that follow from the data set and the machine: photographs, cells, tiles, and what the user gave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.planner import Choice
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import DataError
from irn_pipeline.facts import Facts, notes
from irn_pipeline.files.yaml_text import read_yaml
from irn_pipeline.forecast import Work, forecast, in_words, table
from irn_pipeline.nn.backbone import build_backbone
from irn_pipeline.plan import PLANNED, RULES, choices_for
from irn_pipeline.stages.catalogue import PIPELINE, main

VOC = Facts(
    pictures=590, negatives=0, per_class={"cat": 100, "dog": 490}, tags=1.6, size=(375, 500), shortest=166,
    longest=500, lite0=True,
)  # fmt: skip
CELLS = replace(VOC, pictures=300, tags=1.0, size=(120, 120), shortest=120, longest=120)
TILES = replace(VOC, pictures=255, negatives=207, tags=1.0, size=(265, 375), shortest=103, longest=632)


def values(facts: Facts, **given: Any) -> dict[str, Any]:
    """The choices beside what was given, `train_cam__lr=1` for "train_cam.lr"."""
    named = {key.replace("__", "."): value for key, value in given.items()}
    return {choice.key: choice.value for choice in choices_for(facts, named)}


def test_every_choice_is_a_parameter_with_a_reason_and_none_is_made_twice() -> None:
    known = {
        f"{stage.name}.{name}" for stage in PIPELINE.stages for name in stage.params.__dataclass_fields__
    }
    for facts in (VOC, CELLS, TILES, replace(VOC, gpu=True), replace(VOC, lite0=False)):
        for given in ({}, {"train_cam.backbone_weights": "none"}, {"train_cam.optimizer": "sgd"}):
            choices = choices_for(facts, given)
            keys = [choice.key for choice in choices]
            assert set(keys) <= known
            assert len(keys) == len(set(keys))
            assert all(choice.reason and "\n" not in choice.reason for choice in choices)
            assert [*dict.fromkeys(choice.stage for choice in choices)][:4] == [
                stage for stage in PLANNED if stage != "mine_relations"
            ]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(VOC, gpu=True), ("resnet50", None, "probe")),
        (VOC, ("efficientnet_lite0", "installed", "probe")),
        (replace(VOC, lite0=False), ("resnet18", None, "probe")),
    ],
)
def test_the_network_follows_from_the_machine(
    facts: Facts, expected: tuple[str, str | None, str | None]
) -> None:
    found = values(facts)
    names = ("backbone", "backbone_weights", "head")
    assert tuple(found.get(f"train_cam.{name}") for name in names) == expected
    assert found["train_irn.backbone"] == found["train_segmenter.backbone"] == expected[0]
    assert found["train_irn.backbone_weights"] == (expected[1] or "imagenet")


def test_sizes_follow_from_the_median_picture() -> None:
    voc, cells, tiles = (values(facts, train_cam__head="trained") for facts in (VOC, CELLS, TILES))
    assert (voc["train_cam.crop"], voc["train_cam.long_side"]) == (480, [320, 640])  # as published
    assert voc["make_cam.scales"] == [1.0, 1.5]
    gpu = values(replace(VOC, gpu=True), train_cam__head="trained")
    assert gpu["make_cam.scales"] == [1.0, 0.5, 1.5, 2.0]  # as published
    assert (cells["train_cam.crop"], cells["train_cam.long_side"]) == (256, [160, 352])
    assert cells["make_cam.scales"] == [2.13, 3.2]  # 256 / 120 and half as much again
    assert (tiles["train_cam.crop"], tiles["train_cam.long_side"]) == (384, [256, 512])
    assert [found["train_irn.crop"] for found in (voc, cells, tiles)] == [384, 128, 384]
    assert [found["train_irn.radius"] for found in (voc, cells, tiles)] == [10, 5, 10]


def test_maps_come_from_a_probe_and_a_classifier_of_cells() -> None:
    found = values(VOC)
    assert (found["train_cam.head"], found["make_cam.seeds"]) == ("probe", "pixels")
    assert found["train_cam.long_side"] == [512]
    small = replace(TILES, negatives=0)
    assert [values(facts)["make_cam.pixel_side"] for facts in (VOC, CELLS, small)] == [512, 256, 512]
    # Neither has a use for these.
    assert (
        not {"train_cam.epochs", "train_cam.lr", "make_cam.scales", "synthesize_labels.bg_search"}
        & found.keys()
    )
    for given in (
        {"train_cam__epochs": 3},
        {"train_cam__backbone_weights": "none"},
        {"make_cam__scales": [1.0]},
    ):
        assert "make_cam.seeds" not in values(VOC, **given)
    assert values(replace(VOC, gpu=True))["make_cam.seeds"] == "pixels"


def test_many_images_without_a_tag_call_for_seeds_of_defects() -> None:
    found = values(TILES)
    assert (found["make_cam.seeds"], found["make_cam.defect_side"]) == ("defects", 736)
    assert (found["synthesize_labels.refiner"], found["synthesize_labels.instance_bg_threshold"]) == (
        "none",
        0.5,
    )
    assert found["synthesize_labels.parts"] == "components"
    assert found["synthesize_labels.min_area"] == pytest.approx(64 / (265 * 375), abs=1e-5)
    for facts in (replace(TILES, negatives=19), replace(TILES, negatives=60), replace(TILES, tags=1.6)):
        assert values(facts)["make_cam.seeds"] == "pixels"
    walked = values(TILES, synthesize_labels__refiner="walk")
    assert walked["make_cam.seeds"] == "defects"
    assert "synthesize_labels.semantic_bg_threshold" not in walked
    assert "synthesize_labels.parts" not in walked


def test_objects_in_the_middle_of_every_image_have_seeds_of_their_own() -> None:
    centred = replace(CELLS, one_tag=True, centred=True)
    found = values(centred)
    assert (found["make_cam.seeds"], found["synthesize_labels.refiner"]) == ("centre", "none")
    assert (
        found["synthesize_labels.semantic_bg_threshold"]
        == found["synthesize_labels.instance_bg_threshold"]
        == 0.5
    )
    assert found["synthesize_labels.parts"] == "components"
    assert not {"synthesize_labels.exp_times", "synthesize_labels.center_threshold"} & found.keys()
    assert replace(CELLS, one_tag=True).may_be_centred
    assert not VOC.may_be_centred
    assert not replace(TILES, one_tag=True).may_be_centred  # pictures without an object
    assert not replace(CELLS, one_tag=True, pictures=19).may_be_centred


def test_the_walk_follows_from_the_grid() -> None:
    # 94 x 125 cells; 30 x 30 = 900, 0.077 of them, 3.7 halvings; 67 x 94 = 6298, 0.54.
    found = [values(facts) for facts in (VOC, CELLS, replace(TILES, negatives=0))]
    assert [one["synthesize_labels.exp_times"] for one in found] == [8, 4, 7]
    assert [one["synthesize_labels.center_threshold"] for one in found] == [2.5, 1.0, 1.8]
    huge = values(replace(VOC, size=(4000, 6000)))
    assert (huge["synthesize_labels.exp_times"], huge["synthesize_labels.center_threshold"]) == (9, 2.5)


@pytest.mark.parametrize(
    ("pictures", "batch", "epochs", "reason"),
    [
        (590, 8, 5, "295 steps of 8 images: about 300 are enough"),
        (240, 8, 12, "288 steps of 8 images: about 300 are enough"),
        (20, 8, 60, "120 steps of 8 images: more passes over so few images add little"),
        (1, 8, 60, "60 steps of 8 images: more passes over so few images add little"),
        (100_000, 8, 1, "10000 steps of 8 images: about 300 are enough"),
    ],
)
def test_epochs_are_a_number_of_steps(pictures: int, batch: int, epochs: int, reason: str) -> None:
    facts = replace(VOC, pictures=pictures)
    (found,) = (c for c in choices_for(facts, {"train_cam.head": "trained"}) if c.key == "train_cam.epochs")
    assert (found.value, found.reason) == (epochs, reason)


def test_a_fifth_is_kept_out_where_there_are_enough() -> None:
    assert values(VOC)["train_cam.held_out"] == 0.2
    assert "train_cam.held_out" not in values(replace(VOC, pictures=49))
    assert (
        values(VOC, train_cam__held_out=0.0, train_cam__head="trained")["train_cam.epochs"] == 4
    )  # 292 steps


def test_negatives_let_small_objects_count() -> None:
    assert "synthesize_labels.min_area" not in values(VOC)
    assert values(TILES)["synthesize_labels.min_area"] == 0.00064  # 64 of 265 * 375 pixels
    assert (
        values(replace(TILES, size=(20, 20)))["synthesize_labels.min_area"] == 0.01
    )  # never above the published


def test_what_the_user_gave_is_not_chosen_and_the_rest_follows_it() -> None:
    found = values(VOC, train_cam__backbone="resnet50")
    assert "train_cam.backbone" not in found
    assert "train_cam.backbone_weights" not in found
    assert (found["train_irn.backbone"], found["train_irn.backbone_weights"]) == ("resnet50", "imagenet")
    found = values(VOC, train_cam__batch_size=32, train_cam__crop=320, train_irn__crop=256)
    assert not {"train_cam.batch_size", "train_cam.crop", "train_irn.crop"} & found.keys()
    assert found["train_cam.epochs"] == 21  # 300 steps of 32, four fifths of 590 pictures
    assert found["train_irn.radius"] == 10
    assert "train_cam.lr" not in values(VOC, train_cam__optimizer="sgd")
    assert "train_irn.lr" in values(VOC, train_cam__optimizer="sgd")
    found = values(VOC, train_irn__backbone="resnet34")
    assert "train_irn.backbone_weights" not in found
    assert "synthesize_labels.bg_search" not in values(VOC, synthesize_labels__instance_bg_threshold=0.3)


def test_from_nothing_everything_learns_and_no_features_are_trusted() -> None:
    found = values(VOC, train_cam__backbone_weights="none")
    assert (found["train_cam.backbone"], found["train_cam.frozen_stages"]) == ("resnet18", 0)
    assert found["train_cam.frozen_batch_norm"] is False
    assert found["train_irn.backbone_weights"] == "cam"
    assert "synthesize_labels.bg_search" not in found


def test_other_projects_maps_and_checkpoints_are_taken_as_they_are() -> None:
    found = values(VOC, mine_relations__cam_dir="x")
    assert "synthesize_labels.bg_search" not in found
    found = values(VOC, train_cam__original_checkpoint="res50_cam.pth")
    assert not any(key.startswith("train_cam.") for key in found)
    assert "train_irn.backbone" not in found
    assert not any(key.startswith("train_irn.") for key in values(VOC, train_irn__original_checkpoint="x"))
    assert "make_cam.scales" not in values(VOC, make_cam__from_cams=["x"])


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_file_of_weights_names_its_network(name: str, tmp_path: Path) -> None:
    torch.save(build_backbone(name).state_dict(), tmp_path / "weights.pth")
    found = values(VOC, train_cam__backbone_weights=str(tmp_path / "weights.pth"))
    assert found["train_cam.backbone"] == found["train_irn.backbone"] == name
    assert found["train_irn.backbone_weights"] == str(tmp_path / "weights.pth")
    assert "train_cam.backbone_weights" not in found


def test_a_rule_is_a_function_in_a_list() -> None:
    def last_word(facts: Facts, given: Any) -> list[Choice]:
        return [Choice("make_cam", "feature_affinity", 2.0 if given["train_irn.crop"] > 300 else 0.0, "why")]

    found = {choice.key: choice.value for choice in choices_for(VOC, {}, (*RULES, last_word))}
    assert found["make_cam.feature_affinity"] == 2.0


@pytest.mark.parametrize(
    ("facts", "parts"),
    [
        (VOC, []),
        (CELLS, []),
        (TILES, []),
        (replace(VOC, pictures=1, per_class={"cat": 1, "dog": 0}), ["1 image is too few"]),
        (replace(VOC, pictures=0, per_class={}), ["0 images are too few"]),
        (
            replace(VOC, per_class={"cat": 3, "dog": 400}),
            ["fewer than 10 images will hardly be learned: cat"],
        ),
        (
            replace(VOC, shortest=20, longest=6000),
            ["sides range from 20 to 6000 pixels", "a side of 20 pixels, 5 cells", "a side of 6000 pixels"],
        ),
    ],
)
def test_what_is_odd_is_one_line_each(facts: Facts, parts: list[str]) -> None:
    found = notes(facts)
    assert len(found) == len(parts)
    assert all(part in note and "\n" not in note for part, note in zip(parts, found, strict=True))


def picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


def test_facts_are_counted(tmp_path: Path) -> None:
    for name, height, width in (("a", 20, 30), ("b", 60, 40), ("c", 90, 100), ("d", 40, 50)):
        picture(tmp_path / "p" / f"{name}.png", height, width)
    (tmp_path / "tags.csv").write_text("image,cat,dog\na.png,1,0\nb.png,1,1\nc.png,0,1\nd.png,0,0\n")
    data = load_source(Source(image_dir=str(tmp_path / "p"), label_csv=str(tmp_path / "tags.csv")))
    facts = Facts.of(data, Execution(device="cpu", workers=3, precision="float32"))
    assert (facts.pictures, facts.negatives, facts.per_class) == (3, 1, {"cat": 2, "dog": 2})
    assert facts.tags == pytest.approx(4 / 3)
    assert (facts.size, facts.shortest, facts.longest) == ((60, 40), 20, 100)  # areas 600, 2000, 2400, 9000
    assert (facts.cores, facts.gpu, facts.bf16) == (3, False, False)
    assert facts.memory > 0.1
    for path in (tmp_path / "p").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its images can be read"):
        Facts.of(data, Execution(device="cpu"))


@pytest.fixture(scope="module")
def voc_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan") / "voc"
    generate_demo(root, num_images=4, num_heldout=2, min_size=(64, 80), max_size=(80, 96))
    return root


def flags(voc_root: Path, run_dir: Path, *more: str) -> list[str]:
    small = ("--train_cam.backbone_weights", "none", "--train_cam.epochs", "1", "--train_cam.crop", "64")
    common = ("--voc-root", str(voc_root), "--run-dir", str(run_dir), "--device", "cpu", "--workers", "1")
    return [*common, *small, "--train_cam.long_side", "64", "80", *more]


def test_a_run_without_flags_is_planned_and_goes_on_with_its_plan(
    voc_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "1", *flags(voc_root, tmp_path / "run")]) == 0
    shown = capsys.readouterr().err
    assert 'backbone: "resnet18"' in shown
    assert shown.index("how long it will take here") < shown.index("train_cam: ")
    plan = read_yaml(tmp_path / "run" / "plan.yaml")
    assert plan["train_irn"]["backbone_weights"] == "cam"
    record = RunFolder(tmp_path / "run").record("train_cam")
    assert record is not None
    assert (record.params["optimizer"], record.params["batch_size"], record.params["crop"]) == (
        "adamw",
        8,
        64,
    )
    before = (tmp_path / "run" / "plan.yaml").read_bytes()
    assert main(["run", "1-2", *flags(voc_root, tmp_path / "run")]) == 0
    record = RunFolder(tmp_path / "run").record("make_cam")
    assert record is not None
    assert record.params["scales"] == plan["make_cam"]["scales"]
    assert (tmp_path / "run" / "plan.yaml").read_bytes() == before


def test_the_command_shows_plan_and_times_and_writes_nothing(
    voc_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *flags(voc_root, tmp_path / "run"), "--train_irn.crop", "80"]) == 0
    shown = capsys.readouterr().err
    for stage in PLANNED:
        assert f"\n{stage} " in shown
    assert "together" in shown
    assert not (tmp_path / "run").exists()
    assert main(["plan", "--voc-root", str(tmp_path), "--run-dir", "x", "--train_cam.epoch", "1"]) == 1
    assert "did you mean 'train_cam.epochs'?" in capsys.readouterr().err


def test_times_are_of_the_stages_that_do_work(voc_root: Path) -> None:
    data = load_source(Source(voc_root=str(voc_root)))
    params = {stage.name: stage.params() for stage in PIPELINE.numbered}
    params["train_cam"] = replace(params["train_cam"], original_checkpoint="x")
    params["make_cam"] = replace(params["make_cam"], from_cams=("x",))
    execution = Execution(device="cpu", workers=1)
    assert forecast(data, execution, params, ["train_cam", "make_cam"]).startswith("nothing to time")
    shown = forecast(data, execution, params, ["mine_relations"])
    assert "mine_relations     4 images" in shown


def test_the_table_adds_up_and_names_the_longest_stage() -> None:
    shown = table(
        [Work("train_cam", "30 steps", 300, 2.0), Work("make_cam", "10 images", 10, 30.0)], on_gpu=False
    )
    assert "train_cam          30 steps   10 min" in shown
    assert "together                      15 min" in shown
    assert shown.endswith(
        "train_cam takes longest; give fewer --train_cam.epochs, a smaller --train_cam.crop, a GPU"
    )
    assert in_words(0.01) == "1 s"
