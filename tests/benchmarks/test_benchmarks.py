"""The small form of every benchmark gives equal results; nothing here is timed."""

import json

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import irn_shares, segmenter_speed
from benchmarks.case import Benchmark, Case, Disagreement, Method, Prepared
from benchmarks.child import measure
from benchmarks.compare import Rates, run, table
from benchmarks.registry import NAMES, load
from irn_pipeline.models import MODELS


@pytest.fixture(autouse=True)
def threads_as_they_were(monkeypatch):
    # benchmarks.crf sets it when it is imported; later tests must not see that
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("name", NAMES)
def test_ours_and_the_textbook_agree_and_a_wrong_result_is_noticed(name):
    if name == "crf":
        pytest.importorskip("pydensecrf")
    benchmark = load(name)
    assert benchmark.name == name
    for case in benchmark.small:
        ours, _ = measure(benchmark.ours, case, 1)
        references = [m for m in benchmark.references if m.reaches(case)]
        assert references
        for reference in references:
            theirs, _ = measure(reference, case, 1)
            assert [a.shape for a in ours] == [b.shape for b in theirs]
            assert benchmark.agreement(ours, theirs) < 0.02
        wrong = [0.9 * array if array.dtype.kind == "f" else np.roll(array, 1, axis=-1) for array in ours]
        with pytest.raises(Disagreement):
            benchmark.agreement(wrong, ours)


def test_walks_agree_on_the_winning_map_but_for_ties():
    agreement, wanted = load("random_walk").agreement, np.array([[[1.0, 1.0]], [[0.9995, 0.5]]])
    assert agreement([wanted + 1e-6], [wanted]) == pytest.approx(1e-6)
    other = wanted.copy()
    other[1, 0, 0] = 1.0003
    with pytest.raises(Disagreement, match="wins at 1 cells"):
        agreement([other], [wanted])
    tied = np.array([[[1.0]], [[1.0 - 1e-7]]])
    assert agreement([tied[::-1]], [tied]) < 1e-6


def test_walk_that_loses_mass_fails_its_audit():
    benchmark = load("random_walk")
    prepared = benchmark.ours.prepare(benchmark.small[0])
    (walked,) = prepared.work()
    prepared.audit([walked])
    with pytest.raises(Disagreement, match="degree-weighted"):
        prepared.audit([walked * 1.01])


def made_up(cases, figures, agreement=lambda ours, theirs: 0.0):
    """A benchmark whose children answer from a table: (case, method) -> seconds."""

    def in_child(benchmark, index, number, small):
        seconds = figures[index, number]
        answer = {
            "seconds": seconds,
            "cpu_seconds": seconds,
            "peak_mib": 10 * seconds,
            "extra_mib": 2 * seconds,
        }
        return [np.array([number])], answer | {"operations": 8e9, "bytes": 6e9}

    method = Method("ours", lambda case: Prepared(list))
    textbook = Method(
        "plain", method.prepare, lambda case: case.cells < 100, lambda case: float(case.cells) ** 3
    )
    return Benchmark("made_up", "", cases, cases, method, (textbook,), agreement), in_child


def test_records_hold_ratio_floors_extrapolation_and_growth(monkeypatch):
    benchmark, in_child = made_up((Case((2, 5)), Case((10, 10))), {(0, 0): 2.0, (0, 1): 8.0, (1, 0): 20.0})
    monkeypatch.setattr("benchmarks.compare._in_child", in_child)
    first, second, growth = run(benchmark, small=True, rates=Rates(operations=4e9, bytes=2e9))
    assert first["ratio"] == 4 and first["reference_peak_mib"] == 80
    assert first["operations_floor_seconds"] == 2 and first["bytes_floor_seconds"] == 3
    # ten times the cells are 1000 times the operations
    assert second["reference_seconds_extrapolated"] == pytest.approx(8000)
    assert second["ratio_extrapolated"] == pytest.approx(400) and "ratio" not in second
    assert growth["seconds_exponent"] == pytest.approx(1) and growth["extra_mib_exponent"] == pytest.approx(1)
    assert "8e+03 (extrapolated)" in table([first, second, growth])


def test_disagreement_stops_the_run_and_names_the_case(monkeypatch, capsys):
    def differ(ours, theirs):
        raise Disagreement("too far")

    benchmark, in_child = made_up((Case((2, 5)),), {(0, 0): 1.0, (0, 1): 1.0}, differ)
    monkeypatch.setattr("benchmarks.compare._in_child", in_child)
    monkeypatch.setattr(command, "load", lambda name: benchmark)
    monkeypatch.setattr(command, "_machine", lambda small: '{"float32_gflops": 1.0, "memory_gib_s": 1.0}')
    assert command.main(["--small", "--only", "centroids"]) == 1
    assert "made_up 2x5 n1 against plain: too far" in capsys.readouterr().err


def test_command_runs_children_and_writes_lines(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "_machine", lambda small: '{"float32_gflops": 1.0, "memory_gib_s": 1.0}')
    target = tmp_path / "figures.jsonl"
    assert command.main(["--small", "--only", "centroids", "--out", str(target)]) == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert lines[1]["benchmark"] == "centroids" and lines[1]["difference"] == 0
    assert lines[1]["seconds"] > 0 and lines[1]["reference_peak_mib"] > 1
    assert "300 sweeps" in capsys.readouterr().out.splitlines()[-1]


def test_the_speed_of_every_model_is_told(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["segmenter_speed", "--sizes", "64x96", "--repeats", "1", "--device", "cpu"]
    )
    segmenter_speed.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [(line["model"], line["backbone"]) for line in lines]
    assert told == [*((model, "resnet18") for model in MODELS), ("spatial_embeddings", "erfnet")]
    for line in lines:
        assert line["size"] == "64x96" and line["seconds"] > 0
        assert (line["network_seconds"] is None) == ("mask_rcnn" in line["model"])


def test_the_parts_of_a_training_step_are_told(monkeypatch, capsys):
    threads = torch.get_num_threads()
    arguments = ["irn_shares", "--networks", "resnet18", "--crop", "128", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    try:
        irn_shares.main()
    finally:
        torch.set_num_threads(threads)
    (line,) = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert line["network"] == "resnet18" and line["backbone"] > 0 and line["losses_forward"] > 0
