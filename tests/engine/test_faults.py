"""Real faults: a full disk, a read-only folder, a killed worker, no memory. One clear error, then a resume."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.faults import MemoryExhausted, WorkerDied, explained
from irn_pipeline.engine.parallel import parallel_map, prefetch
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job, Produced
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.atomic import atomic_path, remove_parts, write_fault
from tests.engine.samples import TOTAL, UPPER, CountParams, Stages, UpperParams, Word, job


@contextmanager
def small_disk(folder: Path, options: str = "size=64k") -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "irn-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        # Lazily: an error that is still looked at may hold a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _write_numpy(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.arange(size, dtype=np.uint8))


def _write_torch(path: Path, size: int) -> None:
    torch.save({"network": torch.arange(size, dtype=torch.uint8)}, path)


def _write_plain(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)


@pytest.mark.parametrize("write", [_write_plain, _write_numpy, _write_torch])
def test_a_full_disk(tmp_path: Path, write: Any) -> None:
    kind: Artifact[int] = Artifact("big", "stage", ".bin", Path.stat, write)  # type: ignore[arg-type]
    with small_disk(tmp_path / "disk") as disk:
        run = RunFolder(disk)
        run.write(kind, 3_000, "fits")
        whole = run.path(kind, "fits").read_bytes()
        for image_id in ("large", "fits"):
            with pytest.raises(
                ArtifactError, match=r"cannot be written \(No space left on device\); free some"
            ):
                run.write(kind, 200_000, image_id)
        assert run.path(kind, "fits").read_bytes() == whole
        assert [path.name for path in (disk / "stage" / "big").iterdir()] == ["fits.bin"]


def test_a_stage_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    made = Stages()
    with small_disk(tmp_path / "disk") as disk:
        run_stage(made.count, job(disk, CountParams()))
        # The texts take 9, 18 and 27 kB, and records 12 kB beside them.
        text = "abc abcdef abcdefghi"
        with pytest.raises(ArtifactError, match="No space left on device"):
            run_stage(made.upper, job(disk, UpperParams(repeat=3_000), text))
        there = [RunFolder(disk).has(UPPER, f"w{n}") for n in range(3)]
        assert there == [True, True, False]
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        record = run_stage(made.upper, job(disk, UpperParams(repeat=3_000), text))
        assert record.counts == {"images": 1, "kept": 2, "skipped": 0}
        assert RunFolder(disk).read(UPPER, "w2") == "ABCDEFGHI" * 3_000


def test_a_read_only_run_folder(tmp_path: Path) -> None:
    made = Stages()
    with small_disk(tmp_path / "disk") as disk:
        run_stage(made.count, job(disk, CountParams()))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(ArtifactError, match=r"Read-only file system.*name another --run-dir"):
            run_stage(made.upper, job(disk, UpperParams()))
        assert RunFolder(disk).read(TOTAL) == "3"
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert run_stage(made.upper, job(disk, UpperParams())).counts["images"] == 3


def test_the_limit_on_file_sizes(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with (
            pytest.raises(ArtifactError, match=r"File too large.*ulimit -f"),
            atomic_path(tmp_path / "a.txt") as path,
        ):
            path.write_bytes(b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "upper").write_text("not a folder")
    with pytest.raises(ArtifactError, match="upper"):
        run_stage(replace(Stages().upper, reads=()), job(tmp_path, UpperParams()))


def test_errors_of_other_files_and_of_programs_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "other"))
    with pytest.raises(RuntimeError, match="a bug"), atomic_path(tmp_path / "a"):
        raise RuntimeError("a bug")
    assert write_fault(tmp_path, ValueError("x")) is None
    assert explained(RuntimeError("a bug"), "upper", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_cannot_be_read(tmp_path: Path) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    RunFolder(tmp_path).write(TOTAL, "1")
    with pytest.raises(ArtifactError, match=r"total.txt: cannot be read \(Permission denied\)"):
        RunFolder(tmp_path).read(replace(TOTAL, read=refuse))


def test_what_a_killed_process_left_is_removed_and_never_read(tmp_path: Path) -> None:
    made = Stages()
    run_stage(made.count, job(tmp_path, CountParams()))
    made.fail_at = "w1"
    with pytest.raises(KeyboardInterrupt):
        run_stage(made.upper, job(tmp_path, UpperParams()))
    half = tmp_path / "upper" / "upper" / ".part-abc.txt"
    half.write_text("HA")
    made.fail_at = None
    run_stage(made.upper, job(tmp_path, UpperParams()))
    assert not half.exists()
    assert remove_parts(tmp_path) == 0
    assert sorted(p.name for p in half.parent.iterdir()) == ["w0.txt", "w1.txt", "w2.txt"]


@dataclass(frozen=True)
class Dies:
    """Ends its process at one item, unless the file is there."""

    spared: Path

    def __call__(self, word: Word) -> Produced:
        if word.image_id == "w3" and not self.spared.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return Produced(word.image_id, (word.text.upper(),))


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    made = Stages()
    run_stage(made.count, job(tmp_path, CountParams(), text="a b c d e f"))

    def work(job: Job[Any, Any], pending: Sequence[Word]) -> Iterator[Produced]:
        return parallel_map(Dies(tmp_path / "spared"), pending, Execution(workers=2))

    upper = replace(made.upper, run=work)
    with pytest.raises(WorkerDied, match=r"of 6 images done.*--workers 1"):
        run_stage(upper, job(tmp_path, UpperParams(), "a b c d e f"))
    (tmp_path / "spared").touch()
    record = run_stage(upper, job(tmp_path, UpperParams(), "a b c d e f"))
    assert record.counts["images"] + record.counts["kept"] == 6
    assert [RunFolder(tmp_path).read(UPPER, f"w{n}") for n in range(6)] == list("ABCDEF")


class Dying(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_loader_process_that_is_killed(tmp_path: Path) -> None:
    def fit(job: Job[Any, Any]) -> int:
        return len(list(torch.utils.data.DataLoader(Dying(), num_workers=1)))

    with pytest.raises(WorkerDied, match=r"count: a worker process was killed.*--workers 1"):
        run_stage(replace(Stages().count, fit=fit), job(tmp_path, CountParams()))


MEMORY = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.parallel import parallel_map, prefetch
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Produced
from tests.engine.samples import CountParams, Stages, UpperParams, job

def work(word):
    if word.text == "huge":
        np.ones(1 << 32, np.uint8)
    return Produced(word.image_id, (word.text.upper(),))

def direct(job, pending):
    for word in pending:
        yield work(word)

folder, way = Path(sys.argv[1]), sys.argv[2]
ways = {
    "direct": direct,
    "threads": lambda job, pending: prefetch(work, pending, 1),
    "mapped": lambda job, pending: parallel_map(work, pending, Execution(workers=1)),
}
made = Stages()
text = "one huge three four"
run_stage(made.count, job(folder, CountParams(), text))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
record = run_stage(replace(made.upper, run=ways[way]), job(folder, UpperParams(), text))
sys.stdout.write(repr(record.counts))
"""


@pytest.mark.parametrize("way", ["direct", "threads"])
def test_a_picture_without_memory_is_skipped_with_a_reason(tmp_path: Path, way: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), way],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "{'images': 3, 'kept': 0, 'skipped': 1}"
    assert "w1: skipped: not enough memory" in result.stderr
    assert [RunFolder(tmp_path).has(UPPER, f"w{n}") for n in range(4)] == [True, False, True, True]


def _no_memory(word: Word) -> Produced:
    raise MemoryError("8 GB")


def test_a_lack_of_memory_names_its_item() -> None:
    for results in (
        parallel_map(_no_memory, [Word("w0", "a")], Execution(workers=1)),
        prefetch(_no_memory, [Word("w0", "a")], 1),
    ):
        with pytest.raises(MemoryExhausted, match="8 GB") as caught:
            list(results)
        assert caught.value.image_id == "w0"


def test_memory_that_lacks_for_all_is_an_error_not_a_list_of_skips(tmp_path: Path) -> None:
    def work(job: Job[Any, Any], pending: Sequence[Word]) -> Iterator[Produced]:
        yield from parallel_map(_no_memory, pending, Execution(workers=1))

    upper = replace(Stages().upper, reads=(), run=work)
    with pytest.raises(MemoryExhausted):
        run_stage(upper, job(tmp_path, UpperParams(), "a b c d e f"))


def test_training_without_memory_names_what_to_lower(tmp_path: Path) -> None:
    def fit(job: Job[Any, Any]) -> int:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(MemoryExhausted, match=r"count: out of memory.*smaller batches"):
        run_stage(replace(Stages().count, fit=fit), job(tmp_path, CountParams()))
