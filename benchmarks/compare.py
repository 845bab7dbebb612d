"""Runs a benchmark's methods on the same inputs, compares results and reports ratios, growth and floors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Arrays, Benchmark, Case, Disagreement, Method

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]
_HEADS = (
    "benchmark", "case", "s", "reference", "its s", "ratio", "CPU s", "CPU ratio", "MiB", "its MiB", "floor s",
)  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """What the machine can do.

    Attributes:
        operations: floating point operations a second, float32.
        bytes: bytes a second from and to memory.
    """

    operations: float
    bytes: float


def run(benchmark: Benchmark, *, small: bool, rates: Rates) -> Iterator[Record]:
    """Records of a benchmark, one a case and reference, then one about growth for each network.

    Raises:
        Disagreement: two methods gave different results.
    """
    mine: list[tuple[Case, Mapping[str, float]]] = []
    measured: dict[str, tuple[Case, Mapping[str, float]]] = {}
    for index, case in enumerate(benchmark.chosen(small)):
        results, figures = _in_child(benchmark, index, 0, small)
        mine.append((case, figures))
        record = _own(benchmark, case, figures, rates)
        compared = False
        for number, reference in enumerate(benchmark.references, start=1):
            if reference.reaches(case):
                theirs, their_figures = _in_child(benchmark, index, number, small)
                difference = _agreement(benchmark, case, reference, results, theirs)
                measured[reference.name] = (case, their_figures)
                yield record | _against(reference, figures, their_figures) | {"difference": difference}
                compared = True
            elif reference.operations is not None and reference.name in measured:
                yield record | _extrapolated(reference, case, figures, measured[reference.name])
                compared = True
        if not compared:
            yield record
    yield from _growth(benchmark, mine)


def table(records: Sequence[Record]) -> str:
    """The comparisons as text."""
    rows = [_HEADS]
    for record in records:
        if "case" not in record:
            continue
        guess = "reference_seconds_extrapolated" in record
        theirs = record.get("reference_seconds_extrapolated" if guess else "reference_seconds")
        floors = [record[key] for key in ("operations_floor_seconds", "bytes_floor_seconds") if key in record]
        rows.append(
            (
                record["benchmark"],
                record["case"],
                f"{record['seconds']:.3g}",
                record.get("reference", "-"),
                "-" if theirs is None else f"{theirs:.3g}{' (extrapolated)' if guess else ''}",
                _text(theirs and theirs / record["seconds"]),
                f"{record['cpu_seconds']:.3g}",
                _text(record.get("cpu_ratio", record.get("cpu_ratio_extrapolated"))),
                f"{record['extra_mib']:.0f}",
                _text(record.get("reference_extra_mib")),
                _text(max(floors, default=None)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _in_child(
    benchmark: Benchmark, index: int, number: int, small: bool
) -> tuple[Arrays, Mapping[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.child", benchmark.name, str(index), str(number)]
        command += ["small" if small else "full", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Disagreement(f"{' '.join(command[1:-1])} failed:\n{done.stderr}")
        with np.load(Path(folder) / "results.npz") as stored:
            return [stored[key] for key in stored.files], json.loads(done.stdout)


def _agreement(benchmark: Benchmark, case: Case, reference: Method, ours: Arrays, theirs: Arrays) -> float:
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        raise Disagreement(f"{benchmark.name} {case.name}: {reference.name} gives other shapes")
    try:
        return benchmark.agreement(ours, theirs)
    except Disagreement as error:
        raise Disagreement(f"{benchmark.name} {case.name} against {reference.name}: {error}") from error


def _own(benchmark: Benchmark, case: Case, figures: Mapping[str, float], rates: Rates) -> Record:
    record: Record = {"benchmark": benchmark.name, "case": case.name, "cells": case.cells}
    record |= {key: figures[key] for key in ("seconds", "cpu_seconds", "peak_mib", "extra_mib")}
    if figures["operations"]:
        record["operations_floor_seconds"] = figures["operations"] / rates.operations
        record["bytes_floor_seconds"] = figures["bytes"] / rates.bytes
    return record


def _against(reference: Method, ours: Mapping[str, float], theirs: Mapping[str, float]) -> Record:
    return {
        "reference": reference.name,
        **{f"reference_{key}": theirs[key] for key in ("seconds", "cpu_seconds", "peak_mib", "extra_mib")},
        "ratio": theirs["seconds"] / ours["seconds"],
        "cpu_ratio": theirs["cpu_seconds"] / ours["cpu_seconds"],
    }


def _extrapolated(
    reference: Method, case: Case, ours: Mapping[str, float], known: tuple[Case, Mapping[str, float]]
) -> Record:
    assert reference.operations is not None
    growth = reference.operations(case) / reference.operations(known[0])
    seconds = known[1]["seconds"] * growth
    return {
        "reference": reference.name,
        "reference_seconds_extrapolated": seconds,
        "extrapolated_from": f"{known[0].name}, by operations",
        "ratio_extrapolated": seconds / ours["seconds"],
        "cpu_ratio_extrapolated": known[1]["cpu_seconds"] * growth / ours["cpu_seconds"],
    }


def _growth(benchmark: Benchmark, mine: Sequence[tuple[Case, Mapping[str, float]]]) -> Iterator[Record]:
    """Exponents of our time and memory from the smallest to the largest case of equal count; 1 is linear."""
    kinds = sorted({(case.network, case.count) for case, _ in mine})
    for network, count in kinds:
        group = [(c, f) for c, f in mine if (c.network, c.count) == (network, count)]
        (small, first), (large, last) = group[0], group[-1]
        if small.cells == large.cells:
            continue
        scale = math.log(large.cells / small.cells)
        yield {
            "benchmark": benchmark.name,
            "growth": f"{small.name} to {large.name}",
            "seconds_exponent": math.log(last["cpu_seconds"] / first["cpu_seconds"]) / scale,
            "extra_mib_exponent": math.log(max(last["extra_mib"], 1) / max(first["extra_mib"], 1)) / scale,
        }
