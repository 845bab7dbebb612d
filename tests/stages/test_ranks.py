"""The stages under torchrun with two processes (gloo) against the same stages in one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from irn_pipeline.stages.catalogue import main
from tests.stages.conftest import CONFIG, TinyRun

pytest.importorskip("lightning_fabric", reason="needs the extra `distributed`")

# Batch norms that learn would see half of each batch: on the CPU torch cannot synchronise them.
FROZEN = CONFIG.replace("frozen_batch_norm: false", "frozen_batch_norm: true").replace(
    "lr: 0.001", "lr: 0.0001"
)
PER_IMAGE = ("make_cam/cam", "mine_relations/ir_label", "synthesize_labels/instance_label",
             "synthesize_labels/semantic_label")  # fmt: skip


def torchrun(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [*command, "-m", "stages", *words], capture_output=True, text=True, env=environment, timeout=240, check=False
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(whole_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TinyRun, TinyRun]]:
    """Stages 1 to 5 in one process and in two, one thread each."""
    folder = tmp_path_factory.mktemp("ranks")
    config = folder / "frozen.yaml"
    config.write_text(FROZEN)
    one, two = (TinyRun(whole_run.voc_root, config, folder / name) for name in ("one", "two"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["1-5", *one.flags()]) == 0
        done = torchrun(2, "1-5", *two.flags())
        assert done.returncode == 0, done.stderr
        yield one, two
    finally:
        torch.set_num_threads(threads)


def losses(run: TinyRun, stage: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.run_dir / stage / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["train_cam", "train_irn"])
def test_two_processes_train_on_the_batches_of_one(runs: tuple[TinyRun, TinyRun], stage: str) -> None:
    one, two = (losses(run, stage) for run in runs)
    assert len(one) == len(two) >= 2
    for a, b in zip(one, two, strict=True):
        for name in a.keys() - {"time"}:
            assert b[name] == pytest.approx(a[name], abs=1e-4), (stage, name, a["step"])


def test_per_image_stages_are_equal_to_the_last_bit(runs: tuple[TinyRun, TinyRun], tmp_path: Path) -> None:
    _, two = runs
    again = TinyRun(two.voc_root, two.config, tmp_path / "again")
    for network, stages in (("train_cam", "2-3"), ("train_irn", "5")):
        shutil.copytree(two.run_dir / network, again.run_dir / network)
        assert main([stages, *again.flags()]) == 0
    for artifact in PER_IMAGE:
        files = {path.name: path.read_bytes() for path in (two.run_dir / artifact).iterdir()}
        assert len(files) == 10
        assert files == {path.name: path.read_bytes() for path in (again.run_dir / artifact).iterdir()}


def test_the_records_of_two_processes_are_those_of_one(runs: tuple[TinyRun, TinyRun]) -> None:
    for stage in ("train_cam", "make_cam", "mine_relations", "train_irn", "synthesize_labels"):
        one, two = (json.loads((run.run_dir / stage / "stage.json").read_text()) for run in runs)
        for key in ("fingerprint", "params", "reads", "complete", "counts"):
            assert one[key] == two[key], (stage, key)
    for run in runs:
        assert not [path for path in run.run_dir.rglob("*") if path.name in (".lock", "resume.pt")]


def test_what_the_first_process_refuses_is_said_once(runs: tuple[TinyRun, TinyRun]) -> None:
    _, two = runs
    done = torchrun(2, "make_cam", *two.flags(), "--scales", "0.5")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "--overwrite" in done.stderr
    assert done.stderr.index("error: ") < done.stderr.index("Traceback")  # torchrun's own, of its child
