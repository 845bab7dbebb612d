"""Rules of a plan for what is trained: the classifier, IRNet, and where the model of stage 6 starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from irn_pipeline.engine.planner import Choice
from irn_pipeline.facts import Facts, to_multiple

_MOST_PASSES = 60
Given = Mapping[str, Any]
"""Values of the user, and those that the rules before have chosen, by "stage.parameter"."""


def training(facts: Facts, given: Given) -> Sequence[Choice]:
    """How the classifier learns: its head alone on a CPU, half the network on a GPU, everything from nothing."""
    stage = "train_cam"
    if given.get("train_cam.original_checkpoint") is not None:
        return ()
    held_out = given.get("train_cam.held_out", 0.2 if facts.all_pictures >= 50 else 0.0)
    kept = [Choice(stage, "held_out", held_out, "shows whether the classes were learned")] if held_out else []
    if fits_a_probe(facts, given):
        why = "a linear classifier of ImageNet features, fitted in one pass over the images"
        sides = Choice(stage, "long_side", [seed_side(facts)], "as for the maps")
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
        Choice(stage, "frozen_stages", frozen, "from random weights: everything learns" if scratch else why),
        *([Choice(stage, "frozen_batch_norm", False, "random weights: statistics are learned")] if scratch else []),
        _epochs(stage, steps, batch, learned),
        Choice(stage, "batch_size", batch, "what the device holds" if facts.gpu else "many small steps on a CPU"),
        Choice(stage, "crop", side, f"a whole image: the median long side is {facts.long_side}"),
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
            "one rate" if factor == 1 else "the new layer starts from random weights",
        ),
        Choice(stage, "weight_decay", 0.01, "AdamW's is relative to its rate"),
    ]


def fits_a_probe(facts: Facts, given: Given) -> bool:
    """Whether the classifier is a linear probe: unless the user trains it, or nothing was learned before."""
    if "train_cam.head" in given:
        return bool(given["train_cam.head"] == "probe")
    own = ("original_checkpoint", "frozen_stages", "epochs", "optimizer", "lr", "crop", "recam")
    trained = any(f"train_cam.{name}" in given for name in own)
    return not trained and given.get("train_cam.backbone_weights") != "none"


def seed_side(facts: Facts) -> int:
    """Long side for classifiers of cells: twice the picture's, from 256 to 512 pixels."""
    return to_multiple(min(max(2 * facts.long_side, 256), 512))


def relations(facts: Facts, given: Given) -> Sequence[Choice]:
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
        Choice(stage, "crop", crop, f"a whole image of {facts.long_side}, {longest} at most"),
        Choice(stage, "radius", radius, f"pairs across at most a sixth of the crop's {crop // 4} cells, 5 to 10"),
    ]  # fmt: skip
    if not given.get("train_irn.cached_features"):
        why = "small images: halved, objects are a few cells" if small else "as published"
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


def segmenter(facts: Facts, given: Given) -> Sequence[Choice]:
    """The model of stage 6 starts where the classifier did."""
    return _same_network("train_segmenter", given)


def _same_network(stage: str, given: Given) -> list[Choice]:
    """The classifier's network and weights, where the user names none for this stage."""
    named = [f"{stage}.{name}" for name in ("backbone", "backbone_weights", "original_checkpoint")]
    if any(name in given for name in named) or given.get("train_cam.original_checkpoint") is not None:
        return []
    weights = given.get("train_cam.backbone_weights", "imagenet")
    learned = "what train_cam has learned: there are no other weights to start from"
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
    made = f"{epochs * a_pass} steps of {batch} images"
    if epochs * a_pass < 0.9 * steps:
        return Choice(stage, "epochs", epochs, f"{made}: more passes over so few images add little")
    return Choice(stage, "epochs", epochs, f"{made}: about {steps} are enough")


def _batch(facts: Facts, given: Given, stage: str) -> int:
    chosen: int = given.get(f"{stage}.batch_size", 16 if facts.gpu else 4 if 0 < facts.memory < 6 else 8)
    return chosen
