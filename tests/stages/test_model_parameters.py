"""Every parameter of train_segmenter has an effect on a model, or its flag is refused by name: the whole table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import (
    INSTANCE_LABEL,
    SEMANTIC_LABEL,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.optimisation import Phase
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ConfigError
from irn_pipeline.models import (
    MODELS,
    AskedParams,
    SegmenterParams,
    build_segmenter,
    later_phases,
    recipe_of,
    require_asked,
    unused_parameters,
    variant_of,
)
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.stages.train_segmenter import _start, fit, samples
from irn_pipeline.trained_networks import load_segmenter, segmenter_artifact

EXECUTION = Execution(device="cpu", precision="float32", workers=1, quiet=True)
TINY: dict[str, Any] = {
    "backbone": "resnet18", "backbone_weights": "none", "short_side": 64, "long_side": 96, "boxes_per_image": 16,
    "channels": 16, "crop": 64, "rescale": (1.0, 1.0),
}  # fmt: skip
OTHERWISE: dict[str, Any] = {
    "crop": 48, "rescale": (0.5, 0.5), "ignore_band": 11, "short_side": 48, "long_side": 70, "boxes_per_image": 4,
    "channels": 32, "bandwidth": "circular", "to_center": True, "foreground_weight": 3.0,
    "output_stride": 8, "balance_classes": False, "features": "dilated",
    "cell_size": 4, "feature_scales": (0.5, 1.0), "embedding_dims": 8, "coordinates": False, "similarities": (0.3, 0.6),
    "points_per_instance": 3, "background": "none", "background_points": 7, "background_size": "own",
    "class_points": 5, "kernel": "gaussian",
}  # fmt: skip
"""Another value of each parameter that some models have and others have not, `start_from` aside."""
ANSWERS: dict[str, Any] = {
    "min_pixels": 7, "seed_threshold": 0.9, "foreground_threshold": 0.3, "max_seeds": 9, "diversity": 0.5,
    "min_seediness": 0.2, "max_iou": 0.7, "connected": True,
}  # fmt: skip
"""Parameters of the answers of a trained model, which change no loss."""
OF_ALL = {
    "model", "labels", "backbone", "backbone_weights", "frozen_stages", "epochs", "batch_size", "lr", "optimizer",
    "momentum", "weight_decay", "warmup_steps", "max_gradient_norm", "ema_decay", "validate_list", "validate_every",
    "schedule", "patience",
}  # fmt: skip
OWNED = {*OTHERWISE, *ANSWERS, "start_from", "first_epochs", "original_checkpoint", "crops"}


def own(model: str) -> set[str]:
    return {field.name for field in fields(MODELS[model].params)}


def learned(model: str) -> set[str]:
    return own(model) - {*ANSWERS, "original_checkpoint", "first_epochs"}


@dataclass(frozen=True)
class Bench:
    """Two pictures with labels in a run folder."""

    data: DataSet
    run: RunFolder

    def job(self, **values: Any) -> Job[SegmenterParams, DataSet]:
        return Job(self.run, SegmenterParams(**{**TINY, **values}), self.data, EXECUTION)

    def losses(self, **values: Any) -> dict[str, float]:
        """Losses of the first batch, everything random from one seed."""
        work = self.job(**values)
        torch.manual_seed(0)
        network = _start(work, work.params).train()
        with torch.no_grad():
            for parameter in network.parameters():  # some heads start at zero, whatever their form
                parameter += 0.01 * torch.randn_like(parameter)
        images, targets = zip(*(samples(work)[0, index] for index in range(2)), strict=True)
        torch.manual_seed(0)
        # Half way, where every loss counts.
        return {name: value.item() for name, value in network.losses(images, targets, 0.5).items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("parameters")
    generate_demo(folder / "voc", num_images=2, num_heldout=0, min_size=(64, 80), max_size=(64, 80))
    data, run = load_source(Source(voc_root=str(folder / "voc"))), RunFolder(folder / "run")
    run.write_record(StageRecord("synthesize_labels", "0", {}, {}, True, {}, 0.0, {}))
    for record in data.items:
        truth = data.ground_truth(record.image_id)
        assert truth is not None
        scores = np.full(len(truth.instances), 0.9, np.float32)
        run.write(INSTANCE_LABEL, replace(truth.instances, scores=scores), record.image_id)
        run.write(SEMANTIC_LABEL, truth.label, record.image_id)
    torch.manual_seed(1)  # other weights than those that `losses` starts from
    trained = build_segmenter(SegmenterParams(**TINY), len(DEMO_CLASSES)).state_dict()
    run.write(segmenter_artifact("mask_rcnn"), Checkpoint("mask_rcnn", "resnet18", DEMO_CLASSES, trained))
    return Bench(data, run)


def test_every_parameter_is_common_or_owned() -> None:
    assert {field.name for field in fields(SegmenterParams)} == OF_ALL | OWNED
    assert set().union(*map(own, MODELS)) == OWNED


@pytest.mark.parametrize("model", MODELS)
def test_what_a_model_uses_changes_its_losses_and_nothing_else_does(bench: Bench, model: str) -> None:
    as_it_is = bench.losses(model=model)
    assert bench.losses(model=model) == as_it_is
    effective = {
        name for name, value in OTHERWISE.items() if bench.losses(model=model, **{name: value}) != as_it_is
    }
    network = str(bench.run.path(segmenter_artifact("mask_rcnn")))
    if bench.losses(model=model, start_from=network) != as_it_is:
        effective.add("start_from")
    if bench.losses(model=model, crops=(48,), epochs=1) != bench.losses(model=model, epochs=1):
        effective.add("crops")
    assert effective == learned(model)


def test_a_plain_mask_rcnn_can_be_trained_first(bench: Bench, tmp_path: Path) -> None:
    """As one command, and after an interruption, it gives what two commands give."""

    def train(folder: str, **values: Any) -> dict[str, torch.Tensor]:
        work = bench.job(labels="truth", epochs=1, batch_size=2, warmup_steps=0, **values)
        work = replace(work, run=RunFolder(tmp_path / folder))
        torch.manual_seed(0)
        fit(work)
        return work.run.read(segmenter_artifact(variant_of(work.params))).state

    plain = train("two", model="mask_rcnn", lr=0.01)
    start = str(tmp_path / "two" / "train_segmenter" / "mask_rcnn-on-truth" / "network.pt")
    train("two", model="semiconv_mask_rcnn", lr=0.0025, start_from=start)
    both = train("one", model="semiconv_mask_rcnn", lr=0.0025, first_epochs=1)
    folder = tmp_path / "one" / "train_segmenter" / "semiconv_mask_rcnn-on-truth"
    assert (folder / "first" / "losses.jsonl").read_text().count("\n") == 1
    assert "loss_kernel" in (folder / "losses.jsonl").read_text()
    assert list(folder.rglob("resume.pt")) == [folder / "resume.pt"]
    name = "model.backbone.body.layer4.1.conv2.weight"
    rate = (both[name] - plain[name]).abs().max() / plain[name].abs().max()
    assert 0 < rate < 0.1  # a step away from the first training's weights, not a network of its own
    again = train("one", model="semiconv_mask_rcnn", lr=0.0025, first_epochs=1)
    torch.testing.assert_close(again[name], both[name])


def test_first_epochs_need_no_trained_network() -> None:
    with pytest.raises(ConfigError, match=r"first_epochs is 2; it must be .* 0 with --start-from"):
        SegmenterParams(model="semiconv_mask_rcnn", start_from="network.pt", first_epochs=2)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends before it looks for any file."""
    assert stage_main("train_segmenter", [*words, "--voc-root", "nowhere", "--run-dir", "nowhere"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("model", MODELS)
def test_flags_that_a_model_does_not_use_are_refused_by_name(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in sorted(OWNED):
        value = {**OTHERWISE, **ANSWERS, "crops": (48,), "first_epochs": 2}.get(name, "network.pt")
        flag = f"--{name.replace('_', '-')}"
        words = [flag, *map(str, value if isinstance(value, tuple) else [value])]
        words += ["--epochs", "1"] if name == "crops" else []
        line = refused(["--model", model, *(words[:1] if value is True else words)], capsys)
        if name in own(model):
            assert "nowhere" in line
        else:
            assert line.startswith(f"error: {flag}: has no effect with {model}; it is for ")
            told = line.split("it is for ")[1].strip().split(" and ")
            assert told == [other for other in MODELS if name in own(other)]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["--labels", "truth", "--ignore-band", "5", "--model", "deeplabv3"],
            "--ignore-band: ground-truth masks are",
        ),
        (["--optimizer", "adamw", "--momentum", "0.5"], "--momentum: adamw has its own momentum"),
        (["--model", "spatial_embeddings", "--momentum=0.5"], "--momentum: adamw has its own momentum"),
        (
            ["--model", "semiconv_mask_rcnn", "--start-from", "x", "--backbone-weights", "cam"],
            "--backbone-weights: all weights come from --start-from",
        ),
        (
            ["--model", "spatial_embeddings", "--original-checkpoint", "x", "--epochs", "3"],
            "--epochs: --original-checkpoint replaces the training",
        ),
        (
            ["--model", "spatial_embeddings", "--crops", "500", "--epochs", "3", "--crop", "9"],
            "--crop: --crops names",
        ),
        (
            ["--model", "spatial_embeddings", "--crops", "5", "--epochs", "3", "--warmup-steps", "9"],
            "--warmup-steps: phases, which --crops names, start at the full rate",
        ),
        (
            ["--epochs", "3", "4"],
            "--crops has 0 phases, --epochs 2; give one number for each phase, as in --crops",
        ),
        (
            ["--model", "spatial_embeddings", "--crops", "5", "6", "--epochs", "4"],
            "--crops has 2 phases, --epochs 1",
        ),
        (["--model", "spatial_embeddings", "--crops", "5", "6"], "--crops has 2 phases, --epochs 0"),
        (["--model", "spatial_embeddings", "--crops", "0", "--epochs", "4"], "must be above 0"),
        (["--validate_every", "2"], "--validate-every: nothing is measured without --validate-list"),
        (["--patience", "0.2"], "--patience needs --validate-list"),
        (["--patience", "-1", "--validate-list", "val"], "patience is -1.0; it must be a fraction"),
        (["--momentum", "0.5"], "nowhere"),
        (["--model", "spatial_embeddings", "--optimizer", "sgd", "--momentum", "0.5"], "nowhere"),
    ],
)
def test_flags_that_others_make_needless_are_refused_by_name(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why in refused(words, capsys)


def test_a_configuration_for_several_models_is_told_and_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("train_segmenter: {short_side: 64, channels: 256, crop: 64, rescale: [0.5, 1.5]}\n")
    for model, names in (
        ("deeplabv3", "short_side"),
        ("mask_rcnn", "crop, rescale"),
    ):  # channels is the default
        words = ["--config", str(config), "--model", model, "--voc-root", "nowhere", "--run-dir", "nowhere"]
        assert stage_main("train_segmenter", words) == 1
        told, error = capsys.readouterr().err.splitlines()
        assert told == f"train_segmenter: set in the configuration, but without effect here: {names}"
        assert "nowhere" in error
    assert (
        recipe_of(SegmenterParams(model="mask_rcnn", crop=64, rescale=(0.5, 1.5)))
        == MODELS["mask_rcnn"].recipe
    )


def test_every_model_can_have_every_schedule() -> None:
    for name, model in MODELS.items():
        recipe = recipe_of(SegmenterParams(model=name))
        assert (recipe.milestones, recipe.power) == (model.recipe.milestones, 0.9)
        steady = recipe_of(SegmenterParams(model=name, schedule="poly"))
        assert (steady.milestones, steady.power) == ((), 0.9)
        constant = recipe_of(SegmenterParams(model=name, schedule="constant"))
        assert (constant.milestones, constant.power) == ((), 0.0)
        steps = recipe_of(SegmenterParams(model=name, schedule="steps"))
        assert steps.milestones == (model.recipe.milestones or (2 / 3, 8 / 9))


def test_unused_parameters_are_those_of_the_table() -> None:
    names = set(unused_parameters(SegmenterParams(model="deeplabv3")))
    own = {"crop", "rescale", "ignore_band", "output_stride", "balance_classes"}
    assert names == OWNED - own | {"validate_every"}


def test_phases_follow_the_paper_of_spatial_embeddings() -> None:
    params = SegmenterParams(model="spatial_embeddings", crops=(500, 1024), epochs=(150, 50))
    recipe, later = recipe_of(params), later_phases(params)
    assert (recipe.epochs, recipe.crop, recipe.batch_size, recipe.lr) == (150, 500, 16, 5e-4)
    assert (recipe.optimizer, recipe.rescale, recipe.object_centred) == ("adam", (1.0, 1.0), 1.0)
    assert later == (Phase(50, 4, lr_factor=0.1, fixed_norms=True),)
    assert later_phases(params, processes=3)[0].batch_size == 3
    assert later_phases(replace(params, batch_size=2))[0].batch_size == 1
    as_recorded = SegmenterParams(**json.loads(json.dumps(asdict(params))))
    assert later_phases(as_recorded) == later
    elsewhere = SegmenterParams(
        model="deeplabv3", crops=(500, 1024), epochs=3
    )  # as a configuration for several says
    assert (recipe_of(elsewhere).epochs, recipe_of(elsewhere).crop, later_phases(elsewhere)) == (3, 321, ())


def test_crops_larger_than_every_picture_are_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    samples(bench.job(model="deeplabv3", crop=80))
    assert "larger than every image" not in caplog.text
    samples(bench.job(model="spatial_embeddings", crops=(32, 500), epochs=(1, 1)))
    (line,) = (line for line in caplog.messages if "larger than every image" in line)
    assert "crops of 500 pixels are larger than every image (the longest side is 80)" in line


def test_a_refused_start_leaves_nothing_that_blocks_the_next(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_demo(tmp_path / "voc", num_images=2, num_heldout=0, min_size=(64, 64), max_size=(64, 64))
    flags = ["--voc-root", str(tmp_path / "voc"), "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    words = ["--labels", "truth", "--model", "semiconv_mask_rcnn", "--epochs", "1", "--backbone", "resnet18"]
    words += ["--short-side", "64", "--long-side", "64", "--channels", "16", "--boxes-per-image", "16"]
    trained = bench.run.path(segmenter_artifact("mask_rcnn"))
    found = read_checkpoint(trained)
    write_checkpoint(tmp_path / "other.pt", replace(found, class_names=("a", "b")))
    for wrong in (tmp_path / "other.pt", tmp_path / "missing.pt"):
        assert stage_main("train_segmenter", [*flags, *words, "--start-from", str(wrong)]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and wrong.name in error
    assert stage_main("train_segmenter", [*flags, *words, "--start-from", str(trained)]) == 0
    assert (tmp_path / "run" / "train_segmenter" / "semiconv_mask_rcnn-on-truth" / "network.pt").is_file()


def test_the_samples_of_a_phase_have_its_crops(bench: Bench) -> None:
    made = samples(bench.job(model="spatial_embeddings", crops=(32, 48, 64), epochs=(2, 1, 1)))
    sides = [made[epoch, 0][0].shape[-1] for epoch in range(4)]
    assert sides == [32, 32, 48, 64]
    assert len(made) == 2


def test_a_training_in_phases_is_one_command_and_its_model_is_read_again(tmp_path: Path) -> None:
    generate_demo(tmp_path / "voc", num_images=2, num_heldout=0, min_size=(64, 80), max_size=(64, 80))
    flags = ["--voc-root", str(tmp_path / "voc"), "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    words = ["--labels", "truth", "--model", "spatial_embeddings", "--backbone", "erfnet"]
    words += ["--backbone-weights", "none", "--crops", "32", "64", "--epochs", "2", "1", "--batch-size", "2"]
    assert stage_main("train_segmenter", [*flags, *words]) == 0
    folder = tmp_path / "run" / "train_segmenter" / "spatial_embeddings-on-truth"
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 2]  # two pictures at once, then one after the other
    network, _ = load_segmenter(RunFolder(tmp_path / "run"), "spatial_embeddings-on-truth", EXECUTION)
    assert network.num_classes == len(DEMO_CLASSES)


# --- how a trained model is asked ---


def trained(folder: Path, model: str, **values: Any) -> RunFolder:
    """A run folder with an untrained network in the place of a trained one."""
    run, values = RunFolder(folder), {"model": model, "backbone": "resnet18", **values}
    state = build_segmenter(SegmenterParams(**values), 2).state_dict()
    artifact = segmenter_artifact(model)
    run.write(artifact, Checkpoint(model, "resnet18", ("a", "b"), state))
    run.write_record(StageRecord(artifact.stage, "0", values, {}, True, {}, 0.0, {}))
    return run


@pytest.fixture
def deeplab(tmp_path: Path) -> RunFolder:
    return trained(tmp_path, "deeplabv3")


def test_objects_of_spatial_embeddings_are_as_recorded_unless_asked_otherwise(tmp_path: Path) -> None:
    run = trained(tmp_path, "spatial_embeddings", seed_threshold=0.8, min_pixels=50)
    asked = AskedParams(min_pixels=0, foreground_threshold=0.3)
    for question, answer in ((None, (50, 0.8, 0.5)), (AskedParams(), (50, 0.8, 0.5)), (asked, (0, 0.8, 0.3))):
        network, _ = load_segmenter(run, "spatial_embeddings", EXECUTION, question)
        assert (network.min_pixels, network.seed_threshold, network.foreground_threshold) == answer
    before = trained(tmp_path / "older", "spatial_embeddings")  # its record has none of the three
    network, _ = load_segmenter(before, "spatial_embeddings", EXECUTION)
    assert (network.min_pixels, network.seed_threshold, network.foreground_threshold) == (128, 0.5, 0.5)
    with pytest.raises(
        ConfigError, match="--min-pixels: has no effect with mask_rcnn; it is for spatial_embedd"
    ):
        require_asked(("mask_rcnn",), asked)


def test_objects_of_metric_embeddings_are_as_recorded_unless_asked_otherwise(tmp_path: Path) -> None:
    run = trained(tmp_path, "metric_embeddings", max_seeds=20, diversity=0.5, connected=True)
    names = ("max_seeds", "diversity", "min_seediness", "max_iou", "connected")
    asked = AskedParams(max_seeds=30, diversity=0.0, max_iou=0.7, connected=False)
    for question, answer in ((None, (20, 0.5, 0.05, 0.5, True)), (asked, (30, 0.0, 0.05, 0.7, False))):
        network, _ = load_segmenter(run, "metric_embeddings", EXECUTION, question)
        assert tuple(getattr(network, name) for name in names) == answer
    with pytest.raises(ConfigError, match="max_seeds must be 1 to 100, got 500"):
        AskedParams(max_seeds=500)


def test_the_crf_and_the_scales_of_deeplab_can_be_switched_on(deeplab: RunFolder) -> None:
    plain, _ = load_segmenter(deeplab, "deeplabv3", EXECUTION)
    assert (plain.crf, plain.test_scales) == (False, (1.0,))
    asked, _ = load_segmenter(deeplab, "deeplabv3", EXECUTION, AskedParams(crf=True, test_scales=(0.5, 1.0)))
    assert (asked.crf, asked.test_scales) == (True, (0.5, 1.0))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("asked", [AskedParams(crf=True), AskedParams(test_scales=(0.5,))])
def test_models_without_them_refuse_them_by_name(model: str, asked: AskedParams) -> None:
    require_asked((model,), AskedParams())
    require_asked(("mask_rcnn", "deeplabv3-on-truth"), asked)
    if model == "deeplabv3":
        require_asked((model,), asked)
        return
    flag = "--crf" if asked.crf else "--test-scales"
    with pytest.raises(ConfigError, match=f"{flag}: has no effect with {model}; it is for deeplabv3"):
        require_asked((model,), asked)


@pytest.mark.parametrize("scales", [(0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_impossible_scales_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"test_scales are .*; they must be numbers above 0"):
        AskedParams(test_scales=scales)
