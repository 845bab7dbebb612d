"""Links in a run folder lead out of it: nothing is written to, emptied or removed behind one, nor waited for."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.store import RECORD_NAME, RunFolder, StageRecord
from irn_pipeline.engine.training_log import TrainingLog
from irn_pipeline.errors import ArtifactError, IrnError
from irn_pipeline.files.atomic import remove
from irn_pipeline.files.lock import LOCK_NAME, holder_of, stage_lock
from tests.engine.samples import UPPER, Stages, UpperParams, job


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's own, with a file that must stay as it is."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "w0.txt").write_text("precious")
    (folder / ".part-mine").write_text("precious too")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def is_untouched(folder: Path) -> bool:
    found = {path.name: path.read_text() for path in folder.iterdir()}
    return found == {"w0.txt": "precious", ".part-mine": "precious too"}


def upper(run: Path, *, overwrite: bool = False) -> None:
    run_stage(replace(Stages().upper, reads=()), job(run, UpperParams(), overwrite=overwrite))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stage_folder_that_is_a_link(run: Path, outside: Path, overwrite: bool) -> None:
    (run / "upper").symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"run/upper: is a link.*remove the link"):
        upper(run, overwrite=overwrite)
    assert is_untouched(outside)


def test_a_run_folder_that_is_a_link_is_its_users_wish(run: Path, tmp_path: Path) -> None:
    (tmp_path / "short").symlink_to(run)
    upper(tmp_path / "short")
    assert (run / "upper" / "upper" / "w0.txt").read_text() == "ONE"


def test_a_folder_of_artifacts_that_is_a_link(run: Path, outside: Path) -> None:
    (run / "upper").mkdir()
    (run / "upper" / "upper").symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"upper/upper: is a link"):
        upper(run)
    assert is_untouched(outside)
    upper(run, overwrite=True)
    assert is_untouched(outside)
    assert (run / "upper" / "upper" / "w0.txt").read_text() == "ONE"


@pytest.mark.parametrize("target", ["w0.txt", "gone.txt"])
def test_an_artifact_that_is_a_link_is_replaced(run: Path, outside: Path, target: str) -> None:
    place = run / "upper" / "upper" / "w0.txt"
    place.parent.mkdir(parents=True)
    place.symlink_to(outside / target)
    upper(run, overwrite=True)
    RunFolder(run).write(UPPER, "new", "w0")
    assert is_untouched(outside)
    assert (place.read_text(), place.is_symlink()) == ("new", False)


def test_overwriting_removes_links_but_not_what_they_lead_to(run: Path, outside: Path) -> None:
    upper(run)
    links = [run / "upper" / name for name in ("more", "upper/w7.txt", ".part-x")]
    for link, target in zip(links, (outside, outside / "w0.txt", outside / ".part-mine"), strict=True):
        link.symlink_to(target)
    upper(run, overwrite=True)
    assert is_untouched(outside)
    assert not any(link.is_symlink() for link in links)


def test_half_written_files_that_are_links(run: Path, outside: Path) -> None:
    (run / "upper").mkdir()
    (run / "upper" / ".part-file").symlink_to(outside / "w0.txt")
    (run / "upper" / ".part-folder").symlink_to(outside)
    (run / "upper" / "folder").symlink_to(outside)
    upper(run)
    assert is_untouched(outside)
    assert not (run / "upper" / ".part-file").is_symlink()


def test_a_record_that_is_a_link_is_replaced(run: Path, outside: Path) -> None:
    (run / "upper").mkdir()
    record = StageRecord("upper", "0", {}, {}, False, {}, 0.0, {})
    (outside / "w0.txt").write_text(json.dumps(asdict(record)))
    (run / "upper" / RECORD_NAME).symlink_to(outside / "w0.txt")
    upper(run, overwrite=True)
    assert json.loads((outside / "w0.txt").read_text())["fingerprint"] == "0"


def test_remove_keeps_what_is_behind_a_link(run: Path, outside: Path) -> None:
    (run / "link").symlink_to(outside)
    (run / "folder").mkdir()
    (run / "folder" / "link").symlink_to(outside)
    for name in ("link", "folder", "gone"):
        remove(run / name)
    assert is_untouched(outside)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_lock_that_is_another_file(run: Path, outside: Path, make: Callable[[Path, Path], None]) -> None:
    make(outside / "w0.txt", run / LOCK_NAME)
    with (
        pytest.raises(ArtifactError, match=r"\.lock: is a link or not a regular file.*remove it"),
        stage_lock(run),
    ):
        pass
    assert is_untouched(outside)
    assert holder_of(run) is None


def test_a_lock_that_leads_nowhere_makes_no_file(run: Path, outside: Path) -> None:
    (run / LOCK_NAME).symlink_to(outside / "new")
    with pytest.raises(ArtifactError, match="is a link"), stage_lock(run):
        pass
    assert is_untouched(outside)


def test_a_lock_that_is_a_pipe_or_endless(run: Path) -> None:
    os.mkfifo(run / LOCK_NAME)
    assert holder_of(run) is None
    with pytest.raises(ArtifactError, match="not a regular file"), stage_lock(run):
        pass
    (run / LOCK_NAME).unlink()
    (run / LOCK_NAME).symlink_to("/dev/zero")
    assert holder_of(run) is None


def test_a_lock_does_not_steer_the_terminal(run: Path) -> None:
    with (run / LOCK_NAME).open("w") as lock:
        lock.write("process 5\x1b[2J on else\r\nwhere\x07 " + "x" * 10_000)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError) as caught, stage_lock(run):
            pytest.fail("entered")
    assert "process 5?[2J on else where?" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("target", ["w0.txt", "gone"])
def test_a_record_of_losses_that_is_a_link(run: Path, outside: Path, target: str) -> None:
    for name in ("losses.jsonl", "validation.jsonl", "tensorboard"):
        (run / name).symlink_to(outside / target)
    log = TrainingLog(run, done=0)
    log.add("losses", 1, 0, {"loss": 0.5})
    log.close()
    assert is_untouched(outside)
    assert '"loss": 0.5' in (run / "losses.jsonl").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"params": []},
        {"reads": {"../../other": "0"}},
        {"reads": {"/etc": "0"}},
        {"reads": {"a": 1}},
        {"counts": {"images": "many"}},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"sections": {"a": None}},
        {"complete": "yes"},
        {"unknown": 1},
    ],
)
def test_records_that_say_something_impossible(run: Path, change: dict[str, object]) -> None:
    whole = asdict(StageRecord("upper", "0", {}, {"count": "1"}, True, {"images": 1}, 1.0, {}, {}))
    (run / "upper").mkdir()
    place = run / "upper" / RECORD_NAME
    place.write_text(json.dumps(whole))
    assert RunFolder(run).record("upper") is not None
    place.write_text(json.dumps({**whole, **change}))
    with pytest.raises(IrnError, match=r"stage\.json: damaged .*delete it"):
        RunFolder(run).record("upper")
