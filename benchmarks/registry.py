"""The benchmarks by name. Their modules are imported when they are needed: the parent process stays small."""

from __future__ import annotations

from importlib import import_module

from benchmarks.case import Benchmark

NAMES = ("random_walk", "centroids", "crf", "make_cam", "irn_step", "training_sample")
_MODULES = {"crf": "benchmarks.crf_pair"}


def load(name: str) -> Benchmark:
    """The benchmark of that name."""
    found: Benchmark = import_module(_MODULES.get(name, f"benchmarks.{name}")).BENCHMARK
    return found
