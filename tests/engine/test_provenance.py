"""When a stage goes on with what its folder holds, when it is refused, and what the refusal says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.provenance import stage_fingerprint
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import FitStage, Job
from irn_pipeline.engine.store import RESUME_NAME, RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError, DataError
from tests.engine.samples import TOTAL, CountParams, Stages, UpperParams, Words, job


def made_by_an_earlier_program(stage: Any, work: Job[Any, Any]) -> StageRecord:
    """Run a stage, and rewrite its record as versions without facts wrote it."""
    record = run_stage(stage, work)
    fingerprint = stage_fingerprint(stage, work, record.reads, {}, {})
    old = replace(record, facts={}, data="", fingerprint=fingerprint)
    work.run.write_record(old)
    return old


def record_of(folder: Path, stage: str) -> StageRecord:
    record = RunFolder(folder).record(stage)
    assert record is not None
    return record


def with_network(stage: Any) -> Any:
    return replace(stage, runs_network=lambda params: True)


# --- runs that made nothing ---


def failing(error: Exception, before: Any = lambda work: None) -> FitStage[CountParams]:
    def fit(work: Job[CountParams, Words]) -> int:
        before(work)
        raise error

    return replace(Stages().count, fit=fit)


def test_a_training_that_failed_at_once_does_not_block_other_parameters(tmp_path: Path) -> None:
    def one_step(work: Job[CountParams, Words]) -> None:
        (work.run.stage_dir("count") / "losses.jsonl").write_text('{"step": 1, "epoch": 0}\n')

    with pytest.raises(DataError):
        run_stage(failing(DataError("no weights"), one_step), job(tmp_path, CountParams()))
    assert not record_of(tmp_path, "count").complete
    run_stage(Stages().count, job(tmp_path, CountParams(start=5), "one two", seed=3))
    assert RunFolder(tmp_path).read(TOTAL) == "7"


def test_a_training_with_a_finished_epoch_blocks_them(tmp_path: Path) -> None:
    def one_epoch(work: Job[CountParams, Words]) -> None:
        (work.run.stage_dir("count") / RESUME_NAME).write_bytes(b"state")

    with pytest.raises(DataError):
        run_stage(failing(DataError("disk full"), one_epoch), job(tmp_path, CountParams()))
    with pytest.raises(ArtifactError, match=r"start was 0, is now 5.*--overwrite"):
        run_stage(Stages().count, job(tmp_path, CountParams(start=5)))
    assert (tmp_path / "count" / RESUME_NAME).read_bytes() == b"state"


def test_a_map_that_made_nothing_does_not_block_and_one_picture_does(tmp_path: Path) -> None:
    upper = replace(Stages().upper, reads=())
    with pytest.raises(DataError, match="every one of the 2"):
        run_stage(upper, job(tmp_path, UpperParams(), "1 2"))
    run_stage(upper, job(tmp_path, UpperParams(repeat=2), "1 two"))
    with pytest.raises(ArtifactError, match="repeat was 2, is now 3"):
        run_stage(upper, job(tmp_path, UpperParams(repeat=3), "1 two"))


def test_results_that_were_removed_are_made_again(tmp_path: Path) -> None:
    stages = Stages()
    run_stage(stages.count, job(tmp_path, CountParams()))
    RunFolder(tmp_path).path(TOTAL).unlink()
    run_stage(stages.count, job(tmp_path, CountParams(start=1)))
    assert RunFolder(tmp_path).read(TOTAL) == "4"


# --- what a refusal says ---


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "one two"}, "the list of images changed"),
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"identity": ("digits",)}, "the class names changed"),
    ],
)
def test_a_training_says_what_of_its_surroundings_changed(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    run_stage(Stages().count, job(tmp_path, CountParams()))
    identity = change.pop("identity", None)
    other = job(tmp_path, CountParams(), **change)
    if identity is not None:
        other = replace(other, data=replace(other.data, identity=identity))
    with pytest.raises(ArtifactError, match=rf"\({told}\); give another --run-dir"):
        run_stage(Stages().count, other)


@pytest.mark.parametrize(
    ("old_program", "told", "both"),
    [
        (
            False,
            "made by an earlier version of this stage",
            "earlier version of this stage.*start was 0, is now 1",
        ),
        (True, "the list of images or the version of this program changed", "start was 0, is now 1"),
    ],
)
def test_results_of_an_earlier_version_of_the_stage_are_told_and_read(
    tmp_path: Path, old_program: bool, told: str, both: str
) -> None:
    stages, work = Stages(), job(tmp_path, CountParams())
    first = made_by_an_earlier_program(stages.count, work) if old_program else run_stage(stages.count, work)
    newer = replace(stages.count, version=3)
    with pytest.raises(ArtifactError, match=rf"{told}.*--overwrite"):
        run_stage(newer, work)
    with pytest.raises(ArtifactError, match=both):
        run_stage(newer, job(tmp_path, CountParams(start=1)))
    assert run_stage(stages.upper, job(tmp_path, UpperParams())).reads == {"count": first.fingerprint}
    run_stage(newer, replace(work, execution=replace(work.execution, overwrite=True)))
    assert run_stage(newer, work).facts["version"] == "3"
    with pytest.raises(ArtifactError, match="made by a later version of this stage"):
        run_stage(stages.count, work)


def test_a_record_of_an_earlier_program_stays_valid(tmp_path: Path) -> None:
    stages = Stages()
    count = made_by_an_earlier_program(stages.count, job(tmp_path, CountParams()))
    upper = made_by_an_earlier_program(stages.upper, job(tmp_path, UpperParams(), "one two"))
    more_read = replace(stages.upper, reads=(TOTAL, replace(TOTAL, stage="later")))
    RunFolder(tmp_path).write_record(replace(count, stage="later", fingerprint="x"))
    again = run_stage(with_network(more_read), job(tmp_path, UpperParams()))
    assert again.counts == {"images": 1, "kept": 2, "skipped": 0}
    # What reads these results still sees the same ones.
    assert again.fingerprint == upper.fingerprint
    assert run_stage(stages.count, job(tmp_path, CountParams())) == count
    for other, told in (
        (job(tmp_path, CountParams(start=2)), r"\(start was 0, is now 2\)"),
        (job(tmp_path, CountParams(), seed=1), r"\(the seed, the class names, the list of images or"),
    ):
        with pytest.raises(ArtifactError, match=told):
            run_stage(stages.count, other)


@dataclass(frozen=True)
class LaterParams(CountParams):
    """The same, of a later version."""

    step: int = field(default=1, metadata={"fingerprint": "unless default"})
    """Counted by this."""


@pytest.mark.parametrize("old_program", [False, True])
def test_a_parameter_that_came_later_counts_once_it_is_set(tmp_path: Path, old_program: bool) -> None:
    stages, work = Stages(), job(tmp_path, CountParams())
    if old_program:
        made_by_an_earlier_program(stages.count, work)
    else:
        run_stage(stages.count, work)
    later = replace(stages.count, params=LaterParams)
    run_stage(later, job(tmp_path, LaterParams()))
    assert stages.fits == 1
    with pytest.raises(ArtifactError, match="step was 1, is now 2"):
        run_stage(later, job(tmp_path, LaterParams(step=2)))


@dataclass(frozen=True)
class BetterParams(CountParams):
    """The same, of a version that has another default than what was done before."""

    step: int | None = field(default=None, metadata={"fingerprint": "unless default", "before": 1})
    """Counted by this."""


@pytest.mark.parametrize("old_program", [False, True])
def test_results_of_the_time_before_a_better_default_go_on_with_the_value_of_then(
    tmp_path: Path, old_program: bool
) -> None:
    stages, work = Stages(), job(tmp_path, CountParams())
    if old_program:
        made_by_an_earlier_program(stages.count, work)
    else:
        run_stage(stages.count, work)
    later = replace(stages.count, params=BetterParams)
    with pytest.raises(
        ArtifactError,
        match=r"step was 1, is now None: --step 1 goes on with them\); give another --run-dir, or --overwrite",
    ):
        run_stage(later, job(tmp_path, BetterParams()))
    then = run_stage(later, job(tmp_path, BetterParams(step=1)))
    assert stages.fits == 1
    # The stages after it see that results of the new default are others.
    elsewhere = run_stage(later, job(tmp_path / "other", BetterParams()))
    assert elsewhere.fingerprint != then.fingerprint


# --- precision ---


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that says whether the machine has bf16."""

    def has_bf16(answer: bool) -> None:
        monkeypatch.setattr("irn_pipeline.engine.execution.has_fast_bf16", lambda device: answer)

    return has_bf16


def test_the_effective_precision_is_recorded_where_networks_run(tmp_path: Path, machine: Any) -> None:
    machine(True)
    for stage, expected in ((Stages().count, None), (with_network(Stages().count), "bf16")):
        record = run_stage(stage, job(tmp_path, CountParams(), overwrite=True))
        assert record.facts.get("precision") == expected
    machine(False)
    record = run_stage(with_network(Stages().count), job(tmp_path, CountParams(), overwrite=True))
    assert record.facts["precision"] == "float32"


def test_a_stage_begun_in_one_precision_goes_on_in_no_other(tmp_path: Path, machine: Any) -> None:
    upper = with_network(replace(Stages().upper, reads=()))
    machine(True)
    run_stage(upper, job(tmp_path, UpperParams(), "one"))
    machine(False)
    with pytest.raises(
        ArtifactError, match=r"precision was bf16, is now float32\); give --precision bf16 to"
    ):
        run_stage(upper, job(tmp_path, UpperParams(), "one two"))
    record = run_stage(upper, job(tmp_path, UpperParams(), "one two", precision="bf16"))
    assert (record.counts["images"], record.facts["precision"]) == (1, "bf16")


def test_what_is_finished_may_be_looked_at_on_any_machine(tmp_path: Path, machine: Any) -> None:
    stages = Stages()
    count, upper = with_network(stages.count), with_network(stages.upper)
    machine(True)
    run_stage(count, job(tmp_path, CountParams()))
    run_stage(upper, job(tmp_path, UpperParams()))
    machine(False)
    assert run_stage(count, job(tmp_path, CountParams())).facts["precision"] == "bf16"
    again = run_stage(upper, job(tmp_path, UpperParams()))
    assert (again.counts["kept"], again.facts["precision"]) == (3, "bf16")
    # Who asks for another one gets it, or is told.
    for stage, params in ((count, CountParams()), (upper, UpperParams())):
        with pytest.raises(ArtifactError, match="precision was bf16, is now float32"):
            run_stage(stage, job(tmp_path, params, precision="float32"))


def test_other_precision_is_another_result(tmp_path: Path) -> None:
    count = with_network(Stages().count)
    prints = {
        run_stage(count, job(tmp_path, CountParams(), precision=name, overwrite=True)).fingerprint
        for name in ("float32", "bf16")
    }
    assert len(prints) == 2


def test_auto_is_resolved(machine: Any) -> None:
    for answer, expected in ((True, "bf16"), (False, "float32")):
        machine(answer)
        assert Execution(device="cpu").effective_precision == expected
        assert Execution(device="cpu", precision="float32").effective_precision == "float32"
        assert Execution(device="cpu", precision="bf16").effective_precision == "bf16"


def test_the_record_names_the_data_set(tmp_path: Path) -> None:
    assert run_stage(Stages().count, job(tmp_path, CountParams())).data == "letters.txt"
    nothing = replace(Stages().report, reads=(), run=lambda work: 0)
    assert run_stage(nothing, job(tmp_path, CountParams(), "")).data == ""
