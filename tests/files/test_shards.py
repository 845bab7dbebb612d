"""Shards are tar files that any program reads, and hold what their index says, whatever a kill has left behind."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.regular import regular_bytes
from irn_pipeline.files.shards import ShardWriter, mend_shards, read_shards

LONG = f"{'folder/' * 30}犬.png"
CONTENTS = {"a.png": b"one", "b/c.png": bytes(range(256)) * 5, LONG: b"x" * 512, "line\nbreak.png": b"!"}


def written(folder: Path, contents: dict[str, bytes], limit: int = 1 << 20, series: int = 0) -> None:
    writer = ShardWriter(folder, series, limit)
    for name, content in contents.items():
        writer.add(name, content)
    writer.close()


def contents_of(folder: Path) -> dict[str, bytes]:
    return {name: regular_bytes(member) for name, member in read_shards(folder).items()}


def unpacked(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None and member.name not in found
                found[member.name] = stream.read()
    return found


@pytest.mark.parametrize("limit", [1, 2000, 1 << 20])
def test_what_was_added_is_in_the_shards(tmp_path: Path, limit: int) -> None:
    written(tmp_path, CONTENTS, limit)
    assert contents_of(tmp_path) == unpacked(tmp_path) == CONTENTS
    assert len(list(tmp_path.glob("*.tar"))) == {1: 4, 2000: 3, 1 << 20: 1}[limit]


def test_a_shard_is_a_whole_tar_file_after_every_addition(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 0)
    for count, (name, content) in enumerate(CONTENTS.items(), start=1):
        writer.add(name, content)
        assert list(unpacked(tmp_path).values()) == list(CONTENTS.values())[:count]
    assert len(read_shards(tmp_path)) < len(CONTENTS)
    writer.close()
    assert len(read_shards(tmp_path)) == len(CONTENTS)


def test_a_later_writer_goes_on_with_the_last_shard_of_its_series(tmp_path: Path) -> None:
    written(tmp_path, {"a": b"1"})
    written(tmp_path, {"b": b"2"})
    written(tmp_path, {"c": b"3"}, series=1)
    written(tmp_path, {"d": b"4"}, limit=1)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [
        "0000-000000.tar",
        "0000-000001.tar",
        "0001-000000.tar",
    ]
    assert contents_of(tmp_path) == unpacked(tmp_path) == {"a": b"1", "b": b"2", "c": b"3", "d": b"4"}


@pytest.mark.parametrize("cut", [1, 100, 512, 1000, 1600])
def test_what_a_kill_has_left_half_written_is_cut_off(tmp_path: Path, cut: int) -> None:
    written(tmp_path, {"a": b"1" * 600, "b": b"2" * 600})
    shard, index = tmp_path / "0000-000000.tar", tmp_path / "0000-000000.jsonl"
    whole, lines = shard.read_bytes(), index.read_bytes()
    # Killed within the second file, or behind it: its name is not yet in the index, or a part of its line is.
    shard.write_bytes(whole[: 2 * 512 + 512 + cut])
    index.write_bytes(lines[: lines.index(b"\n") + 1 + cut % 7])
    mend_shards(tmp_path)
    assert contents_of(tmp_path) == unpacked(tmp_path) == {"a": b"1" * 600}
    written(tmp_path, {"b": b"2" * 600})
    assert (shard.read_bytes()[-1024:], len(shard.read_bytes())) == (bytes(1024), len(whole))
    assert contents_of(tmp_path) == unpacked(tmp_path) == {"a": b"1" * 600, "b": b"2" * 600}


@pytest.mark.parametrize("cut", [0, 1024, 1025, 1700])
def test_an_index_that_is_lost_is_made_again_from_the_shard(tmp_path: Path, cut: int) -> None:
    written(tmp_path, {"a": b"1" * 600, "b": b"2" * 600})
    shard = tmp_path / "0000-000000.tar"
    shard.with_suffix(".jsonl").unlink()
    whole = {"a": b"1" * 600, **({"b": b"2" * 600} if cut < 1500 else {})}
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size - cut])
    assert contents_of(tmp_path) == whole
    mend_shards(tmp_path)
    assert shard.with_suffix(".jsonl").is_file()
    assert contents_of(tmp_path) == unpacked(tmp_path) == whole


@pytest.mark.parametrize(
    "text", ["x\n", "[1, 2]\n", '["a", 0, -1]\n', '["a", true, 1]\n', '[["a"], 0, 1]\n', "[" * 10_000 + "\n"]
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    written(tmp_path, {"a": b"1"})
    index = tmp_path / "0000-000000.jsonl"
    index.write_text(text)
    for look in (read_shards, mend_shards):
        with pytest.raises(ArtifactError, match=r"000000\.jsonl: damaged .*delete it"):
            look(tmp_path)


def test_an_index_that_tells_of_more_than_there_is_reads_nothing(tmp_path: Path) -> None:
    written(tmp_path, {"a": b"1"})
    (tmp_path / "0000-000000.jsonl").write_text(json.dumps(["a", 512, 10**15]) + "\n")
    with pytest.raises(OSError, match="cut off"):
        regular_bytes(read_shards(tmp_path)["a"])


def test_an_index_beyond_the_end_of_its_shard_is_cut(tmp_path: Path) -> None:
    written(tmp_path, {"a": b"1", "b": b"2"})
    shard, index = tmp_path / "0000-000000.tar", tmp_path / "0000-000000.jsonl"
    with index.open("a") as lines:
        lines.write(json.dumps(["c", 10**15, 5]) + "\n")
    mend_shards(tmp_path)
    assert contents_of(tmp_path) == unpacked(tmp_path) == {"a": b"1", "b": b"2"}
    assert shard.stat().st_size < 10_000


@pytest.mark.parametrize("ending", ["tar", "jsonl"])
def test_nothing_is_written_through_a_link(tmp_path: Path, ending: str) -> None:
    written(tmp_path / "shards", {"a": b"1"})
    linked, target = tmp_path / "shards" / f"0000-000000.{ending}", tmp_path / "elsewhere"
    linked.rename(target)
    linked.symlink_to(target)
    before = target.read_bytes()
    with pytest.raises(ArtifactError, match="is a link"):
        ShardWriter(tmp_path / "shards", 0).add("b", b"2")
    with pytest.raises(ArtifactError, match="is a link"):
        mend_shards(tmp_path / "shards")
    assert target.read_bytes() == before


def test_shards_with_other_names_are_read_and_passed_over(tmp_path: Path) -> None:
    written(tmp_path, {"a": b"1"})
    for path in tmp_path.iterdir():
        path.rename(path.with_stem("0000-mine"))
    written(tmp_path, {"b": b"2"})
    assert contents_of(tmp_path) == {"a": b"1", "b": b"2"}
    assert (tmp_path / "0000-000000.tar").is_file()


def test_a_write_that_the_system_refuses_leaves_what_is_there(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shards", 0)
    writer.add("a", b"1")
    writer.close()
    (tmp_path / "shards" / "0000-000000.tar").rename(tmp_path / "kept.tar")
    (tmp_path / "shards" / "0000-000000.tar").mkdir()
    with pytest.raises((ArtifactError, IsADirectoryError)):
        ShardWriter(tmp_path / "shards", 0).add("b", b"2")
    with tarfile.open(tmp_path / "kept.tar") as archive:
        assert archive.getnames() == ["a"]
