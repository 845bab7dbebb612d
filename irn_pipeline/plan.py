"""The plan of a run: values that follow from the data set and the machine, each with its reason in one line.

A rule is a function from the facts and the values that the user gave to a few choices; `RULES` lists them in order.
What the user gave is never chosen, and rules read it, so that the rest fits it. To add a rule, write such a function
and put it into the list.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.planner import Choice
from irn_pipeline.facts import Facts, is_centred, network_of_file, notes, to_multiple
from irn_pipeline.plan_training import Given, fits_a_probe, relations, seed_side, segmenter, training
from irn_pipeline.seeds import SEEDS

logger = logging.getLogger(__name__)
PLANNED = ("train_cam", "make_cam", "mine_relations", "train_irn", "synthesize_labels")
"""Stages that a plan is made for."""
_VOC_GRID = 94 * 125
"""Cells of the grid of VOC's pictures, which the published walk suits."""
_LITE0 = "efficientnet_lite0"
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
        return [Choice(stage, "backbone", "resnet18", "small enough to train from random weights")]
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


def _seeds(facts: Facts, given: Given) -> Sequence[Choice]:
    """Maps by a classifier of cells, which knows background: better than the probe's own maps."""
    stage, side = "make_cam", seed_side(facts)
    elsewhere = any(given.get(f"{stage}.{name}") for name in ("from_cams", "from_model", "feature_affinity"))
    if elsewhere or "make_cam.scales" in given or not fits_a_probe(facts, given):
        return ()
    if facts.centred:
        why = "one object in the middle of every image: the middle is compared with the border"
        return [Choice(stage, "seeds", "centre", why), *_final_maps(given)]
    if facts.shows_defects:
        why = f"{facts.negatives} images without a tag: tagged images are compared with them"
        side = to_multiple(min(max(2 * facts.long_side, 256), 768))
        why_side = f"small defects: twice the median long side of {facts.long_side}, 768 at most"
        sides = Choice(stage, "defect_side", side, why_side)
        return [Choice(stage, "seeds", "defects", why), sides, *_final_maps(given)]
    return [
        Choice(stage, "seeds", "pixels", "a classifier of cells that also knows the background"),
        Choice(stage, "pixel_side", side, f"twice the median long side of {facts.long_side}, 512 at most"),
    ]


def _final_maps(given: Given) -> Sequence[Choice]:
    """Labels of maps that end at the objects already: no walk."""
    stage = "synthesize_labels"
    if given.get(f"{stage}.refiner", "none") != "none" or "synthesize_labels.parts" in given:
        return ()
    return [
        Choice(stage, "refiner", "none", "these maps end at the objects already"),
        Choice(stage, "semantic_bg_threshold", 0.5, "the edge of the objects in these maps"),
        Choice(stage, "instance_bg_threshold", 0.5, "the edge of the objects in these maps"),
        Choice(stage, "parts", "components", "objects hardly touch, so IRNet is not needed"),
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


def _walk(facts: Facts, given: Given) -> Sequence[Choice]:
    """The walk is measured in cells of the grid: fewer steps and smaller centres on smaller grids."""
    if given.get("synthesize_labels.parts") == "components":
        return ()
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
        why = "each image's own background score, by ImageNet features; needs no masks"
        choices.append(Choice(stage, "bg_search", [0.2, 0.55], why))
    return choices


RULES: tuple[Rule, ...] = (_network, training, _seeds, _scales, relations, _walk, _thresholds, segmenter)
