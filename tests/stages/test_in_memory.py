"""The method on one page gives what the stages give."""

from __future__ import annotations

from pathlib import Path

from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.datasets.voc import load_voc, read_class_names
from irn_pipeline.pipeline import Settings, labels_from_tags
from irn_pipeline.running import read_labels, run_stages


def test_the_page_gives_the_labels_of_the_stages(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    generate_demo(root, num_images=5, num_heldout=1, min_size=(64, 80), max_size=(80, 96))
    settings = Settings(
        backbone="resnet18", weights="none", crop=80, long_side=(64, 96), batch_size=2, cam_epochs=1, irn_epochs=1,
        scales=(1.0, 1.5), lr=0.001, exp_times=2, seed=3,
    )  # fmt: skip
    shared = {
        "backbone": settings.backbone,
        "backbone_weights": "none",
        "crop": settings.crop,
        "batch_size": settings.batch_size,
        "lr": settings.lr,
    }
    run = run_stages(
        "1-5", voc_root=root, run_dir=tmp_path / "run", seed=settings.seed, precision="float32", device="cpu",
        quiet=True, plan="published",
        train_cam={**shared, "long_side": settings.long_side, "epochs": settings.cam_epochs},
        make_cam={"scales": settings.scales},
        train_irn={**shared, "epochs": settings.irn_epochs},
        synthesize_labels={"exp_times": settings.exp_times},
    )  # fmt: skip
    images = load_voc(root, class_names=read_class_names(root / "class_names.txt")).images

    found = list(labels_from_tags(images, settings))

    assert [one.image_id for one in found] == [record.image_id for record in images.records]
    assert any(one.label.any() for one in found)
    for one in found:
        label, instances = read_labels(run, one.image_id, keep_fragments=True)
        assert (one.label == label).mean() > 0.99
        assert len(one.instances) == len(instances)
