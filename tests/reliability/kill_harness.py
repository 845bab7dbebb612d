"""Kill a run with SIGKILL at random moments, start it again until it is done, compare it with an undisturbed one.

    python -m tests.reliability.kill_harness --kills 50                  all stages on a tiny generated set
    python -m tests.reliability.kill_harness --kills 50 --made-up        fast stages that do nothing useful

One line of JSON tells the figures; the exit code is 1 where anything differs. Each run is a process of its own. It is
forked, so that the libraries are loaded once: this process itself computes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

LOSS_TOLERANCE = 1e-5
Run = Callable[[Path], int]
"""Run folder -> exit code."""


@dataclass
class Figures:
    """What was seen.

    Attributes:
        kills: runs that were killed.
        killed_in: how often, by the stage that was at work.
        starts: processes started, killed or not.
        rounds: run folders brought to their end.
        half_written: `.part-` files found after a kill; none may remain at the end.
        files: artifacts compared byte for byte, over all rounds.
        max_loss_difference: largest difference of a training loss at the same step.
        problems: what differed.
    """

    seed: int
    undisturbed_s: float = 0.0
    kills: int = 0
    killed_in: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    rounds: int = 0
    half_written: int = 0
    files: int = 0
    max_loss_difference: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TinyPipeline:
    """Every stage of the pipeline on a set of a few small pictures."""

    voc_root: Path
    config: Path

    def __call__(self, run_dir: Path) -> int:
        from irn_pipeline.stages.catalogue import main

        flags = ["--config", str(self.config), "--voc-root", str(self.voc_root), "--run-dir", str(run_dir)]
        return main(["1-6", *flags])


def tiny_pipeline(folder: Path) -> TinyPipeline:
    """A generated data set, and two epochs for every training."""
    from irn_pipeline.datasets.synthetic import generate_demo
    from tests.stages.conftest import CONFIG

    made = TinyPipeline(folder / "voc", folder / "tiny.yaml")
    generate_demo(made.voc_root, num_images=8, num_heldout=2, min_size=(64, 80), max_size=(80, 96))
    made.config.write_text(CONFIG.replace("epochs: 1", "epochs: 2"))
    return made


def harness(run: Run, folder: Path, kills: int, seed: int, seconds: float = math.inf) -> Figures:
    """Kill, resume, compare, until there were enough kills or the time is over; the last round is always finished."""
    found = Figures(seed)
    randomness = random.Random(seed)
    start = time.monotonic()
    if _run(run, folder / "undisturbed", math.inf) != 0:
        raise SystemExit("the undisturbed run has failed")
    found.undisturbed_s = round(time.monotonic() - start, 2)
    while found.kills < kills and time.monotonic() - start < seconds:
        place = folder / f"round{found.rounds}"
        # Kills come in all stages: from a fiftieth of a whole run's time to all of it, short times oftener.
        while True:
            enough = found.kills >= kills or time.monotonic() - start >= seconds
            delay = math.inf if enough else found.undisturbed_s * 50 ** (randomness.random() - 1)
            found.starts += 1
            code = _run(run, place, delay)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                found.problems.append(
                    f"round {found.rounds}: ended with code {code} after {found.kills} kills"
                )
                return found
            found.kills += 1
            found.killed_in[_at_work(place)] += 1
            found.half_written += len(list(place.rglob(".part-*")))
        compare(folder / "undisturbed", place, found)
        found.rounds += 1
    return found


def compare(expected: Path, actual: Path, found: Figures) -> None:
    """Add what differs between two run folders to the figures.

    Labels and maps must be equal byte for byte, and so must the tensors of networks; losses to 1e-5.
    """
    names = _files(expected)
    for name in sorted(names ^ _files(actual)):
        found.problems.append(f"{actual.name}: {name} is in one of the two only")
    for name in sorted(names & _files(actual)):
        ours, theirs = actual / name, expected / name
        if ours.name == "losses.jsonl":
            difference = _loss_difference(theirs, ours)
            found.max_loss_difference = max(found.max_loss_difference, difference)
            if not difference <= LOSS_TOLERANCE:
                found.problems.append(f"{actual.name}: {name} differs by {difference}")
        elif ours.name == "stage.json":
            records = [json.loads(path.read_text()) for path in (ours, theirs)]
            if not records[0]["complete"] or records[0]["fingerprint"] != records[1]["fingerprint"]:
                found.problems.append(f"{actual.name}: {name} is another record")
        elif not _equal(ours, theirs):
            found.problems.append(f"{actual.name}: {name} differs")
        else:
            found.files += 1


def _equal(ours: Path, theirs: Path) -> bool:
    if ours.read_bytes() == theirs.read_bytes():
        return True
    if ours.suffix != ".pt":
        return False
    a, b = (torch.load(path, map_location="cpu", weights_only=True) for path in (ours, theirs))
    a, b = (content.get("network", content) for content in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _loss_difference(expected: Path, actual: Path) -> float:
    pairs = [[json.loads(line) for line in path.read_text().splitlines()] for path in (expected, actual)]
    if [line["step"] for line in pairs[0]] != [line["step"] for line in pairs[1]]:
        return math.inf
    keys = pairs[0][0].keys() - {"time"}
    return max(abs(a[key] - b[key]) for a, b in zip(*pairs, strict=True) for key in keys)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _at_work(place: Path) -> str:
    """The stage whose lock the killed process has left."""
    found = [path.parent.relative_to(place).as_posix() for path in place.rglob(".lock")]
    return found[0] if found else "between stages"


def _run(run: Run, place: Path, delay: float) -> int:
    process = multiprocessing.get_context("fork").Process(target=_child, args=(run, place))
    process.start()
    process.join(None if delay == math.inf else delay)
    if process.exitcode is None:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode or 0


def _child(run: Run, place: Path) -> None:
    torch.set_num_threads(1)
    raise SystemExit(run(place))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no kill after this time")
    parser.add_argument("--made-up", action="store_true", help="fast stages instead of the pipeline's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.made_up:
            from tests.reliability.made_up import MadeUp

            run: Run = MadeUp()
        else:
            import irn_pipeline.stages.catalogue  # noqa: F401 - loaded before the forks

            run = tiny_pipeline(folder)
        found = harness(run, folder, options.kills, options.seed, options.seconds)
    sys.stdout.write(json.dumps(vars(found)) + "\n")
    return 1 if found.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
