from __future__ import annotations

import json
from pathlib import Path

import pytest

from irn_pipeline.engine.provenance import fingerprint_of
from irn_pipeline.engine.store import Artifact, RunFolder, StageRecord, versions
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.atomic import atomic_path, write_json


def write_text(path: Path, value: str) -> None:
    path.write_text(value)


TEXT: Artifact[str] = Artifact("text", "write_it", ".txt", Path.read_text, write_text)
NOTE: Artifact[str] = Artifact(
    "note",
    "write_it",
    ".txt",
    Path.read_text,
    write_text,
    per_image=False,
)
RECORD = StageRecord(
    stage="write_it",
    fingerprint="0123",
    params={"scales": [1.0, 0.5], "name": None},
    reads={"other": "4567"},
    complete=True,
    counts={"images": 3, "skipped": 1},
    seconds=1.5,
    versions={"python": "3.10"},
)


def test_atomic_path_takes_its_place_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
        assert not target.exists()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}


def test_paths_of_both_kinds_of_artifact(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.path(TEXT, "2007_000032.v1") == tmp_path / "write_it" / "text" / "2007_000032.v1.txt"
    assert run.path(NOTE) == tmp_path / "write_it" / "note.txt"


def test_has_wants_a_file_that_is_not_empty(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not run.has(NOTE)
    run.write(NOTE, "x")
    assert run.has(NOTE)
    run.path(NOTE).write_text("")
    assert not run.has(NOTE)
    assert not run.has(TEXT, "a")


def test_reading_what_is_not_there_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run stage write_it first") as caught:
        RunFolder(tmp_path).read(TEXT, "a")
    assert str(tmp_path / "write_it" / "text" / "a.txt") in str(caught.value)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.record("write_it") is None
    run.write_record(RECORD)
    assert run.record("write_it") == RECORD


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "write_it"}', '{"unknown": 1}', "3"])
def test_a_damaged_record_is_named_with_its_remedy(tmp_path: Path, content: str) -> None:
    path = tmp_path / "write_it" / "stage.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"damaged.*delete it") as caught:
        RunFolder(tmp_path).record("write_it")
    assert str(path) in str(caught.value)


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint_of({"a": 1, "b": [2, 3]}) == fingerprint_of({"b": [2, 3], "a": 1})
    assert fingerprint_of({"a": 1, "b": [2, 3]}) != fingerprint_of({"a": 1, "b": [3, 2]})


def test_versions_name_what_results_depend_on() -> None:
    assert {"irn_pipeline", "python", "torch", "torchvision", "numpy"} <= versions().keys()
