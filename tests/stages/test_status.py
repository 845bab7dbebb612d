"""The state of made-up runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.files.lock import stage_lock
from irn_pipeline.stages.status import StageStatus, next_command, stage_statuses
from tests.engine.samples import UPPER, CountParams, Stages, UpperParams, job


def states(folder: Path, stages: Stages) -> dict[str, StageStatus]:
    found = stage_statuses(RunFolder(folder), (stages.count, stages.upper, stages.report))
    return {status.folder: status for status in found}


def next_of(folder: Path, stages: Stages) -> str:
    return next_command(list(states(folder, stages).values()), folder)


@pytest.fixture
def whole(tmp_path: Path) -> Stages:
    made = Stages()
    run_stage(made.count, job(tmp_path, CountParams()))
    run_stage(made.upper, job(tmp_path, UpperParams()))
    run_stage(made.report, job(tmp_path, CountParams()))
    return made


def test_nothing_is_there(tmp_path: Path) -> None:
    assert [status.state for status in states(tmp_path, Stages()).values()] == ["missing"] * 3
    assert next_of(tmp_path, Stages()).startswith(f"python -m stages.count --run-dir {tmp_path}")


def test_all_is_done(tmp_path: Path, whole: Stages) -> None:
    found = states(tmp_path, whole)
    assert [status.state for status in found.values()] == ["done"] * 3
    assert found["upper"].detail.startswith("3 images, ")
    assert next_of(tmp_path, whole) == "nothing left to do"


def test_an_interrupted_map_tells_n_of_m(tmp_path: Path) -> None:
    made = Stages()
    run_stage(made.count, job(tmp_path, CountParams()))
    made.fail_at = "w2"
    with pytest.raises(KeyboardInterrupt):
        run_stage(made.upper, job(tmp_path, UpperParams()))
    (tmp_path / "upper" / "upper" / ".part-x.txt").write_text("half")
    found = states(tmp_path, made)["upper"]
    assert (found.state, found.detail) == ("partial", "2 of 3 images")
    assert next_of(tmp_path, made).startswith("python -m stages.upper ")
    assert "--overwrite" not in next_of(tmp_path, made)


def test_removed_files_make_a_stage_partial(tmp_path: Path, whole: Stages) -> None:
    RunFolder(tmp_path).path(UPPER, "w1").unlink()
    found = states(tmp_path, whole)["upper"]
    assert (found.state, found.detail) == ("partial", "2 of 3 images: files were removed")
    (tmp_path / "count" / "total.txt").unlink()
    found = states(tmp_path, whole)["count"]
    assert (found.state, found.detail) == ("partial", "total.txt is gone")


def test_new_results_upstream_make_all_that_follows_stale(tmp_path: Path, whole: Stages) -> None:
    run_stage(whole.count, job(tmp_path, CountParams(start=5), overwrite=True))
    found = states(tmp_path, whole)
    assert found["count"].state == "done"
    assert found["upper"].state == found["report"].state == "stale"
    assert "results of count, which it reads, were made again" in found["upper"].detail
    assert "--overwrite" in next_of(tmp_path, whole)
    run_stage(whole.upper, job(tmp_path, UpperParams(), overwrite=True))
    found = states(tmp_path, whole)
    assert [status.state for status in found.values()] == ["done", "done", "stale"]
    # The last one is done anew whenever it is run: nothing has to be overwritten.
    assert next_of(tmp_path, whole).startswith("python -m stages.report ")
    assert "--overwrite" not in next_of(tmp_path, whole)


def test_other_parameters_upstream_alone_do_it_for_the_last(tmp_path: Path, whole: Stages) -> None:
    run_stage(whole.upper, job(tmp_path, UpperParams(repeat=2), overwrite=True))
    assert [status.state for status in states(tmp_path, whole).values()] == ["done", "done", "stale"]


def test_missing_upstream(tmp_path: Path, whole: Stages) -> None:
    (tmp_path / "count" / "stage.json").unlink()
    found = states(tmp_path, whole)
    assert [status.state for status in found.values()] == ["missing", "stale", "stale"]
    assert "results of count, which it reads, are gone" in found["upper"].detail
    assert next_of(tmp_path, whole).startswith("python -m stages.count ")


def test_what_later_stages_do_without_is_not_asked_for(tmp_path: Path) -> None:
    made = Stages()
    alone = replace(made.upper, unread=lambda params: made.upper.reads)
    run_stage(alone, job(tmp_path, UpperParams()))
    assert [status.state for status in states(tmp_path, made).values()] == ["missing", "done", "missing"]
    assert next_of(tmp_path, made).startswith("python -m stages.report ")


def test_a_damaged_record_is_named(tmp_path: Path, whole: Stages) -> None:
    record = tmp_path / "upper" / "stage.json"
    record.write_text("{")
    found = states(tmp_path, whole)
    assert [status.state for status in found.values()] == ["done", "damaged", "stale"]
    assert str(record) in next_of(tmp_path, whole)


def test_a_stage_that_is_being_worked_on(tmp_path: Path, whole: Stages) -> None:
    with stage_lock(tmp_path / "upper"):
        found = states(tmp_path, whole)["upper"]
        assert found.state == "running"
        assert next_of(tmp_path, whole).startswith("wait: upper: 3 images")


def test_a_stage_that_only_looks_writes_nothing(tmp_path: Path) -> None:
    looks = replace(Stages().report, reads=(), run=lambda job: 7, only_looks=True)
    assert run_stage(looks, job(tmp_path, CountParams())).counts == {"images": 7}
    assert list(tmp_path.iterdir()) == []


def test_variants_have_a_line_each(tmp_path: Path) -> None:
    made = Stages()
    varied = replace(made.count, variant=lambda params: f"from-{params.start}")
    assert [s.folder for s in stage_statuses(RunFolder(tmp_path), (varied,))] == ["count"]
    for start in (1, 2):
        run_stage(varied, job(tmp_path, CountParams(start=start)))
    # The made-up function writes into the folder of the stage, not of the variant.
    assert [(s.folder, s.state) for s in stage_statuses(RunFolder(tmp_path), (varied,))] == [
        ("count/from-1", "partial"),
        ("count/from-2", "partial"),
    ]
