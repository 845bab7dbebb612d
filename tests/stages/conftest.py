"""A tiny demo set and one run of the whole pipeline on it, made once and shared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.stages.catalogue import main

CONFIG = """\
plan: published
precision: float32
device: cpu
workers: 1
quiet: true
train_cam:
  {backbone: resnet18, backbone_weights: none, frozen_stages: 0, frozen_batch_norm: false, epochs: 1, batch_size: 4,
   crop: 64, long_side: [64, 96], lr: 0.001, momentum: 0.9}
make_cam: {scales: [1.0]}
train_irn:
  {backbone: resnet18, backbone_weights: cam, epochs: 1, batch_size: 4, crop: 64, radius: 5, lr: 0.02}
synthesize_labels: {radius: 3, instance_bg_threshold: 0.01, min_area: 0.0}
train_segmenter:
  {backbone: resnet18, backbone_weights: cam, epochs: 1, batch_size: 4, short_side: 64, long_side: 96, channels: 32,
   boxes_per_image: 16}
evaluate: {heldout_list: val}
"""


@dataclass(frozen=True)
class TinyRun:
    """A data set, a configuration and a run folder."""

    voc_root: Path
    config: Path
    run_dir: Path

    def flags(self) -> list[str]:
        """Flags every command of this run needs."""
        return [
            *("--config", str(self.config)),
            *("--voc-root", str(self.voc_root)),
            *("--run-dir", str(self.run_dir)),
        ]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """All stages run on 10 pictures, with 4 held out. Not to be changed: take `run_copy`."""
    folder = tmp_path_factory.mktemp("pipeline")
    made = TinyRun(folder / "voc", folder / "tiny.yaml", folder / "run")
    generate_demo(made.voc_root, num_images=10, num_heldout=4, min_size=(64, 80), max_size=(80, 96))
    made.config.write_text(CONFIG)
    assert main(made.flags()) == 0
    return made


@pytest.fixture
def run_copy(whole_run: TinyRun, tmp_path: Path) -> Callable[..., TinyRun]:
    """Function that copies the whole run: only the named stages, and another data set if given.

    The files are hard links: a test removes a file before it puts another in its place.
    """

    def copy(*stages: str, voc_root: Path | None = None) -> TinyRun:
        target = tmp_path / "run"
        for stage in stages:
            shutil.copytree(whole_run.run_dir / stage, target / stage, copy_function=os.link)
        return TinyRun(voc_root or whole_run.voc_root, whole_run.config, target)

    return copy
