"""From a folder of pictures and a table of tags to COCO JSON, by the commands that the README shows."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.datasets.voc import load_voc
from irn_pipeline.running import read_labels
from irn_pipeline.stages.catalogue import main
from tests.stages.conftest import CONFIG

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo pictures without VOC's layout: some in a subfolder, tags in one table."""
    root = tmp_path_factory.mktemp("own")
    generate_demo(root / "voc", num_images=4, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    rows = ["image,label"]
    for number, record in enumerate(load_voc(root / "voc", class_names=DEMO_CLASSES).images.records):
        name = f"{'garden/' if number % 2 else ''}my image {number}{record.path.suffix}"
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        record.path.rename(root / "photos" / name)
        rows.append(",".join([name, *(DEMO_CLASSES[class_id] for class_id in record.class_ids)]))
    (root / "tags.csv").write_text("\n".join(rows), encoding="utf-8")
    (root / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    return root


def commands() -> list[list[str]]:
    """The block of the README that leads to COCO JSON."""
    text = README.read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL) if "export_labels" in b)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_commands_of_the_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = commands()
    assert len(shown) <= 3
    monkeypatch.chdir(folder)
    for script, *words in shown:
        assert script == "./run_all.sh"
        assert main(["run", *words, "--config", "tiny.yaml"]) == 0

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO("runs/mine/export_labels/coco/instances.json")
    rows = [line.split(",") for line in Path("tags.csv").read_text(encoding="utf-8").splitlines()[1:]]
    tags = {name: set(labels) for name, *labels in rows}
    assert {image["file_name"] for image in coco.imgs.values()} == tags.keys()
    categories = {category["id"]: category["name"] for category in coco.cats.values()}
    assert list(categories.values()) == sorted(set().union(*tags.values()))
    assert coco.anns
    for image in coco.imgs.values():
        path = Path("photos", image["file_name"])
        with Image.open(path) as picture:
            assert picture.size == (image["width"], image["height"])
        found = coco.imgToAnns[image["id"]]
        assert {categories[one["category_id"]] for one in found} <= tags[image["file_name"]]
        masks = [coco.annToMask(one).astype(bool) for one in found]
        _, instances = read_labels("runs/mine", str(Path(image["file_name"]).with_suffix("")))
        assert np.array_equal(masks, instances.masks) or (not len(instances) and not masks)
        assert [one["area"] for one in found] == [int(mask.sum()) for mask in masks]
    page = Path("runs/mine/report/report.html").read_text(encoding="utf-8")
    assert "garden/my image 1" in page
