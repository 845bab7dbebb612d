"""The lock of a stage's folder, against real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from irn_pipeline.errors import ArtifactError
from irn_pipeline.runtime import lock
from irn_pipeline.runtime.lock import LOCK_NAME, Holder, holder_of, stage_lock

HOLD = """
import sys, time
from pathlib import Path
from irn_pipeline.runtime.lock import stage_lock
with stage_lock(Path(sys.argv[1])):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    time.sleep(60)
"""
COUNT = """
import sys, time
from pathlib import Path
from irn_pipeline.errors import ArtifactError
from irn_pipeline.runtime.lock import stage_lock
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


def written(folder: Path, **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    now = {name: getattr(Holder.here(), name) for name in ("host", "pid", "started", "since", "command")}
    (folder / LOCK_NAME).write_text(json.dumps({**now, **changes}))


def test_a_lock_is_there_while_it_is_held(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "stage"
    with stage_lock(folder):
        holder = holder_of(folder)
        assert holder is not None
        assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
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
        holder = holder_of(tmp_path)
        assert holder is not None
        assert holder.pid == process.pid
        # The attempt took nothing from the holder.
        with pytest.raises(ArtifactError), stage_lock(tmp_path):
            pytest.fail("entered")


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reaped: bool
) -> None:
    caplog.set_level("WARNING", "irn_pipeline")
    with holding(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        if reaped:
            process.wait()
        else:  # the system keeps the id of a dead child until its parent asks: it must not pass for alive
            deadline = time.monotonic() + 10
            while lock._start_time(process.pid) is not None and time.monotonic() < deadline:
                time.sleep(0.01)
        assert (tmp_path / LOCK_NAME).is_file()
        assert holder_of(tmp_path) is None
        with stage_lock(tmp_path):
            holder = holder_of(tmp_path)
            assert holder is not None
            assert holder.pid == os.getpid()
        assert f"left by process {process.pid}" in caplog.text
        assert "taken over" in caplog.text


def test_another_process_with_the_same_id_is_not_the_holder(tmp_path: Path) -> None:
    written(tmp_path, started=1)
    assert holder_of(tmp_path) is None
    with stage_lock(tmp_path):
        pass


def test_this_process_itself_is_refused_a_second_time(tmp_path: Path) -> None:
    with (
        stage_lock(tmp_path),
        pytest.raises(ArtifactError, match=f"process {os.getpid()} "),
        stage_lock(tmp_path),
    ):
        pytest.fail("entered")


def test_the_lock_of_another_machine_is_refused_and_says_what_to_remove(tmp_path: Path) -> None:
    written(tmp_path, host="node7", pid=4, started=5)
    with pytest.raises(ArtifactError) as caught, stage_lock(tmp_path):
        pytest.fail("entered")
    assert "process 4 on node7" in str(caught.value)
    assert f"remove {tmp_path / LOCK_NAME}" in str(caught.value)
    (tmp_path / LOCK_NAME).unlink()
    with stage_lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}', '{"host": "x", "pid": "y"}'])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_NAME).write_text(content)
    with stage_lock(tmp_path):
        assert holder_of(tmp_path) is not None


def test_without_locks_of_the_file_system_the_name_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(tmp_path) as process:
        monkeypatch.setattr(lock, "fcntl", None)
        with pytest.raises(ArtifactError, match=f"process {process.pid} "), stage_lock(tmp_path):
            pytest.fail("entered")
        process.kill()
        process.wait()
        with stage_lock(tmp_path):
            pass


def test_processes_that_fight_for_it_enter_one_by_one(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    fighters = [
        subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path / "stage"), str(number)])
        for _ in range(3)
    ]
    assert [fighter.wait(timeout=60) for fighter in fighters] == [0, 0, 0]
    assert number.read_text() == "60"
