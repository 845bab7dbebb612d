"""The CRF's work on a Dask cluster of processes: what loky gives, also when one of two workers is killed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irn_pipeline.artifacts import CAM, IR_LABEL
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.engine import dask_backend
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.faults import MemoryExhausted, WorkerDied
from irn_pipeline.engine.parallel import parallel_map
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job, Produced
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ConfigError
from irn_pipeline.stages import mine_relations
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.structures import Cam
from tests.engine.cluster_work import HangsOnce, Task, dies, no_memory, tasks, upper
from tests.engine.samples import CountParams, Stages, UpperParams, Words, job

distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")
# Its handlers keep the stream that pytest has while it collects, which is closed when the tests run.
logging.getLogger("distributed").handlers.clear()
ROOT = Path(__file__).parents[2]


@dataclass
class Cluster:
    """A scheduler in this process; each worker is a process of its own, which nobody starts again."""

    scheduler: Any
    log: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def execution(self) -> Execution:
        return Execution(backend="dask", scheduler=self.scheduler.scheduler_address, quiet=True, device="cpu")

    def start(self, python_path: str = str(ROOT)) -> subprocess.Popen[bytes]:
        """One more worker."""
        words = [
            "worker",
            self.scheduler.scheduler_address,
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
        ]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *words, "--local-directory", str(self.log.parent)],
                env={**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
                cwd=self.log.parent,
                stdout=log,
                stderr=log,
            )
        self.workers.append(process)
        return process

    def with_workers(self, count: int) -> Cluster:
        """So many that live and have come."""
        living = [worker for worker in self.workers if worker.poll() is None]
        for _ in range(count - len(living)):
            self.start()
        until(lambda: len(self.scheduler.scheduler_info["workers"]) == count)
        return self


def until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with distributed.LocalCluster(
        n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as scheduler:
        made = Cluster(scheduler, tmp_path_factory.mktemp("dask") / "workers.log")
        yield made
        for worker in made.workers:
            worker.kill()
            worker.wait()


def test_work_waits_for_the_first_worker(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.start()
    with caplog.at_level("INFO"):
        found = list(parallel_map(upper, tasks(20), cluster.execution))
    assert sorted(text for text, _ in found) == sorted(f"A{number}" for number in range(20))
    assert {pid for _, pid in found} == {cluster.workers[0].pid}
    assert [record.getMessage() for record in caplog.records].count(
        "the Dask cluster has no worker now; waiting for one"
    ) == 1


@dataclass(frozen=True)
class Bench:
    """Pictures with made-up maps, in a run folder that is named as a user does: relative to where the command runs."""

    data: Any
    run_dir: Path

    def labels(self, execution: Execution) -> dict[str, bytes]:
        """The files that stage mine_relations makes."""
        run = RunFolder(Path(os.path.relpath(self.run_dir)))
        params = mine_relations.Params(crf_iterations=2)
        record = run_stage(mine_relations.STAGE, Job(run, params, self.data, execution))
        assert record.counts["images"] == len(self.data.items)
        assert 0 < record.sections["CRF"] <= record.seconds + 1e-6
        files = {item.image_id: run.path(IR_LABEL, item.image_id) for item in self.data.items}
        return {image_id: path.read_bytes() for image_id, path in files.items()}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    generate_demo(tmp_path / "voc", num_images=5, num_heldout=0, min_size=(64, 64), max_size=(72, 72))
    monkeypatch.chdir(tmp_path)
    data = load_source(Source(voc_root="voc"))
    run, random = RunFolder(tmp_path / "run"), np.random.default_rng(0)
    for item in data.items:
        height, width = mine_relations.read_rgb(item).shape[:2]
        ids = np.array(item.class_ids, np.int64)
        maps = random.random((len(ids), height, width), np.float32)
        run.write(CAM, Cam(ids, maps[:, ::4, ::4].copy(), maps), item.image_id)
    make = replace(Stages().count, name="make_cam", writes=(), fit=lambda job: 1)
    run_stage(make, Job(run, CountParams(), data, Execution(quiet=True, device="cpu")))
    assert len(data.items) == 5
    assert len(DEMO_CLASSES) > 0
    return Bench(data, tmp_path / "run")


def test_labels_equal_those_of_loky_byte_for_byte(cluster: Cluster, bench: Bench) -> None:
    cluster.with_workers(1)
    on_cluster = bench.labels(cluster.execution)
    again = replace(cluster.execution, backend="loky", scheduler=None, workers=2, overwrite=True)
    assert bench.labels(again) == on_cluster
    assert len({*on_cluster.values()}) == 5


def test_a_killed_worker_s_work_is_done_by_the_other(cluster: Cluster, tmp_path: Path) -> None:
    pids = {worker.pid for worker in cluster.with_workers(2).workers}
    told = tmp_path / "pid"
    items = [*tasks(30), Task("w30", "deadly"), *tasks(60)[31:]]
    found: list[tuple[str, int]] = []
    for result in parallel_map(HangsOnce(told), items, cluster.execution):
        found.append(result)
        if len(found) == 30:
            until(lambda: told.exists() and told.read_text().endswith("\n"))
            os.kill(int(told.read_text()), signal.SIGKILL)
    assert sorted(text for text, _ in found) == sorted(item.text.upper() for item in items)
    killed = int(told.read_text())
    assert killed in pids
    assert {pid for _, pid in found[-10:]} == pids - {killed}
    assert dict(found)["DEADLY"] in pids - {killed}


def test_a_lack_of_memory_names_its_item(cluster: Cluster, tmp_path: Path) -> None:
    cluster.with_workers(1)
    with pytest.raises(MemoryExhausted, match="8 GB") as caught:
        list(parallel_map(no_memory, [Task("w0", "fits"), Task("w1", "huge")], cluster.execution))
    assert caught.value.image_id == "w1"

    def work(this: Any, pending: Sequence[Any]) -> Iterator[Produced]:
        for image_id, text in parallel_map(no_memory, pending, cluster.execution):
            yield Produced(image_id, (text,))

    stage = replace(Stages().upper, reads=(), run=work)
    data = Words((Task("w0", "fits"), Task("w1", "huge"), Task("w2", "too")))  # type: ignore[arg-type]
    record = run_stage(stage, replace(job(tmp_path, UpperParams()), data=data))
    assert record.counts == {"images": 2, "kept": 0, "skipped": 1}


class Endless(Sequence[Any]):
    """More items than can be listed."""

    def __init__(self) -> None:
        self.taken = 0

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: Any) -> Any:
        self.taken += 1
        return Task(f"w{index}", "a")


def test_few_items_are_in_flight_and_none_when_it_is_left(cluster: Cluster) -> None:
    cluster.with_workers(1)
    items = Endless()
    results = parallel_map(upper, items, cluster.execution)
    assert [next(results)[0] for _ in range(40)] == ["A"] * 40
    assert items.taken <= 40 + 2 * 16
    assert len(cluster.scheduler.scheduler.tasks) <= 2 * 16
    results.close()  # type: ignore[attr-defined]
    until(lambda: not cluster.scheduler.scheduler.tasks)


def test_a_folder_that_workers_do_not_see(cluster: Cluster, tmp_path: Path) -> None:
    cluster.with_workers(1)
    seen = parallel_map(upper, tasks(1), cluster.execution, shared=(tmp_path,))
    assert [text for text, _ in seen] == ["A0"]
    unseen = parallel_map(upper, tasks(1), cluster.execution, shared=(tmp_path, tmp_path / "pictures"))
    with pytest.raises(ConfigError, match=r"worker tcp://\S+ does not see the folder /\S+/pictures; .*mount"):
        next(unseen)


def test_a_worker_without_the_package(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "irn_pipeline").mkdir()
    (tmp_path / "irn_pipeline" / "__init__.py").touch()
    cluster.with_workers(1)
    unfit = cluster.start(str(tmp_path))
    until(lambda: len(cluster.scheduler.scheduler_info["workers"]) == 2)
    lacks = r"worker tcp://\S+ cannot load the code that it should run \(.*irn_pipeline.*install this version"
    with pytest.raises(ConfigError, match=lacks):
        list(parallel_map(upper, tasks(20), cluster.execution))
    unfit.kill()
    until(lambda: len(cluster.scheduler.scheduler_info["workers"]) == 1)


def test_a_worker_with_other_versions(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.with_workers(1)
    same = dask_backend._versions()
    assert {"irn_pipeline", "python", "numpy", "distributed"} <= set(same)
    monkeypatch.setattr(dask_backend, "_versions", lambda: {**same, "numpy": "1.0"})
    with pytest.raises(
        ConfigError, match=rf"worker tcp://\S+ has other .*: numpy {np.__version__}, not 1.0; install"
    ):
        next(parallel_map(upper, tasks(1), cluster.execution))


def test_an_address_of_something_else(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_backend, "_PATIENCE", 1.0)
    cluster.with_workers(1)
    worker = next(iter(cluster.scheduler.scheduler_info["workers"]))
    with pytest.raises(ConfigError, match=r"is the address of a Dask Worker; give the scheduler's"):
        next(parallel_map(upper, tasks(1), replace(cluster.execution, scheduler=worker)))
    for address in ("tcp://127.0.0.1:1:2", "smoke://x:1", ""):
        with pytest.raises(ConfigError, match=r"no Dask scheduler answers there .*tcp://HOST:8786"):
            next(parallel_map(upper, tasks(1), replace(cluster.execution, scheduler=address)))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"answers there \(nothing in 1 s\)"):
            next(parallel_map(upper, tasks(1), replace(cluster.execution, scheduler=address)))


def test_a_picture_that_workers_die_of_is_named(cluster: Cluster) -> None:
    cluster.with_workers(1).scheduler.scheduler.allowed_failures = 0
    with pytest.raises(WorkerDied, match=r"w0: 1 Dask workers died while working on it.*more memory"):
        list(parallel_map(dies, tasks(1), cluster.execution))


def test_work_on_a_cluster_of_this_machine() -> None:
    local = Execution(backend="dask", workers=1)
    found = list(parallel_map(upper, tasks(3), local))
    assert sorted(text for text, _ in found) == ["A0", "A1", "A2"]
    assert os.getpid() not in {pid for _, pid in found}
    assert list(parallel_map(upper, [], replace(local, scheduler="nobody:1"))) == []


def test_an_unreachable_scheduler_is_one_line(
    bench: Bench, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_backend, "_PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    flags = ["--voc-root", "voc", "--run-dir", "run", "--quiet", "--backend", "dask", "--scheduler", address]
    assert stage_main("mine_relations", flags) == 1
    told = capfd.readouterr().err
    *warnings, last = told.splitlines()
    assert last.startswith(f"error: --scheduler {address}: no Dask scheduler answers there")
    assert all("warning" in line for line in warnings)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--backend", "dask"], "error: --backend dask needs the package distributed"),
        (["--scheduler", "tcp://a:1"], "error: --scheduler tcp://a:1 needs --backend dask"),
    ],
)
def test_what_lacks_is_told_before_the_work(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    told: str,
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert stage_main("mine_relations", ["--run-dir", str(tmp_path), *flags]) == 1
    assert capsys.readouterr().err.startswith(told)
