"""Progress: bars on a terminal, few whole lines in a file. Time is a made-up clock."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.progress import progress, progress_bar
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job, MapStage, Produced
from tests.engine.samples import UPPER, UpperParams, Word, Words, job


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Notebook(io.StringIO):
    """As ipykernel's OutStream."""


Notebook.__module__ = "ipykernel.iostream"
Shown = Callable[[io.StringIO], io.StringIO]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    def replaced(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return replaced


def slowly(count: int, clock: Clock, seconds: float) -> Iterator[int]:
    for number in range(count):
        clock.now += seconds
        yield number


def test_a_file_gets_lines_at_longer_and_longer_intervals(clock: Clock, shown: Shown) -> None:
    log = shown(io.StringIO())
    assert list(progress(slowly(100, clock, 1.0), "walk", total=100)) == list(range(100))
    assert log.getvalue().splitlines() == [
        "walk: 30/100 (30 %), 1.00image/s, 01:10 left",
        "walk: 90/100 (90 %), 1.00image/s, 00:10 left",
    ]
    assert log.getvalue().endswith("left\n")


def test_the_intervals_grow_up_to_a_quarter_of_an_hour(clock: Clock, shown: Shown) -> None:
    log = shown(io.StringIO())
    list(progress(slowly(500, clock, 10.0), "walk", total=500))
    seconds = [10 * int(line.split()[1].split("/")[0]) for line in log.getvalue().splitlines()]
    assert seconds == [30, 90, 210, 450, 930, 1830, 2730, 3630, 4530]


def test_a_file_gets_no_more_lines_from_fast_or_slow_steps(clock: Clock, shown: Shown) -> None:
    log = shown(io.StringIO())
    list(progress(slowly(29_000, clock, 0.001), "walk", total=29_000))
    assert log.getvalue() == ""
    list(progress(slowly(6100, clock, 0.01), "walk", total=6100))
    assert log.getvalue().count("\n") == 1
    list(progress(slowly(3, clock, 45.0), "walk", total=3))
    assert log.getvalue().splitlines()[1:] == [
        "walk: 1/3 (33 %), 45.00s/image, 01:30 left",
        "walk: 3/3 (100 %), 45.00s/image, 00:00 left",
    ]


def test_a_resumed_loop_counts_the_rate_from_where_it_went_on(clock: Clock, shown: Shown) -> None:
    log = shown(io.StringIO())
    with progress_bar("train", total=200, done=100, unit="step") as bar:
        for _ in range(35):
            clock.now += 1
            bar.update()
            bar.set_postfix({"loss": "0.5"}, refresh=False)
    assert log.getvalue() == "train: 130/200 (65 %), 1.00step/s, 01:10 left, loss=0.5\n"


def test_what_a_stage_prepares_does_not_count_as_time_per_image(
    clock: Clock, shown: Shown, tmp_path: Path
) -> None:
    def prepared(job: Job[UpperParams, Words], pending: Sequence[Word]) -> Iterator[Produced]:
        clock.now += 3600
        for word in pending:
            clock.now += 10
            yield Produced(word.image_id, (word.text,))

    log = shown(io.StringIO())
    stage = MapStage("upper", "Copy words.", UpperParams, writes=(UPPER,), run=prepared)
    work = job(tmp_path / "run", UpperParams(), " ".join(["word"] * 10))
    run_stage(stage, replace(work, execution=Execution(device="cpu")))
    lines = [line for line in log.getvalue().splitlines() if "left" in line]
    # Without the first image, whose time cannot be told from the preparation.
    assert lines[0] == "upper: 4/10 (40 %), 7.50s/image, 00:45 left"


def test_a_loop_that_breaks_off_leaves_no_half_line(clock: Clock, shown: Shown) -> None:
    log = shown(io.StringIO())
    with pytest.raises(RuntimeError, match="stop"), progress_bar("train", total=9) as bar:
        clock.now += 31
        bar.update()
        raise RuntimeError("stop")
    assert log.getvalue() == "train: 1/9 (11 %), 31.00s/image, 04:08 left\n"


@pytest.mark.parametrize("stream", [Terminal, Notebook])
def test_a_terminal_gets_a_bar_that_moves(stream: type[io.StringIO], clock: Clock, shown: Shown) -> None:
    screen = shown(stream())
    list(progress(slowly(10, clock, 1.0), "walk", total=10))
    states = screen.getvalue().split("\r")[1:]
    assert [state[:10] for state in states[:11]] == [f"walk: {10 * done:3d}%" for done in range(11)]
    assert "| 5/10 [00:05<00:05,  1.00image/s]" in states[5]
    assert screen.getvalue().count("\n") == 1


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_shows_nothing(stream: type[io.StringIO], clock: Clock, shown: Shown) -> None:
    screen = shown(stream())
    assert list(progress(slowly(100, clock, 1.0), "walk", total=100, quiet=True)) == list(range(100))
    with progress_bar("train", total=2, quiet=True) as bar:
        clock.now += 60
        bar.update()
    assert screen.getvalue() == ""
