"""The lock of a stage's folder, against real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.lock import LOCK_NAME, holder_of, stage_lock

HOLD = """
import os, sys, time
from pathlib import Path
from irn_pipeline.files.lock import stage_lock
with stage_lock(Path(sys.argv[1])):
    started, start = os.pipe()
    if os.fork() == 0:  # a worker that outlives the holder
        os.write(start, b"1")
        os.closerange(0, 3)
        time.sleep(5)
        os._exit(0)
    os.read(started, 1)  # the worker has run what Python runs after a fork
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    time.sleep(60)
"""
COUNT = """
import sys, time
from pathlib import Path
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.lock import stage_lock
folder, number = Path(sys.argv[1]), Path(sys.argv[2])
done = 0
while done < 20:
    try:
        with stage_lock(folder):
            before = int(number.read_text())
            time.sleep(0.001)
            number.write_text(str(before + 1))
            done += 1
    except ArtifactError:
        time.sleep(0.0005)
"""


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_lock_is_there_while_it_is_held(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "stage"
    with stage_lock(folder):
        told = holder_of(folder)
        assert told is not None
        assert told.startswith(f"process {os.getpid()} on {socket.gethostname()} since 20")
        (folder / "result").write_text("kept")
    assert holder_of(folder) is None
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_refused_stage_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), stage_lock(tmp_path / "run" / "stage"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_live_process_is_named_with_the_ways_out(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        with pytest.raises(ArtifactError) as caught, stage_lock(tmp_path):
            pytest.fail("entered")
        for part in (str(tmp_path), f"process {process.pid} on {socket.gethostname()}", "--run-dir", "wait"):
            assert part in str(caught.value)
        assert str(caught.value).count("\n") == 0
        assert f"process {process.pid} " in str(holder_of(tmp_path))
        # The attempt took nothing from the holder.
        with pytest.raises(ArtifactError), stage_lock(tmp_path):
            pytest.fail("entered")


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_leaves_no_lock(tmp_path: Path, reaped: bool) -> None:
    with holding(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        assert (tmp_path / LOCK_NAME).is_file()
        assert holder_of(tmp_path) is None
        with stage_lock(tmp_path):
            assert f"process {os.getpid()} " in str(holder_of(tmp_path))


def test_this_process_itself_is_refused_a_second_time(tmp_path: Path) -> None:
    with (
        stage_lock(tmp_path),
        pytest.raises(ArtifactError, match=f"process {os.getpid()} "),
        stage_lock(tmp_path),
    ):
        pytest.fail("entered")


@pytest.mark.parametrize("content", ["", '{"host": "node7", "pid": 4}', "process 4 on node7", "\x1b[2J"])
def test_a_file_that_nobody_holds_is_no_lock(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_NAME).write_text(content)
    assert holder_of(tmp_path) is None
    with stage_lock(tmp_path):
        assert f"process {os.getpid()} " in str(holder_of(tmp_path))


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with stage_lock(tmp_path / "stage"):
        (tmp_path / "stage" / "result").write_text("made")
    assert "cannot be locked (Function not implemented); do not start a second process there" in caplog.text
    assert holder_of(tmp_path / "stage") is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with (
        pytest.raises(ArtifactError, match=r"run/stage/\.lock: cannot be written .*another --run-dir"),
        stage_lock(tmp_path / "run" / "stage"),
    ):
        pytest.fail("entered")


def test_processes_that_fight_for_it_enter_one_by_one(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    fighters = [
        subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path / "stage"), str(number)])
        for _ in range(3)
    ]
    assert [fighter.wait(timeout=60) for fighter in fighters] == [0, 0, 0]
    assert number.read_text() == "60"
