"""The engine on made-up stages: skip, resume, rebuild, refuse, count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from irn_pipeline.engine.aside import ASIDE_NAME, set_aside
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job, Produced
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError, ConfigError, DataError
from irn_pipeline.files.lock import LOCK_NAME
from tests.engine.samples import REPORT, TOTAL, UPPER, CountParams, Stages, UpperParams, Words, job


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    """With the first stage done."""
    made = Stages()
    run_stage(made.count, job(tmp_path, CountParams()))
    return made


def test_a_map_stage_writes_one_file_an_item(tmp_path: Path, stages: Stages) -> None:
    record = run_stage(stages.upper, job(tmp_path, UpperParams(repeat=2)))
    assert (tmp_path / "upper" / "upper" / "w1.txt").read_text() == "TWOTWO"
    assert record.counts == {"images": 3, "kept": 0, "skipped": 0}
    assert record.complete
    assert record.reads.keys() == {"count"}


def test_what_is_there_is_skipped(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams()))
    RunFolder(tmp_path).path(UPPER, "w1").unlink()
    RunFolder(tmp_path).path(UPPER, "w2").write_text("")
    stages.worked_on.clear()
    record = run_stage(stages.upper, job(tmp_path, UpperParams()))
    assert stages.worked_on == ["w1", "w2"]
    assert record.counts == {"images": 2, "kept": 1, "skipped": 0}


def test_an_interrupted_map_goes_on_where_it_was(tmp_path: Path, stages: Stages) -> None:
    stages.fail_at = "w2"
    with pytest.raises(KeyboardInterrupt):
        run_stage(stages.upper, job(tmp_path, UpperParams()))
    record = RunFolder(tmp_path).record("upper")
    assert record is not None
    assert not record.complete
    assert stages.worked_on == ["w0", "w1"]
    stages.fail_at = None
    run_stage(stages.upper, job(tmp_path, UpperParams()))
    assert stages.worked_on == ["w0", "w1", "w2"]
    done = RunFolder(tmp_path).record("upper")
    assert done is not None
    assert done.complete


def test_overwrite_builds_everything_again(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams(repeat=1)))
    stray = tmp_path / "upper" / "upper" / "w9.txt"
    stray.write_text("of an earlier list")
    record = run_stage(stages.upper, job(tmp_path, UpperParams(repeat=3), overwrite=True))
    assert RunFolder(tmp_path).read(UPPER, "w0") == "ONEONEONE"
    assert record.counts["images"] == 3
    assert not stray.exists()


def everything(folder: Path) -> dict[str, str]:
    """Every file below a folder but the lock, with its text."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.mark.parametrize("kind", ["count", "upper", "report"])
@pytest.mark.parametrize("error", [ConfigError, KeyboardInterrupt])
def test_overwrite_loses_nothing_when_the_stage_refuses_to_begin(
    tmp_path: Path, stages: Stages, kind: str, error: type[BaseException]
) -> None:
    def refuse(*arguments: object) -> int:
        raise error("no such network")

    for name in ("count", "upper", "report"):
        run_stage(getattr(stages, name), job(tmp_path, UpperParams() if name == "upper" else CountParams()))
    before = everything(tmp_path)
    assert f"{kind}/stage.json" in before
    params = UpperParams(repeat=2) if kind == "upper" else CountParams(start=2)
    function = {"count": "fit"}.get(kind, "run")
    with pytest.raises(error, match="no such network"):
        run_stage(replace(getattr(stages, kind), **{function: refuse}), job(tmp_path, params, overwrite=True))
    assert everything(tmp_path) == before


def test_what_was_made_stays_when_an_overwriting_stage_is_interrupted(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams()))
    stages.fail_at = "w1"
    with pytest.raises(KeyboardInterrupt):
        run_stage(stages.upper, job(tmp_path, UpperParams(repeat=2), overwrite=True))
    assert {path.name for path in (tmp_path / "upper" / "upper").iterdir()} == {"w0.txt"}
    assert RunFolder(tmp_path).read(UPPER, "w0") == "ONEONE"
    assert not (tmp_path / "upper" / ASIDE_NAME).exists()


def test_a_kill_before_the_first_new_result_brings_the_old_ones_back(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams()))
    set_aside(tmp_path / "upper", LOCK_NAME)
    assert not RunFolder(tmp_path).has(UPPER, "w0")
    assert RunFolder(tmp_path).folders() == ["count"]
    assert run_stage(stages.upper, job(tmp_path, UpperParams())).counts["kept"] == 3


def test_other_parameters_are_refused_with_both_ways_out(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams()))
    with pytest.raises(ArtifactError) as caught:
        run_stage(stages.upper, job(tmp_path, UpperParams(repeat=2, scales=(1.0,))))
    message = str(caught.value)
    for part in ("repeat was 1, is now 2", "scales was [1.0, 0.5], is now [1.0]", "--run-dir", "--overwrite"):
        assert part in message
    assert str(tmp_path / "upper") in message
    assert RunFolder(tmp_path).read(UPPER, "w0") == "ONE"


def test_other_results_upstream_are_refused(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams()))
    run_stage(stages.count, job(tmp_path, CountParams(start=5), overwrite=True))
    with pytest.raises(ArtifactError, match="results of count that it reads were made again"):
        run_stage(stages.upper, job(tmp_path, UpperParams()))


def test_execution_settings_change_no_fingerprint(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams()))
    record = run_stage(stages.upper, job(tmp_path, UpperParams(), workers=3, precision="float32"))
    assert record.counts["kept"] == 3


def test_a_map_stage_takes_more_pictures_later(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams(), "one two"))
    record = run_stage(stages.upper, job(tmp_path, UpperParams(), "one two three four"))
    assert record.counts == {"images": 2, "kept": 2, "skipped": 0}


def test_skipped_items_are_counted_and_named(
    tmp_path: Path, stages: Stages, caplog: pytest.LogCaptureFixture
) -> None:
    record = run_stage(stages.upper, job(tmp_path, UpperParams(), "one 2 three"))
    assert record.counts == {"images": 2, "kept": 0, "skipped": 1}
    assert not RunFolder(tmp_path).has(UPPER, "w1")
    assert "w1: skipped: 2 is no word" in caplog.text


def test_nothing_but_skipped_items_is_an_error(tmp_path: Path, stages: Stages) -> None:
    with pytest.raises(DataError, match="every one of the 2 images was skipped"):
        run_stage(stages.upper, job(tmp_path, UpperParams(), "1 2"))


def test_a_finished_fit_is_not_repeated(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.count, job(tmp_path, CountParams()))
    assert stages.fits == 1
    run_stage(stages.count, job(tmp_path, CountParams(), overwrite=True))
    assert stages.fits == 2
    assert RunFolder(tmp_path).read(TOTAL) == "3"


def test_a_fit_depends_on_its_pictures_and_the_seed(tmp_path: Path, stages: Stages) -> None:
    for other, told in (
        (job(tmp_path, CountParams(), "one two"), "the list of images changed"),
        (job(tmp_path, CountParams(), seed=1), "seed was 0, is now 1"),
    ):
        with pytest.raises(ArtifactError, match=told):
            run_stage(stages.count, other)


def test_missing_upstream_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="reads the total of stage count, which is not there; run stage"):
        run_stage(Stages().upper, job(tmp_path, UpperParams()))
    assert list(tmp_path.iterdir()) == []


def test_a_reduce_stage_is_done_anew_every_time(tmp_path: Path, stages: Stages) -> None:
    run_stage(stages.upper, job(tmp_path, UpperParams()))
    run_stage(stages.report, job(tmp_path, CountParams()))
    RunFolder(tmp_path).write(UPPER, "changed", "w0")
    run_stage(stages.report, job(tmp_path, CountParams(start=1)))
    assert RunFolder(tmp_path).read(REPORT) == "changed TWO THREE"


def test_variants_lie_side_by_side(tmp_path: Path) -> None:
    made: list[int] = []

    def fit(work: Job[CountParams, Words]) -> int:
        made.append(work.params.start)
        work.run.write(replace(TOTAL, stage=f"count/from-{work.params.start}"), "3")
        return 3

    varied = replace(Stages().count, variant=lambda params: f"from-{params.start}", fit=fit)
    for start in (1, 2):
        run_stage(varied, job(tmp_path, CountParams(start=start)))
    for start in (1, 2):
        record = RunFolder(tmp_path).record(f"count/from-{start}")
        assert record is not None
        assert record.params == {"start": start}
        assert record.complete
    run_stage(varied, job(tmp_path, CountParams(start=1)))
    assert made == [1, 2]


def test_parameters_may_make_a_read_needless(tmp_path: Path) -> None:
    made = replace(Stages().upper, unread=lambda params: (TOTAL,) if params.loud else ())
    with pytest.raises(ArtifactError, match="run stage count"):
        run_stage(made, job(tmp_path, UpperParams()))
    assert list(tmp_path.iterdir()) == []
    assert run_stage(made, job(tmp_path, UpperParams(loud=True))).reads == {}


def test_common_problems_and_formats_are_told_once(
    tmp_path: Path, stages: Stages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "irn_pipeline")
    produced = [
        Produced("w0", ("A",), file_format="old"),
        Produced("w1", problem="no file a", common=True),
        Produced("w2", problem="no file b", common=True),
        Produced("w3", problem="damaged", file_format="old"),
        Produced("w4", ("B",), file_format="new"),
        Produced("w5", ("C",), file_format="new"),
        Produced("w6", ("D",)),
    ]
    upper = replace(stages.upper, run=lambda job, pending: iter(produced))
    record = run_stage(upper, job(tmp_path, UpperParams(), "a b c d e f g"))
    assert record.counts == {"images": 4, "kept": 0, "skipped": 3}
    lines = [entry.getMessage() for entry in caplog.records]
    assert [line for line in lines if "skipped:" in line] == ["w3: skipped: damaged"]
    assert [line for line in lines if "no file" in line] == [
        "upper: 2 images skipped, the first is w1: no file a"
    ]
    assert [line for line in lines if "files" in line] == ["upper: 2 files: new, 1 files: old"]


def test_the_state_of_a_training_goes_after_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, resume = Stages(), tmp_path / "count" / "resume.pt"
    seen: list[tuple[bool, bool]] = []
    write = RunFolder.write_record

    def watched(run: RunFolder, record: StageRecord) -> None:
        write(run, record)
        if not record.complete:
            resume.write_bytes(b"state")
        seen.append((record.complete, resume.is_file()))

    monkeypatch.setattr(RunFolder, "write_record", watched)
    run_stage(stages.count, job(tmp_path, CountParams()))
    assert seen == [(False, True), (True, True)]
    assert not resume.exists()
    resume.write_bytes(b"state")  # killed between the record and the removal
    run_stage(stages.count, job(tmp_path, CountParams()))
    assert stages.fits == 1
    assert not resume.exists()
