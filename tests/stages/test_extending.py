"""The pages on extending and on the run folder, tried out: their code is taken from the page and run."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import CAM, CAM_NETWORK, IR_LABEL, IRN_NETWORK, SEMANTIC_LABEL, Checkpoint
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.datasets.voc import load_voc
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.evaluation import model_figures
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.stages.command import run_stage_command
from irn_pipeline.structures import Cam, FloatArray, LabelArray
from tests.stages.conftest import CONFIG, TinyRun

ROOT = Path(__file__).parents[2]
EXTENDING = (ROOT / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
FLAGS = ["--device", "cpu", "--precision", "float32", "--workers", "1", "--quiet"]
EXECUTION = Execution(device="cpu", precision="float32", workers=1, quiet=True)


def block(file: str) -> str:
    """The code block that begins with the file's name."""
    (found,) = re.findall(rf"```python\n# {re.escape(file)}\n(.*?)```", EXTENDING, flags=re.DOTALL)
    return str(found)


def diff_of(module: str) -> str:
    """The diff of a file of the package."""
    found = re.findall(
        rf"`irn_pipeline/{module}\.py` adds it:\n\n```diff\n(.*?)```", EXTENDING, flags=re.DOTALL
    )
    return str(*found)


Load = Callable[[str, str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Function that makes a module of a name and source, found under that name until the test ends."""

    def made(name: str, source: str) -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        module = ModuleType(name)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(source, path, "exec"), module.__dict__)
        return module

    return made


def source_of(module: str) -> str:
    return (ROOT / "irn_pipeline" / f"{module}.py").read_text(encoding="utf-8")


def apply_diff(source: str, diff: str) -> str:
    """The source with the lines of a diff that has no line numbers: every old line stands in it exactly once."""
    lines = source.splitlines()
    place = 0
    for line in diff.splitlines():
        kind, text = line[:1], line[1:]
        if kind == "+":
            lines.insert(place, text)
            place += 1
        else:
            assert lines.count(text) == 1, f"the source has no such line (or several): {text}"
            place = lines.index(text) + (kind == " ")
            if kind == "-":
                del lines[place]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def voc_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extending") / "voc"
    generate_demo(root, num_images=4, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    return root


def labelled(run: RunFolder) -> None:
    """As if stage 5 had run."""
    run.write_record(StageRecord("synthesize_labels", "0", {}, {}, True, {}, 0.0, {}))


def test_data_set(voc_root: Path, tmp_path: Path, load: Load) -> None:
    mine = load("my_pipeline", block("my_pipeline.py"))
    records = load_voc(voc_root, class_names=DEMO_CLASSES).images.records
    for number, (record, name) in enumerate(zip(records, ("cat", "dog", "cat", "dog"), strict=True)):
        target = tmp_path / "animals" / name / f"{number}{record.path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(record.path.read_bytes())
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    words = ["--class-root", str(tmp_path / "animals"), "--run-dir", str(tmp_path / "run"), *FLAGS]
    assert mine.main(["1-2", *words, "--config", str(tmp_path / "tiny.yaml")]) == 0
    run = RunFolder(tmp_path / "run")
    for image_id, class_id in {"cat/0": 0, "dog/1": 1, "cat/2": 0, "dog/3": 1}.items():
        assert run.read(CAM, image_id).class_ids.tolist() == [class_id]
    (tmp_path / "some.txt").write_text("dog/3\n")
    data = mine.load(mine.ClassFolders(str(tmp_path / "animals"), str(tmp_path / "some.txt")))
    assert [record.image_id for record in data.items] == ["dog/3"]
    assert data.identity == ("cat", "dog")


def test_data_set_is_missed(capsys: pytest.CaptureFixture[str], load: Load) -> None:
    mine = load("my_pipeline", block("my_pipeline.py"))
    assert mine.main(["1", *FLAGS]) == 1
    assert "give --class-root DIR" in capsys.readouterr().err


def test_stage(voc_root: Path, tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    soften = load("soften_edges", block("soften_edges.py"))
    run = RunFolder(tmp_path)
    labelled(run)
    label = np.zeros((6, 8), np.uint8)
    label[:, 4:] = 3
    records = load_voc(voc_root, class_names=DEMO_CLASSES).images.records
    for record in records[1:]:
        run.write(SEMANTIC_LABEL, label, record.image_id)
    words = ["--voc-root", str(voc_root), "--run-dir", str(tmp_path), *FLAGS]
    assert soften.main([*words, "--width", "1"]) == 0
    found = run.read(soften.SOFT_LABEL, records[1].image_id)
    assert found.tolist() == [[0, 0, 0, 255, 255, 3, 3, 3]] * 6
    done = run.record("soften_edges")
    assert done is not None
    assert done.counts == {"images": 3, "kept": 0, "skipped": 1}
    assert soften.main([*words, "--width", "3"]) == 1, "results of another width are refused"
    assert "width was 1, is now 3" in capsys.readouterr().err
    assert soften.main([*words, "--width", "0"]) == 1


def test_model(voc_root: Path, tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("irn_pipeline/nn/segmenters/pixel_net.py", "irn_pipeline/models/pixel_net.py"):
        load(path.removesuffix(".py").replace("/", "."), block(path))
    diff = diff_of("models/__init__")
    models = load("irn_pipeline.models", apply_diff(source_of("models/__init__"), diff))
    trained = load("irn_pipeline.trained_networks", source_of("trained_networks"))
    trainer = load("irn_pipeline.stages.train_segmenter", source_of("stages/train_segmenter"))
    words = ["--voc-root", "nowhere", "--run-dir", "nowhere", *FLAGS]
    for flags, line in (
        (["--model", "pixel_net", "--hidden", "8"], "nowhere"),
        (["--hidden", "8"], "--hidden: has no effect with mask_rcnn; it is for pixel_net"),
        (
            ["--model", "pixel_net", "--backbone", "resnet18"],
            "--backbone: has no effect with pixel_net, which has no backbone to choose",
        ),
    ):
        assert run_stage_command(trainer.STAGE, [*flags, *words]) == 1
        assert line in capsys.readouterr().err

    run = RunFolder(tmp_path)
    data = load_source(Source(voc_root=str(voc_root)))
    params = models.SegmenterParams(model="pixel_net", labels="truth", epochs=3, batch_size=2, hidden=8)
    torch.manual_seed(0)
    record = run_stage(trainer.STAGE, Job(run, params, data, EXECUTION))
    assert record.counts == {"images": 12}
    model, checkpoint = trained.load_segmenter(run, "pixel_net-on-truth", EXECUTION)
    assert (checkpoint.kind, checkpoint.class_names) == ("pixel_net", data.identity)
    assert checkpoint.state["layers.0.bias"].shape == (8,)
    image = to_unit_tensor(read_image(data.items[0].path))
    found, label = model.predict_with_label(image)
    assert label.shape == image.shape[1:]
    assert (found.masks == model.predict(image).masks).all()
    for mask, class_id in zip(found.masks, found.class_ids, strict=True):
        assert (label[mask] == class_id + 1).all()
    # What the stages evaluate and predict ask of a model, this one can be asked as well.
    assert model_figures(model, data, EXECUTION)["pictures"] == 4


def test_seed(voc_root: Path, tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load("irn_pipeline.seeds.shifted", block("irn_pipeline/seeds/shifted.py"))
    load("irn_pipeline.seeds", apply_diff(source_of("seeds/__init__"), diff_of("seeds/__init__")))
    load("irn_pipeline.seeds.params", source_of("seeds/params"))
    maker = load("irn_pipeline.stages.make_cam", source_of("stages/make_cam"))
    words = ["--voc-root", "nowhere", "--run-dir", "nowhere", *FLAGS]
    assert run_stage_command(maker.STAGE, ["--shifted-by", "4", *words]) == 1
    assert "--shifted-by: has no effect with cam; it is for shifted" in capsys.readouterr().err
    data = load_source(Source(voc_root=str(voc_root)))
    torch.manual_seed(0)
    state = CamNetwork(num_classes=len(data.identity), backbone="resnet18").state_dict()

    def made(name: str, params: Any) -> list[FloatArray]:
        run = RunFolder(tmp_path / name)
        run.write(CAM_NETWORK, Checkpoint("cam", "resnet18", data.identity, state))
        run.write_record(StageRecord("train_cam", "0", {}, {}, True, {}, 0.0, {}))
        run_stage(maker.STAGE, Job(run, params, data, EXECUTION))
        return [run.read(CAM, record.image_id).cam for record in data.items]

    plain, unmoved, moved = (
        made(str(number), maker.Params(scales=(1.0,), **options))
        for number, options in enumerate(({}, {"seeds": "shifted", "shifted_by": 0}, {"seeds": "shifted"}))
    )
    assert all(np.array_equal(a, b) for a, b in zip(plain, unmoved, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(plain, moved, strict=True))


def test_refiner(voc_root: Path, tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load("irn_pipeline.refiners.blur", block("irn_pipeline/refiners/blur.py"))
    load("irn_pipeline.refiners", apply_diff(source_of("refiners/__init__"), diff_of("refiners/__init__")))
    stage = load("irn_pipeline.stages.synthesize_labels", source_of("stages/synthesize_labels"))
    words = ["--voc-root", "nowhere", "--run-dir", "nowhere", *FLAGS]
    assert run_stage_command(stage.STAGE, ["--blur-side", "5", *words]) == 1
    assert "--blur-side: has no effect with walk; it is for blur" in capsys.readouterr().err
    data = load_source(Source(voc_root=str(voc_root)))
    torch.manual_seed(0)
    state = IrnNetwork(backbone="resnet18").state_dict()

    def made(name: str, params: Any) -> list[LabelArray]:
        run = RunFolder(tmp_path / name)
        run.write(IRN_NETWORK, Checkpoint("irn", "resnet18", (), state))
        for record in data.items:
            height, width = read_image(record.path).shape[:2]
            high_res = np.zeros((1, height, width), np.float32)
            high_res[0, 20:44, 20:44] = 1
            cam = Cam(np.array(record.class_ids[:1]), high_res[:, ::4, ::4].copy(), high_res)
            run.write(CAM, cam, record.image_id)
        for done in ("make_cam", "train_irn"):
            run.write_record(StageRecord(done, "0", {}, {}, True, {}, 0.0, {}))
        run_stage(stage.STAGE, Job(run, params, data, EXECUTION))
        return [run.read(SEMANTIC_LABEL, record.image_id) for record in data.items]

    narrow, wide = (made(str(side), stage.Params(refiner="blur", blur_side=side)) for side in (1, 5))
    for small, large in zip(narrow, wide, strict=True):
        assert ((small > 0) <= (large > 0)).all() and 0 < (small > 0).sum() < (large > 0).sum()


def test_a_diff_that_no_longer_fits_is_seen() -> None:
    assert apply_diff("a\nb\nc", "-b\n+x\n+y\n c\n+z") == "a\nx\ny\nc\nz"
    with pytest.raises(AssertionError, match="no such line"):
        apply_diff("a\nb", " gone\n+x")


def tree(text: str) -> list[str]:
    """Patterns of the files in the page's tree: ID, NAME and MODEL stand for anything."""
    (drawn,) = re.findall(r"```\nruns/mine/\n(.*?)```", text, flags=re.DOTALL)
    patterns: list[str] = []
    above: list[str] = []
    for line in drawn.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        above[depth:] = [name]
        if not name.endswith("/"):
            patterns.append(re.sub(r"ID|NAME|MODEL", "*", "".join(above)))
    return patterns


def test_every_file_of_a_run_is_in_the_tree(whole_run: TinyRun) -> None:
    patterns = tree((ROOT / "docs" / "RUN_FOLDER.md").read_text(encoding="utf-8"))
    assert "make_cam/cam/*.npy" in patterns
    files = [
        path.relative_to(whole_run.run_dir).as_posix()
        for path in whole_run.run_dir.rglob("*")
        if path.is_file()
    ]
    assert [file for file in files if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []
    written = [
        p for p in patterns if not p.startswith(("export_labels", "export_model", "predict", "sweep/"))
    ]
    optional = (
        *("train_cam/resume.pt", "train_segmenter/*/validation.jsonl", "synthesize_labels/scores/*.npz"),
        *(pattern for pattern in patterns if pattern.endswith("inputs.json")),
        *(
            "evaluate/sweep.json",
            "evaluate/sweep_cam.json",
            "make_cam/network.pt",
            "plan.yaml",
            "pixels.json",
        ),
        *(pattern for pattern in patterns if pattern.endswith("held_out.json")),
    )
    unseen = [p for p in written if not fnmatch.filter(files, p)]
    assert sorted(unseen) == sorted(optional), "what the page tells and a whole run does not write"


def test_labels_have_the_formats_that_the_page_tells(whole_run: TinyRun) -> None:
    run = RunFolder(whole_run.run_dir)
    path = next((whole_run.run_dir / "make_cam" / "cam").glob("*.npy"))
    cam = np.load(path, allow_pickle=True).item()
    assert list(cam) == ["keys", "cam", "scales", "size", "whole"]
    height, width = cam["size"]
    assert cam["cam"].shape[1:] == ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    assert (cam["keys"].dtype, cam["cam"].dtype) == (np.int64, np.float32)
    objects = np.load(
        whole_run.run_dir / "synthesize_labels" / "instance_label" / path.name, allow_pickle=True
    ).item()
    assert [objects[key].dtype for key in ("score", "mask", "class")] == [np.float32, np.bool_, np.int64]
    assert 255 not in run.read(SEMANTIC_LABEL, path.stem)
    assert set(np.unique(run.read(IR_LABEL, path.stem))) <= {0, 255, *(cam["keys"] + 1)}
    network = torch.load(whole_run.run_dir / "train_cam" / "network.pt", weights_only=True)
    assert sorted(network) == ["backbone", "class_names", "kind", "network"]
    (path,) = (whole_run.run_dir / "train_segmenter").glob("*/network.pt")
    model = torch.load(path, weights_only=True)
    assert model.keys() - network.keys() == {"category_ids"}
    assert model["category_ids"] == [*range(1, len(model["class_names"]) + 1)]
