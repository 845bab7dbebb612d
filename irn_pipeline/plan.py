"""The plan of a run: values that follow from the data set and the machine, each with its reason in one line.

A rule is a function from the facts and the values that the user gave to a few choices; `RULES` lists them in order.
What the user gave is never chosen, and rules read it, so that the rest fits it. To add a rule, write such a function
and put it into the list.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.planner import Choice
from irn_pipeline.facts import Facts, is_centred, network_of_file, notes, to_multiple
from irn_pipeline.seeds import SEEDS

logger = logging.getLogger(__name__)
PLANNED = ("train_cam", "make_cam", "mine_relations", "train_irn", "synthesize_labels")
"""Stages that a plan is made for."""
_VOC_GRID = 94 * 125
"""Cells of the grid of VOC's pictures, which the published walk suits."""
_LITE0 = "efficientnet_lite0"
_MOST_PASSES = 60
Given = Mapping[str, Any]
"""Values of the user, and those that the rules before have chosen, by "stage.parameter"."""
Rule = Callable[[Facts, Given], Sequence[Choice]]


def choose(data: DataSet, execution: Execution, given: Given) -> list[Choice]:
    """The choices for a data set on this machine, those of a stage together; what is odd is logged, one line each.

    Raises:
        DataError: not one picture can be read.
        CheckpointError: the user's file of weights cannot be read.
    """
    facts = Facts.of(data, execution)
    for note in notes(facts):
        logger.warning("warning: %s", note)
    if facts.may_be_centred and given.get("make_cam.seeds") is None:
        network = {choice.key: choice.value for choice in choices_for(facts, given, [_network])} | dict(given)
        name = network.get("train_cam.backbone", "resnet50")
        weights = network.get("train_cam.backbone_weights", "imagenet")
        facts = replace(facts, centred=is_centred(data, execution, name, weights))
    logger.info("%s", facts)
    return choices_for(facts, given)


def choices_for(facts: Facts, given: Given, rules: Sequence[Rule] | None = None) -> list[Choice]:
    """What the rules choose beside what the user gave, ordered by stage."""
    known, chosen = dict(given), list[Choice]()
    for rule in RULES if rules is None else rules:
        new = [choice for choice in rule(facts, known) if choice.key not in known]
        chosen += new
        known |= {choice.key: choice.value for choice in new}
    return sorted(
        chosen, key=lambda choice: PLANNED.index(choice.stage) if choice.stage in PLANNED else len(PLANNED)
    )


def _network(facts: Facts, given: Given) -> Sequence[Choice]:
    """The classifier's network, and what it starts from."""
    stage, weights = "train_cam", given.get("train_cam.backbone_weights")
    if given.get("train_cam.original_checkpoint") is not None:
        return ()
    if weights is not None and weights not in ("imagenet", "installed", "none"):
        found = network_of_file(Path(weights))
        return (
            [Choice(stage, "backbone", found, f"the network that {Path(weights).name} is of")]
            if found
            else ()
        )
    if "train_cam.backbone" in given:
        return ()
    if weights == "none":
        return [Choice(stage, "backbone", "resnet18", "small enough to learn from nothing")]
    if facts.gpu:
        return [Choice(stage, "backbone", "resnet50", "the published network; there is a GPU")]
    if facts.lite0:
        return [
            Choice(stage, "backbone", _LITE0, "no GPU: a tenth of the work of ResNet-50"),
            Choice(
                stage, "backbone_weights", "installed", "ImageNet, from the installed package: no download"
            ),
        ]
    return [Choice(stage, "backbone", "resnet18", "no GPU: less than half the work of ResNet-50")]


def _training(facts: Facts, given: Given) -> Sequence[Choice]:
    """How the classifier learns: its head alone on a CPU, half the network on a GPU, everything from nothing."""
    stage = "train_cam"
    if given.get("train_cam.original_checkpoint") is not None:
        return ()
    held_out = given.get("train_cam.held_out", 0.2 if facts.all_pictures >= 50 else 0.0)
    kept = [Choice(stage, "held_out", held_out, "tells whether the classes were learned")] if held_out else []
    if _fits_a_probe(facts, given):
        why = "a linear classifier of ImageNet features, fitted in one pass over the images"
        sides = Choice(stage, "long_side", [_seed_side(facts)], "as for the maps")
        return [Choice(stage, "head", "probe", why), sides, *kept]
    learned = round(facts.all_pictures * (1 - held_out))
    scratch = given.get("train_cam.backbone_weights") == "none"
    side, frozen = facts.working_side, given.get("train_cam.frozen_stages")
    if frozen is None:
        frozen = 0 if scratch else 3 if facts.gpu else 5
    probe, sgd = frozen >= 5, given.get("train_cam.optimizer") == "sgd"
    batch = _batch(facts, given, stage)
    steps = 1000 if scratch or (facts.gpu and not probe) else 300
    rate, factor = (0.02, 1.0) if probe else (0.001, 1.0) if scratch else (0.0001, 10.0)
    why = f"{'no GPU: a classifier on fixed' if probe else 'half of the'} ImageNet features"
    choices = [
        Choice(stage, "frozen_stages", frozen, "from nothing: everything learns" if scratch else why),
        *([Choice(stage, "frozen_batch_norm", False, "from nothing: statistics of these pictures")] if scratch else []),
        _epochs(stage, steps, batch, learned),
        Choice(stage, "batch_size", batch, "what the device holds" if facts.gpu else "many small steps on a CPU"),
        Choice(stage, "crop", side, f"a whole picture: the median long side is {facts.long_side}"),
        Choice(
            stage, "long_side", [to_multiple(side * 2 / 3), to_multiple(side * 4 / 3)],
            f"around {side}, by as much as published around 480",
        ),
    ]  # fmt: skip
    choices += kept
    if sgd:  # rates of AdamW would not suit it
        return choices
    return [
        *choices,
        Choice(stage, "optimizer", "adamw", "its steps suit all layers, so that hundreds are enough"),
        Choice(stage, "lr", rate, f"AdamW, {'one layer' if probe else 'many layers'}"),
        Choice(
            stage,
            "head_lr_factor",
            factor,
            "one rate" if factor == 1 else "the new layer starts from nothing",
        ),
        Choice(stage, "weight_decay", 0.01, "AdamW's is relative to its rate"),
    ]


def _fits_a_probe(facts: Facts, given: Given) -> bool:
    """Whether the classifier is a linear probe: unless the user trains it, or nothing was learned before."""
    if "train_cam.head" in given:
        return bool(given["train_cam.head"] == "probe")
    own = ("original_checkpoint", "frozen_stages", "epochs", "optimizer", "lr", "crop", "recam")
    trained = any(f"train_cam.{name}" in given for name in own)
    return not trained and given.get("train_cam.backbone_weights") != "none"


def _seed_side(facts: Facts) -> int:
    """Long side for classifiers of cells: twice the picture's, from 256 to 512 pixels."""
    return to_multiple(min(max(2 * facts.long_side, 256), 512))


def _seeds(facts: Facts, given: Given) -> Sequence[Choice]:
    """Maps by a classifier of cells, which knows background: better than the probe's own maps."""
    stage, side = "make_cam", _seed_side(facts)
    elsewhere = any(given.get(f"{stage}.{name}") for name in ("from_cams", "from_model", "feature_affinity"))
    if elsewhere or "make_cam.scales" in given or not _fits_a_probe(facts, given):
        return ()
    if facts.centred:
        why = "one object in the middle of every image: its middle is told from its border"
        return [Choice(stage, "seeds", "centre", why), *_final_maps(given)]
    if facts.shows_defects:
        why = f"{facts.negatives} images without a tag: what they do not show is told from what they do"
        side = to_multiple(min(max(2 * facts.long_side, 256), 768))
        why_side = f"small defects: twice the median long side of {facts.long_side}, 768 at most"
        sides = Choice(stage, "defect_side", side, why_side)
        return [Choice(stage, "seeds", "defects", why), sides, *_final_maps(given)]
    return [
        Choice(stage, "seeds", "pixels", "a classifier of cells that also knows the background"),
        Choice(stage, "pixel_side", side, f"twice the median long side of {facts.long_side}, 512 at most"),
    ]


def _final_maps(given: Given) -> Sequence[Choice]:
    """Labels of maps that end at the objects already: no walk, and so hardly any IRNet."""
    stage = "synthesize_labels"
    if given.get(f"{stage}.refiner", "none") != "none":
        return ()
    return [
        Choice(stage, "refiner", "none", "these maps end at the objects already"),
        Choice(stage, "semantic_bg_threshold", 0.5, "the edge of the objects in these maps"),
        Choice(stage, "instance_bg_threshold", 0.5, "the edge of the objects in these maps"),
        Choice(stage, "center_threshold", 1000.0, "objects are parted where they do not touch"),
        Choice("train_irn", "epochs", 1, "the labels do not use it"),
    ]


def _at_one_size(given: Given) -> bool:
    """Whether the seeds are classifiers of cells, which see every picture at one size."""
    return SEEDS[given.get("make_cam.seeds", "cam")].size is not None


def _scales(facts: Facts, given: Given) -> Sequence[Choice]:
    """Picture sizes that maps are made at: around the size that the classifier has learned from."""
    if given.get("make_cam.from_cams") or _at_one_size(given):
        return ()
    base = facts.working_side / facts.long_side
    base = 1.0 if abs(base - 1) < 0.1 else base  # not resized for nothing
    wanted, why = ((1.0, 0.5, 1.5, 2.0), "the published four") if facts.gpu else ((1.0, 1.5), "two on a CPU")
    scales = [max(round(base * scale, 2), 0.01) for scale in wanted]
    return [
        Choice("make_cam", "scales", scales, f"{why}, around the {facts.working_side} pixels of the training")
    ]


def _relations(facts: Facts, given: Given) -> Sequence[Choice]:
    """IRNet: the classifier's network, crops at the scale of the pictures themselves."""
    stage = "train_irn"
    if given.get("train_irn.original_checkpoint") is not None:
        return ()
    choices = _same_network(stage, given)
    longest = 512 if facts.gpu else 384
    crop = given.get("train_irn.crop", max(to_multiple(min(facts.long_side, longest)), 96))
    radius = max(min(10, crop // 24), 5)
    batch = _batch(facts, given, stage)
    small = facts.long_side < 256
    choices += [
        _epochs(stage, 300, batch, facts.pictures),
        Choice(stage, "batch_size", batch, "what the device holds" if facts.gpu else "many small steps on a CPU"),
        Choice(stage, "crop", crop, f"a whole picture of {facts.long_side}, {longest} at most"),
        Choice(stage, "radius", radius, f"pairs across at most a sixth of the crop's {crop // 4} cells, 5 to 10"),
    ]  # fmt: skip
    if not given.get("train_irn.cached_features"):
        why = "small pictures: halved, objects are a few cells" if small else "as published"
        choices.append(Choice(stage, "rescale", [0.75, 1.5] if small else [0.5, 1.5], why))
    if given.get("train_irn.optimizer") == "sgd":
        return choices
    return [
        *choices,
        Choice(stage, "optimizer", "adamw", "as for train_cam"),
        Choice(stage, "lr", 0.003, "AdamW, new layers on fixed features"),
        Choice(stage, "displacement_lr_factor", 1.0, "AdamW needs no second rate"),
        Choice(stage, "weight_decay", 0.01, "AdamW's is relative to its rate"),
    ]


def _walk(facts: Facts, given: Given) -> Sequence[Choice]:
    """The walk is measured in cells of the grid: fewer steps and smaller centres on smaller grids."""
    share = facts.cells / _VOC_GRID
    times = min(max(8 + round(math.log2(share)), 3), 9)
    center = min(max(round(2.5 * math.sqrt(share), 1), 1.0), 2.5)
    where = f"the grid has {facts.cells} cells, {share:.2f} of VOC's"
    choices = [Choice("synthesize_labels", "center_threshold", center, f"by the grid's side: {where}")]
    if given.get("synthesize_labels.refiner", "walk") == "walk":
        choices.insert(0, Choice("synthesize_labels", "exp_times", times, f"{2**times} steps: {where}"))
    return choices


def _thresholds(facts: Facts, given: Given) -> Sequence[Choice]:
    """Scores and sizes of labels."""
    stage, height, width = "synthesize_labels", *facts.size
    choices = [
        Choice(stage, "instance_score", "mean", "all cells decide the order, not one; masks stay the same")
    ]
    if facts.negatives >= 0.2 * facts.all_pictures:
        share = round(min(64 / (height * width), 0.01), 5)
        choices.append(
            Choice(stage, "min_area", share, "many negatives: objects may be small; four cells count")
        )
    own = ("semantic_bg_threshold", "instance_bg_threshold")
    foreign = any(given.get(f"{name}.cam_dir") is not None for name in ("mine_relations", stage))
    followed = foreign or any(f"{stage}.{name}" in given for name in own)
    # Maps of classifiers of cells do as well with one threshold (docs/RESULTS.md).
    if not followed and not _at_one_size(given) and given.get("train_cam.backbone_weights") != "none":
        why = "each picture's own background score, by ImageNet features; needs no masks"
        choices.append(Choice(stage, "bg_search", [0.2, 0.55], why))
    return choices


def _segmenter(facts: Facts, given: Given) -> Sequence[Choice]:
    """The model of stage 6 starts where the classifier did."""
    return _same_network("train_segmenter", given)


RULES: tuple[Rule, ...] = (_network, _training, _seeds, _scales, _relations, _walk, _thresholds, _segmenter)


def _same_network(stage: str, given: Given) -> list[Choice]:
    """The classifier's network and weights, where the user names none for this stage."""
    named = [f"{stage}.{name}" for name in ("backbone", "backbone_weights", "original_checkpoint")]
    if any(name in given for name in named) or given.get("train_cam.original_checkpoint") is not None:
        return []
    weights = given.get("train_cam.backbone_weights", "imagenet")
    learned = "what train_cam has learned: there is nothing else to start from"
    return [
        Choice(stage, "backbone", given.get("train_cam.backbone", "resnet50"), "that of train_cam"),
        Choice(
            stage,
            "backbone_weights",
            "cam" if weights == "none" else weights,
            learned if weights == "none" else "those of train_cam",
        ),
    ]


def _epochs(stage: str, steps: int, batch: int, pictures: int) -> Choice:
    """Passes that make about so many steps, up to a number of passes."""
    a_pass = max(pictures // batch, 1)
    epochs = min(max(round(steps / a_pass), 1), _MOST_PASSES)
    made = f"{epochs * a_pass} steps of {batch} pictures"
    if epochs * a_pass < 0.9 * steps:
        return Choice(stage, "epochs", epochs, f"{made}: more passes over so few pictures add little")
    return Choice(stage, "epochs", epochs, f"{made}: about {steps} are enough")


def _batch(facts: Facts, given: Given, stage: str) -> int:
    chosen: int = given.get(f"{stage}.batch_size", 16 if facts.gpu else 4 if 0 < facts.memory < 6 else 8)
    return chosen
