"""Quality of maps and labels against CPU seconds, by backbone, seeds and scales: what a laptop should run.

    python -m benchmarks.quality_and_seconds --voc-root DIR --image-list val --out DIR
        [--backbones resnet50=FILE resnet18=FILE tf_efficientnet_lite0] [--scales 1,0.5,1.5,2 1,0.5 1]
        [--pixel-sides 512 384] [--labels] [--limit 40] [--irn-epochs 3] [--precision float32]

Every recipe is a run folder in --out: a linear classifier on frozen features (`train_cam --head probe`), then the maps:
the published ones for each list of scales, and `--seeds pixels` for each side. With --labels, IRNet is trained on the
maps and labels are synthesized. Runs go on where they were stopped. The background's score is the one that is best on
these masks, so rows may be compared with one another but not with figures of a score chosen elsewhere. It prints one
JSON object a recipe, then a table; seconds are CPU seconds a picture in the stage, those of its start included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irn_pipeline import run_stages
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.errors import IrnError
from irn_pipeline.files.atomic import atomic_path, write_json
from irn_pipeline.files.json_text import parse_json

TIMED = ("make_cam", "synthesize_labels")
LABELS = ("mine_relations", "train_irn", "synthesize_labels")


@dataclass(frozen=True)
class Recipe:
    """How maps are made.

    Attributes:
        backbone: name of the network.
        weights: "installed", "imagenet" or a file.
        make_cam: parameters of the stage.
    """

    backbone: str
    weights: str
    make_cam: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its folder and its row."""
        values = [value if isinstance(value, list) else [value] for value in self.make_cam.values()]
        return "-".join([self.backbone, *("_".join(map(str, value)) for value in values)])


def recipes(backbones: Sequence[str], scales: Sequence[str], pixel_sides: Sequence[int]) -> Iterator[Recipe]:
    """All that are compared: every backbone (NAME or NAME=WEIGHTS) with every kind of maps."""
    for entry in backbones:
        backbone, _, weights = entry.partition("=")
        for values in scales:
            yield Recipe(
                backbone, weights or "installed", {"scales": [float(one) for one in values.split(",")]}
            )
        for side in pixel_sides:
            yield Recipe(backbone, weights or "installed", {"seeds": "pixels", "pixel_side": side})


def figures(
    recipe: Recipe, options: argparse.Namespace, image_list: str | None, pictures: int
) -> dict[str, Any]:
    """What a recipe costs and gives."""
    run_dir = Path(options.out, recipe.name)
    epochs = {} if options.irn_epochs is None else {"epochs": options.irn_epochs}
    settings: dict[str, Any] = {
        "run_dir": run_dir, "voc_root": options.voc_root, "image_list": image_list, "plan": "published",
        "precision": options.precision, "device": "cpu", "workers": 1, "quiet": True, "make_cam": recipe.make_cam,
        "train_cam": {"head": "probe", "backbone": recipe.backbone, "backbone_weights": recipe.weights},
        "train_irn": {"backbone": recipe.backbone, "backbone_weights": "cam", **epochs},
        "synthesize_labels": {"keep_scores": True},
    }  # fmt: skip
    costs = run_dir / "costs.json"
    spent: dict[str, float] = parse_json(costs.read_bytes()) if costs.is_file() else {}
    for stage in ("train_cam", "make_cam", *(LABELS if options.labels else ())):
        if stage not in spent:
            start = time.process_time()
            run_stages(
                stage, **settings, overwrite=True
            )  # whole: half of it may be there, of a run that was stopped
            spent[stage] = time.process_time() - start
            write_json(costs, spent)
    found = {f"{stage}_s": round(seconds / pictures, 4) for stage, seconds in spent.items()}
    run_stages("sweep", **settings, sweep={"cam": True})
    found |= _best(run_dir / "evaluate" / "sweep_cam.json", "map_")
    if options.labels:
        run_stages("sweep", **settings)
        found |= _best(run_dir / "evaluate" / "sweep.json", "label_")
    return {"recipe": recipe.name, "pictures": pictures, **found}


def _best(path: Path, prefix: str) -> dict[str, float]:
    best = max(parse_json(path.read_bytes()), key=lambda entry: entry["miou"] or 0.0)
    return {f"{prefix}{key}": round(value, 4) for key, value in best.items() if isinstance(value, float)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a recipe, with the seconds of maps and labels relative to the first one."""
    lines = [
        f"{'recipe':44} {'make_cam s':>10} {'as fast':>8} {'maps mIoU':>9} {'labels mIoU':>11} {'AP50':>6}"
    ]
    for row in rows:
        times = [sum(one.get(f"{stage}_s", 0.0) for stage in TIMED) for one in (rows[0], row)]
        lines.append(
            f"{row['recipe']:44} {row['make_cam_s']:10.3f} {times[0] / times[1]:8.1f} {100 * row['map_miou']:9.1f} "
            f"{100 * row.get('label_miou', float('nan')):11.1f} {100 * row.get('label_ap50', float('nan')):6.1f}"
        )
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--voc-root", required=True)
    parser.add_argument("--image-list", default="val", help="of images with ground-truth masks")
    parser.add_argument(
        "--out", required=True, help="folder of the run folders; another one for other settings"
    )
    parser.add_argument("--backbones", nargs="+", default=["tf_efficientnet_lite0"], metavar="NAME[=WEIGHTS]")
    parser.add_argument("--scales", nargs="*", default=["1,0.5,1.5,2", "1,0.5", "1"])
    parser.add_argument("--pixel-sides", nargs="*", type=int, default=[512, 384])
    parser.add_argument(
        "--labels", action="store_true", help="go on to labels; IRNet is trained for every recipe"
    )
    parser.add_argument("--irn-epochs", type=int)
    parser.add_argument("--limit", type=int, help="so many images of the list")
    parser.add_argument("--precision", choices=["auto", "bf16", "float32"], default="auto")
    options = parser.parse_args(words)
    rows = []
    try:
        items = load_source(Source(voc_root=options.voc_root, image_list=options.image_list)).items
        image_ids = [item.image_id for item in items[: options.limit]]
        chosen = Path(options.out, "images.txt").absolute()
        with atomic_path(chosen) as temporary:
            temporary.write_text("\n".join(image_ids) + "\n", encoding="utf-8")
        for recipe in recipes(options.backbones, options.scales, options.pixel_sides):
            rows.append(figures(recipe, options, str(chosen), len(image_ids)))
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    except IrnError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(table(rows) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
