"""Files that parameters name are told apart by their content, on made-up stages that copy them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from irn_pipeline.engine import inputs
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Files, FitStage, Job, MapStage, Produced
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError
from tests.engine.samples import TOTAL, UPPER, Word, Words, job


@dataclass(frozen=True)
class Params:
    """Files to copy."""

    weights: str = "none"
    """A file, or none."""
    maps: tuple[str, ...] = ()
    """Folders of one file a word."""


def _files(work: Job[Params, Words]) -> Mapping[str, tuple[Files, ...]]:
    params = work.params
    found: dict[str, tuple[Files, ...]] = {}
    if params.weights != "none":
        found["weights"] = (Files.one(params.weights),)
    if params.maps:
        found["maps"] = tuple(
            Files(
                Path(folder),
                {word.image_id: Path(folder, f"{word.image_id}.txt") for word in work.data.items},
            )
            for folder in params.maps
        )
    return found


def _fit(work: Job[Params, Words]) -> int:
    text = "none" if work.params.weights == "none" else Path(work.params.weights).read_text()
    work.run.write(TOTAL, text)
    return 1


def _run(work: Job[Params, Words], pending: Sequence[Word]) -> Iterator[Produced]:
    for word in pending:
        path = Path(work.params.maps[0], f"{word.image_id}.txt")
        if path.is_file():
            yield Produced(word.image_id, (path.read_text(),))
        else:
            yield Produced(word.image_id, problem=f"{path}: no such file")


FIT: FitStage[Params] = FitStage("count", "Copy.", Params, writes=(TOTAL,), fit=_fit, files=_files)
MAP: MapStage[Params] = MapStage("upper", "Copy.", Params, writes=(UPPER,), run=_run, files=_files)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    path.write_text("first")
    return path


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    for name in ("w0", "w1", "w2"):
        (folder / f"{name}.txt").write_text(f"map of {name}")
    return folder


def fit(run: Path, weights: Path | str, **execution: Any) -> StageRecord:
    return run_stage(FIT, job(run, Params(weights=str(weights)), **execution))


def copy(run: Path, *maps: Path, text: str = "one two three", **execution: Any) -> StageRecord:
    return run_stage(MAP, job(run, Params(maps=tuple(map(str, maps))), text, **execution))


def replaced(path: Path, content: str) -> None:
    """Other content of the same length, with the time of the last change put back."""
    state = path.stat()
    assert len(content) == state.st_size
    path.write_text(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_moved_file_changes_nothing(run: Path, weights: Path) -> None:
    first = fit(run, weights)
    moved = weights.rename(weights.with_name("elsewhere.pth"))
    assert fit(run, moved).fingerprint == first.fingerprint
    moved.unlink()
    assert fit(run, moved).complete, "the result stands, whatever becomes of its file"


def test_other_content_at_the_same_path_is_refused_by_name(run: Path, weights: Path) -> None:
    fit(run, weights)
    replaced(weights, "other")
    with pytest.raises(ArtifactError, match=rf"--weights {weights}: its content has changed.*--overwrite"):
        fit(run, weights)
    assert RunFolder(run).read(TOTAL) == "first"
    fit(run, weights, overwrite=True)
    assert RunFolder(run).read(TOTAL) == "other"


def test_another_file_that_is_not_there_is_refused(run: Path, weights: Path) -> None:
    fit(run, weights)
    with pytest.raises(ArtifactError, match=r"--weights gone.pth: not found"):
        fit(run, "gone.pth")


def test_a_file_instead_of_a_word_is_another_parameter(run: Path, weights: Path) -> None:
    fit(run, weights)
    with pytest.raises(ArtifactError, match=r"weights was .*weights.pth, is now none"):
        fit(run, "none")
    fit(run, "none", overwrite=True)
    with pytest.raises(ArtifactError, match=r"weights was none, is now .*weights.pth"):
        fit(run, weights)


def test_files_that_seem_unchanged_are_not_read_again(
    run: Path, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = inputs.content_digest

    def counted(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(inputs, "content_digest", counted)
    copy(run, maps)
    assert sorted(read) == ["w0.txt", "w1.txt", "w2.txt"]
    read.clear()
    copy(run, maps)
    assert read == []
    (maps / "w1.txt").touch()
    copy(run, maps)
    assert read == ["w1.txt"]


def test_a_moved_folder_changes_nothing(run: Path, maps: Path) -> None:
    first = copy(run, maps)
    moved = maps.rename(maps.with_name("moved"))
    again = copy(run, moved)
    assert (again.fingerprint, again.counts["kept"]) == (first.fingerprint, 3)


def test_a_changed_file_of_a_finished_picture_is_refused_by_name(run: Path, maps: Path) -> None:
    copy(run, maps)
    replaced(maps / "w1.txt", "map of wx")
    with pytest.raises(ArtifactError, match=rf"--maps {maps}/w1.txt: its content has changed"):
        copy(run, maps)
    assert RunFolder(run).read(UPPER, "w1") == "map of w1"


def test_many_changed_files_are_one_phrase(run: Path, maps: Path) -> None:
    copy(run, maps)
    for path in maps.iterdir():
        path.write_text("all anew")
    with pytest.raises(ArtifactError, match=r"w0.txt: its content has changed, nor are 2 others") as caught:
        copy(run, maps)
    assert "w1.txt" not in str(caught.value)


def test_files_of_pictures_that_are_not_done_may_change(run: Path, maps: Path) -> None:
    (maps / "w1.txt").unlink()
    assert copy(run, maps).counts == {"images": 2, "kept": 0, "skipped": 1}
    (maps / "w1.txt").write_text("mended")
    assert copy(run, maps).counts == {"images": 1, "kept": 2, "skipped": 0}
    RunFolder(run).path(UPPER, "w1").unlink()
    (maps / "w1.txt").write_text("again")
    assert copy(run, maps).counts == {"images": 1, "kept": 2, "skipped": 0}
    assert RunFolder(run).read(UPPER, "w1") == "again"


def test_more_pictures_are_taken_later_and_the_first_ones_stay_known(run: Path, maps: Path) -> None:
    first = copy(run, maps, text="one")
    assert copy(run, maps, text="one two three").fingerprint == first.fingerprint
    copy(run, maps, text="one")
    replaced(maps / "w2.txt", "map of wx")
    with pytest.raises(ArtifactError, match=r"w2.txt: its content has changed"):
        copy(run, maps)


def test_another_number_of_folders_is_another_parameter(run: Path, maps: Path) -> None:
    copy(run, maps)
    with pytest.raises(ArtifactError, match=r"maps was .*, is now"):
        copy(run, maps, maps)


def test_results_of_other_content_have_another_fingerprint(run: Path, maps: Path) -> None:
    first = copy(run, maps)
    assert copy(run, maps, overwrite=True).fingerprint == first.fingerprint
    (maps / "w0.txt").write_text("better")
    assert copy(run, maps, overwrite=True).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"maps": 3}', '{"maps": [{"path": "x", "files": {"w0": [1]}}]}']
)
def test_a_damaged_record_of_files_is_named_with_its_remedy(run: Path, maps: Path, content: str) -> None:
    copy(run, maps)
    path = run / "upper" / inputs.INPUTS_NAME
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"inputs.json: damaged.*delete it"):
        copy(run, maps)
    path.unlink()
    assert copy(run, maps).counts["kept"] == 3


def test_a_pipe_is_not_waited_for(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    known, changed = inputs.take_stock(
        {"weights": (Files.one(tmp_path / "pipe"),)}, {}, None, Execution(workers=1, quiet=True)
    )
    assert (known["weights"][0].files, changed) == ({}, [])


def test_a_copied_folder_is_read_anew(run: Path, maps: Path, tmp_path: Path) -> None:
    copy(run, maps)
    other = tmp_path / "other"
    shutil.copytree(maps, other)  # keeps the times of the last change
    replaced(other / "w0.txt", "map of wx")
    with pytest.raises(ArtifactError, match=r"other/w0.txt: its content has changed"):
        copy(run, other)
