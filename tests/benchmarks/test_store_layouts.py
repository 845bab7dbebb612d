"""The layouts of results are compared on a few pictures: all equal, and the compact ones smaller."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import store_layouts
from irn_pipeline.files.shards import ShardWriter


def test_layouts_hold_the_same_in_fewer_files_and_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store_layouts.main(["--pictures", "20", "--folder", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files, shards = [lines[0], lines[2]], [lines[1], lines[3]]
    assert [line["layout"].split(",")[0] for line in lines] == ["files", "shards"] * 2
    assert all(line["files"] == 20 * 4 for line in files)
    assert all(line["files"] == 4 * 2 for line in shards)
    assert lines[2]["bytes"] < lines[0]["bytes"] / 2
    assert all(
        line[f"{work}{cpu}"] > 0
        for line in lines
        for work in ("write", "look", "read")
        for cpu in ("", "_cpu")
    )
    assert list(tmp_path.iterdir()) == []


def test_results_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ShardWriter.add
    monkeypatch.setattr(
        ShardWriter, "add", lambda self, name, content: whole(self, name, content[:-1] + b".")
    )
    with pytest.raises(SystemExit, match="differ between files and shards"):
        store_layouts.compare(tmp_path, 10, (33, 47))


def test_generated_pictures_differ() -> None:
    first, second = (store_layouts.generated((33, 47), seed) for seed in (0, 1))
    assert first["full"].size == first["compact"].size == (33, 47)
    assert not np.array_equal(first["label"], second["label"])
