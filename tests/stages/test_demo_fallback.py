"""Without a data set and a run folder, the demo set is made and worked on; nobody's own run folder is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.stages import catalogue
from irn_pipeline.stages.catalogue import DEMO_ROOT, DEMO_RUN, main

# Settings that make the first stage a matter of seconds; flags win over the demo's configuration.
QUICK = ["--train_cam.epochs", "1", "--train_cam.crop", "64", "--train_cam.long_side", "64", "80", "--quiet"]
QUICK += ["--device", "cpu", "--workers", "1"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(generate_demo, num_images=4, num_heldout=2, min_size=(64, 80), max_size=(80, 96))
    monkeypatch.setattr(catalogue, "generate_demo", small)
    monkeypatch.chdir(tmp_path)


def test_nothing_named_means_the_demo() -> None:
    assert main(["run", "1", *QUICK]) == 0
    record = RunFolder(DEMO_RUN).record("train_cam")
    assert record is not None
    assert record.complete
    assert record.data == str(DEMO_ROOT)
    # The demo's configuration counts, but for the flags.
    assert (record.params["backbone"], record.params["optimizer"], record.params["crop"]) == (
        "efficientnet_lite0",
        "adamw",
        64,
    )
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["data", "runs"]


def test_a_whole_demo_set_is_kept_and_half_of_one_is_made_again() -> None:
    catalogue._make_demo_set()
    kept = DEMO_ROOT / "JPEGImages" / "train_0000.jpg"
    time = kept.stat().st_mtime_ns
    catalogue._make_demo_set()
    assert kept.stat().st_mtime_ns == time
    kept.unlink()
    (DEMO_ROOT / "ImageSets" / "Segmentation" / "val.txt").unlink()  # written last
    catalogue._make_demo_set()
    assert kept.is_file()


@pytest.mark.parametrize("flag", ["--run-dir", "--run_dir"])
@pytest.mark.parametrize("named", [str(DEMO_RUN), "./runs/../runs/demo/"])
def test_the_demos_run_folder_may_be_named(flag: str, named: str) -> None:
    assert main(["run", "1", flag, named, *QUICK]) == 0
    assert RunFolder(DEMO_RUN).has(catalogue.PIPELINE.stages[0].writes[0])


@pytest.mark.parametrize(
    "words", [["--run-dir", "runs/mine"], ["--run-dir=runs/mine"], ["--run_dir", "runs/mine"]]
)
def test_in_another_run_folder_a_forgotten_data_set_is_an_error(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "1", *words, *QUICK]) == 1
    assert "no data set: give --voc-root DIR" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_the_demo_says_what_it_will_do_and_which_file_to_open(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[Sequence[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(catalogue.PIPELINE), "run_range", lambda self, chosen, words: done.append(words))
        assert main(["run", "--run-dir", "runs/demo"]) == 0
        plan, drawing, end = capsys.readouterr().err.splitlines()
        assert main(["run", "2", "--run-dir", "runs/demo"]) == 0
        assert main(["run", "--quiet"]) == 0
        assert capsys.readouterr().err == "", "a part of the demo, and a quiet run, announce nothing"
    assert plan.startswith("demo: draw 110 images into data/demo") and plan.endswith("Results: runs/demo")
    assert drawing == "drawing the demo set in data/demo"
    assert end == "the demo is finished; open runs/demo/report/report.html"
    assert len(done) == 3


def test_the_demo_set_of_an_earlier_version_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue._make_demo_set()
    (DEMO_ROOT / "class_names.txt").write_text("bird\ncar\n")
    assert main(["run", "1", *QUICK]) == 1
    assert "is the demo set of an earlier version" in capsys.readouterr().err
    assert not DEMO_RUN.exists()
