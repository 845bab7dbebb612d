"""What the program stands on: licences, what a help text imports, the network, and the one file it downloads."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
import torchvision

from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.backbone import Backbone, build_backbone, load_backbone_weights
from irn_pipeline.nn.imagenet import imagenet_weights
from irn_pipeline.stages.catalogue import stage_main
from tests.stages.conftest import CONFIG

ROOT = Path(__file__).parents[1]
SLOW_TO_IMPORT = {"torchvision", "torch._dynamo", "numba", "matplotlib", "pydensecrf"}
NO_NETWORK = """\
import sys

def refuse(event, arguments):
    if event not in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        return
    if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):
        return  # a socket of this machine's file system, which processes talk through
    with open({log!r}, "a") as file:
        file.write(f"{{event}} {{arguments[1:]}}\\n")
    raise OSError("this test has no network")

sys.addaudithook(refuse)
"""
"""As sitecustomize.py it is run by every Python process, the workers included."""

Publish = Callable[[bytes], Path]


def plain(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licences(text: str) -> dict[str, str]:
    """Package -> licence, of the table's rows."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    return {plain(row[0].strip()): row[2].strip() for row in rows if len(row) >= 3}


def required() -> list[str]:
    """Names of the packages that an installation brings."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    return [plain(re.split(r"[\[<>=~;]", line)[0].strip()) for line in lines if line.strip()]


def test_every_dependency_is_in_the_licence_list() -> None:
    told = licences((ROOT / "docs" / "LICENSES.md").read_text(encoding="utf-8"))
    names = required()
    assert {"torch", "opencv-python-headless", "pyyaml"} <= set(names)
    assert [name for name in names if told.get(name, "UNKNOWN") == "UNKNOWN"] == []


def test_a_dependency_without_a_licence_is_noticed() -> None:
    assert licences("| Name | Version | License |\n|--|--|--|\n| My_Pack.age | 1.0 | MIT |") == {
        "name": "License", "-": "--", "my-pack-age": "MIT",
    }  # fmt: skip


def test_a_command_that_computes_nothing_imports_nothing_slow(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stages", "status", "--run-dir", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "irn_pipeline.stages.train_segmenter" in imported
    assert imported & SLOW_TO_IMPORT == set()


def test_stages_run_without_a_network(tmp_path: Path) -> None:
    log = tmp_path / "attempts.txt"
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(log)))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    attempt = [sys.executable, "-c", "import socket; socket.create_connection(('localhost', 9))"]
    seen = subprocess.run(attempt, env=environment, capture_output=True, text=True)
    assert "this test has no network" in seen.stderr, "the barrier stands"
    log.unlink()
    generate_demo(tmp_path / "voc", num_images=4, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    flags = ["--config", "tiny.yaml", "--voc-root", "voc", "--run-dir", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "stages", "1-5", "report", *flags],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "synthesize_labels" / "instance_label").iterdir())) == 4
    assert not log.exists(), log.read_text()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that torch keeps downloads in, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Function that takes the place of torchvision's server: the file it serves, named after its hash."""

    def published(content: bytes) -> Path:
        path = tmp_path / "server" / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        weights = {"IMAGENET1K_V1": SimpleNamespace(url=path.as_uri())}
        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: weights)
        return path

    return published


def saved(network: Backbone, path: Path) -> bytes:
    torch.save(network.state_dict(), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_published_names_hold_a_hash(name: str) -> None:
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    assert re.fullmatch(rf"https://\S+/{name}-[0-9a-f]{{8}}\.pth", url)


def test_weights_are_downloaded_once(tmp_path: Path, cache: Path, publish: Publish) -> None:
    source = build_backbone("resnet18")
    served = publish(saved(source, tmp_path / "made.pth"))
    network = build_backbone("resnet18")
    load_backbone_weights(network, "imagenet")
    assert all(torch.equal(network.state_dict()[name], value) for name, value in source.state_dict().items())
    assert [path.name for path in cache.iterdir()] == [served.name]
    served.unlink()
    assert imagenet_weights("resnet18") == cache / served.name


def test_a_download_of_another_hash_is_refused_and_not_kept(cache: Path, publish: Publish) -> None:
    publish(b"what was published").write_bytes(b"what came instead")
    with pytest.raises(CheckpointError, match=r"resnet18: .*could not be downloaded .*hash.*PATH"):
        imagenet_weights("resnet18")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:100] + b"\x00" + b[101:]])
def test_a_damaged_file_in_the_cache_is_refused(
    damage: Callable[[bytes], bytes], cache: Path, publish: Publish
) -> None:
    served = publish(bytes(range(1, 256)))
    kept = imagenet_weights("resnet18")
    kept.write_bytes(damage(served.read_bytes()))
    with pytest.raises(
        CheckpointError, match=rf"{kept}: is not the file .*expected {served.stem[-8:]}.*remove it"
    ):
        load_backbone_weights(build_backbone("resnet18"), "imagenet")


def test_an_unreadable_file_in_the_cache_is_told(
    cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(b"weights")
    kept = imagenet_weights("resnet18")

    def refuse(path: Path, *arguments: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=rf"{kept}: cannot be read .*Permission denied.*remove it"):
        imagenet_weights("resnet18")


@pytest.mark.usefixtures("cache", "no_network")
def test_without_a_network_one_line_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_demo(tmp_path / "voc", num_images=2, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    (tmp_path / "tiny.yaml").write_text(
        CONFIG.replace("backbone_weights: none", "backbone_weights: imagenet")
    )
    flags = [("--config", "tiny.yaml"), ("--voc-root", "voc"), ("--run-dir", "run")]
    assert (
        stage_main("train_cam", [word for flag, name in flags for word in (flag, str(tmp_path / name))]) == 1
    )
    # Two pictures do not show all classes, which is said before.
    *before, told = capsys.readouterr().err.splitlines()
    assert all("warning" in line for line in before)
    assert re.search(
        r"resnet18: ImageNet weights could not be downloaded \(.*not known.*\); download https://\S+resnet18-\w+\.pth "
        r"elsewhere and name the file: --backbone-weights PATH",
        told,
    )
