"""Runs one method on one case in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.case import Arrays, Case, Method
from benchmarks.registry import load

_BUDGET_SECONDS = 4.0
_MAX_REPEATS = 7


def measure(method: Method, case: Case, repeats: int) -> tuple[Arrays, dict[str, float]]:
    """Results and figures of a method.

    Args:
        method: what to run.
        case: on what.
        repeats: how often at most; of several runs the first, which compiles and warms up, does not count, and the
            fastest of the others is taken.
    """
    prepared = method.prepare(case)
    before = _restarted_peak_mib()
    results, *first = _timed(prepared.work)
    peak, runs = _peak_mib(), [first]
    while len(runs) < repeats and sum(wall for wall, _ in runs) < _BUDGET_SECONDS:
        results, *run = _timed(prepared.work)
        runs.append(run)
    counted = runs[1:] or runs
    if prepared.audit is not None:
        prepared.audit(results)
    return results, {
        "seconds": min(wall for wall, _ in counted),
        "cpu_seconds": min(own for _, own in counted),
        "peak_mib": peak,
        "extra_mib": max(peak - before, 0.0),
        "operations": prepared.operations,
        "bytes": prepared.bytes,
    }


def _timed(work):
    wall, own = time.perf_counter(), time.process_time()
    results = work()
    return results, time.perf_counter() - wall, time.process_time() - own


def _restarted_peak_mib() -> float:
    """Resident memory now, from which on the peak counts where the system can start it anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_mib()


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure includes the parent's memory at the start
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    # kibibytes, but bytes on macOS
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    name, index, number, size, target = sys.argv[1:]
    benchmark, small = load(name), size == "small"
    methods = (benchmark.ours, *benchmark.references)
    repeats = 2 if small else _MAX_REPEATS
    results, figures = measure(methods[int(number)], benchmark.chosen(small)[int(index)], repeats)
    np.savez(Path(target) / "results.npz", *results)
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main()
