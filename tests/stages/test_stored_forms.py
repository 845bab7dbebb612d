"""How results are stored changes nothing about them: with and without full-size maps, in files and in shards."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from irn_pipeline import read_labels
from irn_pipeline.artifacts import (
    CAM,
    CAM_NETWORK,
    INSTANCE_LABEL,
    IR_LABEL,
    IRN_NETWORK,
    SEMANTIC_LABEL,
    WALKED_SCORES,
    Checkpoint,
)
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.files.regular import Member, regular_bytes
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.stages.catalogue import main, stage_main


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored") / "voc"
    generate_demo(root, num_images=5, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> DataSet:
    return load_source(Source(voc_root=str(root)))


@pytest.fixture(scope="module")
def classifier(data: DataSet) -> Checkpoint:
    torch.manual_seed(0)
    network = CamNetwork(num_classes=len(data.identity), backbone="resnet18")
    return Checkpoint("cam", "resnet18", data.identity, network.state_dict())


def begun(folder: Path, classifier: Checkpoint) -> RunFolder:
    run = RunFolder(folder)
    run.write(CAM_NETWORK, classifier)
    run.write_record(StageRecord("train_cam", "0", {}, {}, True, {}, 0.0, {}))
    return run


def flags(run: RunFolder, root: Path) -> list[str]:
    words = ["--voc-root", str(root), "--run-dir", str(run.root), "--plan", "published"]
    return [*words, "--device", "cpu", "--workers", "1", "--quiet"]


@pytest.mark.parametrize(
    "seeds", [[], ["--seeds", "pixels", "--pixel-side", "64"], ["--feature-affinity", "2"]]
)
def test_labels_are_equal_without_full_size_maps(
    tmp_path: Path, root: Path, data: DataSet, classifier: Checkpoint, seeds: list[str]
) -> None:
    runs = [begun(tmp_path / name, classifier) for name in ("compact", "full")]
    for run, extra in zip(runs, ([], ["--keep-high-res"]), strict=True):
        assert stage_main("make_cam", [*flags(run, root), *seeds, *extra]) == 0
        assert stage_main("mine_relations", flags(run, root)) == 0
    for record in data.items:
        compact, full = (np.load(run.path(CAM, record.image_id), allow_pickle=True).item() for run in runs)
        assert "high_res" not in compact
        assert list(full) == ["keys", "cam", "high_res"]
        mine = runs[0].read(CAM, record.image_id)
        assert np.array_equal(mine.high_res_cam, full["high_res"]) and mine.high_res_cam.std() > 0
        assert np.array_equal(compact["cam"], full["cam"])
        labels = [run.path(IR_LABEL, record.image_id).read_bytes() for run in runs]
        assert labels[0] == labels[1]
    sizes = [sum(path.stat().st_size for path in run.root.glob("make_cam/cam/*")) for run in runs]
    assert sizes[0] < sizes[1] / 3


def test_full_size_maps_may_be_asked_for_later(
    tmp_path: Path, root: Path, data: DataSet, classifier: Checkpoint
) -> None:
    run, (first, second, *_) = begun(tmp_path / "run", classifier), (one.image_id for one in data.items)
    assert stage_main("make_cam", flags(run, root)) == 0
    kept = run.path(CAM, first).read_bytes()
    run.path(CAM, second).unlink()
    assert stage_main("make_cam", [*flags(run, root), "--keep-high-res"]) == 0
    assert run.path(CAM, first).read_bytes() == kept
    assert "high_res" in np.load(run.path(CAM, second), allow_pickle=True).item()


def trained(folder: Path, data: DataSet, classifier: Checkpoint) -> RunFolder:
    """A run folder with both networks, untrained."""
    run = begun(folder, classifier)
    torch.manual_seed(1)
    run.write(IRN_NETWORK, Checkpoint("irn", "resnet18", (), IrnNetwork(backbone="resnet18").state_dict()))
    run.write_record(StageRecord("train_irn", "0", {}, {}, True, {}, 0.0, {}))
    return run


WORK = {"make_cam": ["--scales", "1"], "mine_relations": [], "synthesize_labels": ["--keep-scores"]}
ARTIFACTS = (CAM, IR_LABEL, INSTANCE_LABEL, SEMANTIC_LABEL, WALKED_SCORES)


def content(run: RunFolder) -> dict[str, bytes]:
    """The bytes of every artifact of a picture, by artifact and picture."""
    return {
        f"{artifact.name}/{image_id}": regular_bytes(run.place(artifact, image_id))
        for artifact in ARTIFACTS
        for image_id in run.image_ids(artifact)
    }


def status_of(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert main(["status", "--run-dir", str(run.root)]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().err.splitlines()]
    return {words[0]: " ".join(words[1:]) for words in lines if len(words) == 3}


def test_shards_hold_what_the_files_would(
    tmp_path: Path, root: Path, data: DataSet, classifier: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [trained(tmp_path / layout, data, classifier) for layout in ("files", "shards")]
    for run in runs:
        for stage, extra in WORK.items():
            assert stage_main(stage, [*flags(run, root), *extra, "--store", run.root.name]) == 0
        assert main(["export_labels", *flags(run, root)]) == 0
    files, shards = (content(RunFolder(run.root)) for run in runs)
    assert files == shards
    assert len(files) == len(ARTIFACTS) * len(data.items)
    for artifact in ARTIFACTS:
        folder = runs[1].stage_dir(artifact.stage) / artifact.name
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        assert names == ["shards/0000-000000.jsonl", "shards/0000-000000.tar"]
        with tarfile.open(folder / names[1]) as archive:
            assert sorted(archive.getnames()) == sorted(
                f"{one.image_id}{artifact.suffix}" for one in data.items
            )
    exported = [(run.root / "export_labels" / "coco" / "instances.json").read_bytes() for run in runs]
    assert exported[0] == exported[1]
    assert read_labels(runs[1].root, data.items[0].image_id)[0].any()
    found = [status_of(run, capsys) for run in runs]
    for stage in WORK:
        assert all("done 5 images" in status[stage] for status in found)


def test_labels_are_made_again_from_scores_in_shards(
    tmp_path: Path, root: Path, data: DataSet, classifier: Checkpoint
) -> None:
    runs = [trained(tmp_path / layout, data, classifier) for layout in ("files", "shards")]
    for run in runs:
        words = [*flags(run, root), "--store", run.root.name]
        for stage, extra in WORK.items():
            assert stage_main(stage, [*words, *extra]) == 0
        first = content(RunFolder(run.root))
        again = ["--from-scores", "--semantic-bg-threshold", "0.9", "--overwrite"]
        assert stage_main("synthesize_labels", [*words, *again]) == 0
        second = content(RunFolder(run.root))
        assert first.keys() == second.keys()
        changed = {name.split("/")[0] for name in first if first[name] != second[name]}
        assert changed == {"instance_label", "semantic_label"}
    assert content(RunFolder(runs[0].root)) == content(RunFolder(runs[1].root))


def test_a_run_goes_on_in_the_other_layout(
    tmp_path: Path, root: Path, data: DataSet, classifier: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = trained(tmp_path / "run", data, classifier), trained(tmp_path / "whole", data, classifier)
    few = tmp_path / "few.txt"
    few.write_text("\n".join(record.image_id for record in data.items[:2]))
    cam = [*WORK["make_cam"], "--store", "shards"]
    assert stage_main("make_cam", [*flags(run, root), *cam, "--image-list", str(few)]) == 0
    assert stage_main("make_cam", [*flags(run, root), *WORK["make_cam"]]) == 0
    assert len(list(run.root.glob("make_cam/cam/*.npy"))) == len(data.items) - 2
    assert stage_main("make_cam", [*flags(whole, root), *cam]) == 0
    assert content(RunFolder(run.root)) == content(RunFolder(whole.root))
    assert "done 5 images" in status_of(run, capsys)["make_cam"]
    # The pictures of a shard that is removed are made again.
    for path in (run.root / "make_cam" / "cam" / "shards").iterdir():
        path.unlink()
    assert "partial 3 of 5" in status_of(run, capsys)["make_cam"]
    assert stage_main("make_cam", [*flags(run, root), *cam]) == 0
    assert content(RunFolder(run.root)) == content(RunFolder(whole.root))


def test_a_damaged_file_in_a_shard_is_named_and_skipped(
    tmp_path: Path, root: Path, data: DataSet, classifier: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", data, classifier)
    assert stage_main("make_cam", [*flags(run, root), *WORK["make_cam"], "--store", "shards"]) == 0
    member = RunFolder(run.root).place(CAM, data.items[1].image_id)
    assert isinstance(member, Member)
    with member.shard.open("r+b") as stream:
        stream.seek(member.offset)
        stream.write(bytes(member.size))
    assert stage_main("mine_relations", [*flags(run, root), "--store", "shards"]) == 0
    assert f"{member.shard} ({data.items[1].image_id}.npy)" in capsys.readouterr().err
    assert len(RunFolder(run.root).image_ids(IR_LABEL)) == len(data.items) - 1


def test_a_killed_run_goes_on_and_ends_with_the_same_results(
    tmp_path: Path, root: Path, data: DataSet, classifier: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL while a file is half in the shard; then the rest, by a process that knows nothing of it."""
    run, whole = trained(tmp_path / "run", data, classifier), trained(tmp_path / "whole", data, classifier)
    words = [*WORK["make_cam"], "--store", "shards"]
    program = (
        "import os, signal, sys\n"
        "from irn_pipeline.files import shards\n"
        "from irn_pipeline.stages.catalogue import stage_main\n"
        "shards._COMMIT_SECONDS, whole = 0, shards.ShardWriter.add\n"
        "def add(self, name, content):\n"
        "    whole(self, name, content)\n"
        f"    if name == {data.items[2].image_id + '.npy'!r}:\n"
        "        self._stream.truncate(self._end - len(content) // 2)\n"
        "        index = shards._index(self._shard)\n"
        "        os.truncate(index, index.stat().st_size - 3)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "shards.ShardWriter.add = add\n"
        f"stage_main('make_cam', {[*flags(run, root), *words]!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "partial 2 of 5" in status_of(run, capsys)["make_cam"]
    assert stage_main("make_cam", [*flags(run, root), *words]) == 0
    assert stage_main("make_cam", [*flags(whole, root), *words]) == 0
    assert content(RunFolder(run.root)) == content(RunFolder(whole.root))
    with tarfile.open(run.root / "make_cam" / "cam" / "shards" / "0000-000000.tar") as archive:
        assert archive.getnames() == [f"{record.image_id}.npy" for record in data.items]
    assert "done 5 images" in status_of(run, capsys)["make_cam"]
