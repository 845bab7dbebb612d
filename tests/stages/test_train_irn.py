"""Stage 4 beyond the published training: what it says about displacement, its context, and cached features."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from irn_pipeline.artifacts import IR_LABEL, IRN_NETWORK
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.ranks import ALONE
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.nn.irn_losses import DisplacementShares
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.trained_networks import load_irn, padding
from tests.stages.conftest import TinyRun

CACHED = ["--cached-features", "0.75", "1.0", "--crop", "64", "--displacement-context"]
BEFORE = ("train_cam", "make_cam", "mine_relations")


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "train_irn" / "losses.jsonl").read_text().splitlines()]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return RunFolder(run_dir).read(IRN_NETWORK).state


def told(run: TinyRun, capsys: pytest.CaptureFixture[str], *extra: str) -> str:
    loud = run.config.read_text().replace("quiet: true", "quiet: false")
    config = run.run_dir.parent / "loud.yaml"
    config.write_text(loud)
    capsys.readouterr()
    assert stage_main("train_irn", [*TinyRun(run.voc_root, config, run.run_dir).flags(), *extra]) == 0
    return " ".join(capsys.readouterr().err.split())


def test_a_training_that_learns_nothing_says_so_and_what_to_do(
    run_copy: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = run_copy(*BEFORE)
    text = told(tiny, capsys, "--lr", "1e-9")
    share = re.search(
        r"displacement was not learned: its loss on objects is (\d+) % of the loss without any displ", text
    )
    assert share is not None
    shares = [line["displacement_share"] for line in lines(tiny.run_dir)]
    assert float(share[1]) == pytest.approx(100 * sum(shares) / len(shares), abs=0.51)
    assert all(0.9 < one < 1.5 for one in shares)
    assert "--displacement-context, --optimizer adamw" in text
    assert "zero_displacement" not in lines(tiny.run_dir)[0]


def test_a_training_that_learns_says_how_much(
    run_copy: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tiny = run_copy(*BEFORE)
    run = RunFolder(tiny.run_dir)
    sure = {
        path.stem: run.read(IR_LABEL, path.stem) for path in (tiny.run_dir / "mine_relations").rglob("*.png")
    }
    most = max(sure, key=lambda image_id: int(((sure[image_id] > 0) & (sure[image_id] < 255)).sum()))
    (tmp_path / "one.txt").write_text(f"{most}\n")
    learning = ["--image-list", str(tmp_path / "one.txt"), "--epochs", "60", "--optimizer", "adamw", "--lr", "0.01",
                "--displacement-lr-factor", "1", "--cached-features", "1.0", "--displacement-context"]  # fmt: skip
    text = told(tiny, capsys, *learning)
    share = re.search(r"train_irn: displacement loss is (\d+) % of the loss without any displacement", text)
    assert share is not None, text
    last = [line["displacement_share"] for line in lines(tiny.run_dir) if line["epoch"] == 59]
    assert float(share[1]) == pytest.approx(100 * sum(last) / len(last), abs=0.51)
    assert "not learned" not in text


def test_labels_are_made_with_the_context_and_the_padding_of_cached_training(
    run_copy: Callable[..., TinyRun],
) -> None:
    tiny = run_copy(*BEFORE)
    assert stage_main("train_irn", [*tiny.flags(), *CACHED]) == 0
    run = RunFolder(tiny.run_dir)
    state = run.read(IRN_NETWORK).state
    network = load_irn(run, Execution(device="cpu"))
    for number in (3, 4):
        ours = network.displacement[number].context.weight
        assert torch.equal(ours, state[f"displacement.{number}.context.weight"])
    assert padding(run, None)((64, 64)) == round((64 * 64 / ((0.75**2 + 1) / 2)) ** 0.5)
    assert stage_main("synthesize_labels", tiny.flags()) == 0
    assert not [path for path in (tiny.run_dir / "train_irn").iterdir() if path.name.startswith(".part")]


def test_an_interrupted_training_on_cached_features_ends_where_an_undisturbed_one_does(
    run_copy: Callable[..., TinyRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = run_copy(*BEFORE)
    flags = [*tiny.flags(), *CACHED, "--epochs", "3"]
    assert stage_main("train_irn", flags) == 0
    undisturbed = weights(tiny.run_dir)
    shutil.rmtree(tiny.run_dir / "train_irn")
    calls = []

    def stop(shares: Any, losses: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # two steps an epoch
            raise KeyboardInterrupt
        return added(shares, losses)

    added = DisplacementShares.added
    with monkeypatch.context() as patched:
        patched.setattr(DisplacementShares, "added", stop)
        assert stage_main("train_irn", flags) != 0
    assert (tiny.run_dir / "train_irn" / "resume.pt").is_file()
    assert stage_main("train_irn", flags) == 0
    again = weights(tiny.run_dir)
    assert all(torch.equal(again[name], value) for name, value in undisturbed.items())
    assert [line["step"] for line in lines(tiny.run_dir)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--cached-features", "1.0", "--rescale", "0.5", "1"], "--cached-features gives the scales"),
        (["--cached-features", "1.0", "--crop", "100"], "with cached_features it must be a multiple of 16"),
        (["--cached-features", "0"], "scales must be above 0"),
        (["--original-checkpoint", "x.pth", "--displacement-context"], "replaces the training"),
    ],
)
def test_what_does_not_go_together_is_refused(
    whole_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    tiny = TinyRun(whole_run.voc_root, whole_run.config, tmp_path)
    assert stage_main("train_irn", [*tiny.flags(), *extra]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_cached_features_go_with_one_process(
    run_copy: Callable[..., TinyRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = run_copy(*BEFORE)
    monkeypatch.setattr(ALONE, "count", 2)
    assert stage_main("train_irn", [*tiny.flags(), *CACHED]) == 1
    assert "--cached-features works with one process, but there are 2" in " ".join(
        capsys.readouterr().err.split()
    )
