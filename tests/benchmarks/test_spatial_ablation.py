"""The ablation of SpatialEmbeddings in its small form: four trainings of a few steps, each measured in two ways."""

import json

from benchmarks.spatial_ablation import main, table
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.engine.store import RunFolder


def test_four_trainings_are_measured_with_their_own_seeds_and_with_true_centres(tmp_path, capsys):
    generate_demo(tmp_path / "voc", num_images=2, num_heldout=1, min_size=(64, 64), max_size=(64, 64))
    words = [
        "--voc-root",
        str(tmp_path / "voc"),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--quiet",
    ]
    words += ["--crops", "32", "48", "--epochs", "1", "1", "--batch-size", "2"]
    main(words)
    lines = capsys.readouterr().out.splitlines()
    found = [json.loads(line) for line in lines[:4]]
    assert [(line["margin"], line["centre"]) for line in found] == [
        ("circular", "centroid"), ("circular", "learned"), ("elliptical", "centroid"), ("elliptical", "learned"),
    ]  # fmt: skip
    for line in found:
        assert all(0 <= line[key] <= 1 for key in ("ap", "ap50", "ap75", "ap_gt", "ap50_gt", "ap75_gt"))
        folder = RunFolder(tmp_path / "out" / f"{line['margin']}-{line['centre']}")
        params = folder.record("train_segmenter/spatial_embeddings-on-truth").params
        assert (params["bandwidth"], params["to_center"]) == (line["margin"], line["centre"] == "centroid")
        assert (params["crops"], params["epochs"]) == ([32, 48], [1, 1])
    assert lines[4:] == table(found).splitlines()


def test_the_table_shows_per_cent_and_what_does_not_exist():
    line = {"margin": "circular", "centre": "learned", "ap": 0.5, "ap50": None, "ap75": 0.25}
    line |= {f"{name}_gt": 1.0 for name in ("ap", "ap50", "ap75")}
    assert table([line]).splitlines()[1].split() == [
        *("circular", "learned", "50.0", "-", "25.0", "100.0", "100.0", "100.0"),
    ]
