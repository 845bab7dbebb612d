from __future__ import annotations

import pytest
import torch

from irn_pipeline.nn.irn_losses import irn_losses, pair_labels
from irn_pipeline.ops.affinity import pair_affinity, pair_paths


@pytest.fixture(scope="module")
def data(golden):
    return golden("irn_loss")


@pytest.fixture(scope="module")
def paths():
    return pair_paths(10)


def batch(array):
    return torch.tensor(array)[None]


def test_pair_counts_match_the_original(data, paths):
    pairs = pair_labels(batch(data["label"]), paths)
    assert pairs.background_positive.sum() == data["n_bg_pos"]
    assert pairs.foreground_positive.sum() == data["n_fg_pos"]
    assert pairs.negative.sum() == data["n_neg"]


def test_mean_affinity_of_each_offset_matches_the_original(data, paths):
    means = pair_affinity(batch(data["edge"]), paths)[0].mean(1).tolist()
    by_offset = dict(zip(map(tuple, paths.offsets.tolist()), means, strict=True))
    actual = [by_offset[tuple(offset)] for offset in data["destinations"].tolist()]
    assert actual == pytest.approx(data["affinity_mean_per_pair"].tolist(), rel=1e-4)


def test_losses_match_the_original(data, paths):
    losses = irn_losses(batch(data["edge"]), batch(data["displacement"]), batch(data["label"]), paths)
    assert float(losses.background_positive) == pytest.approx(float(data["loss_bg_pos"]), rel=1e-4)
    assert float(losses.foreground_positive) == pytest.approx(float(data["loss_fg_pos"]), rel=1e-4)
    assert float(losses.negative) == pytest.approx(float(data["loss_neg"]), rel=1e-4)
    assert float(losses.foreground_displacement) == pytest.approx(float(data["loss_disp_fg"]), rel=1e-4)
    assert float(losses.background_displacement) == pytest.approx(float(data["loss_disp_bg"]), rel=1e-4)
    assert float(losses.total) == pytest.approx(float(data["total"]), rel=1e-4)
