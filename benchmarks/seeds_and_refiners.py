"""Every seed with every refiner, on the same pictures with the same networks.

python -m benchmarks.seeds_and_refiners --voc-root DIR --image-list val --run-dir RUN --out DIR
    [--seeds cam layercam] [--refiners none walk] [--backgrounds 0.15 0.25 0.35] [--sam-checkpoint DIR]

RUN has train_cam and train_irn. The background's score is chosen on one half of the pictures and judged on the other,
both ways round: for mIoU by mIoU, for AP by AP50. The row "published" is the plain maps walked at 0.25. Intervals are
the bootstrap's over pictures, 2.5 to 97.5 per cent. What was worked out stays in --out, picture by picture, so that the
command goes on where it was stopped, and with more seeds or refiners does only what is new. It prints one JSON object a
line, then the table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.ap_noise import THRESHOLDS, mean_ap
from irn_pipeline.artifacts import CAM, CAM_NETWORK, IRN_NETWORK
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.transforms import normalise, to_tensor
from irn_pipeline.engine.command import run_command
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.options import add_options, from_namespace, new_parser, parse
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, atomic_path
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.metrics.instance import InstanceEvaluator, PictureHits
from irn_pipeline.metrics.semantic import confusion_matrix, semantic_scores
from irn_pipeline.ops.labels import labels_over_thresholds
from irn_pipeline.ops.parting import parted_label
from irn_pipeline.refiners import REFINERS
from irn_pipeline.refiners.base import Picture
from irn_pipeline.seeds import SEEDS
from irn_pipeline.stages import make_cam, synthesize_labels
from irn_pipeline.structures import GroundTruth, ImageRecord, Instances, LabelArray
from irn_pipeline.trained_networks import load_irn, padding

REPEATS = 200
PUBLISHED = ("cam", "walk", 0.25)
Figures = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What is compared."""

    run_dir: str | None = None
    """Run folder with train_cam and train_irn."""
    out: str | None = None
    """Folder for what is worked out; another one for other networks."""
    seeds: tuple[str, ...] = tuple(SEEDS)
    """Kinds of seeds."""
    refiners: tuple[str, ...] = tuple(name for name in REFINERS if name != "sam")
    """Refiners; sam needs a checkpoint."""
    backgrounds: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
    """Scores of the background to choose from."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Relative picture sizes of the maps."""
    sam_checkpoint: str | None = None
    """Folder of a Segment Anything model, as transformers saves it."""


@dataclass(frozen=True)
class Judged:
    """One picture's figures with one seed and one refiner, for each score of the background.

    Attributes:
        matrices: (B, L, L) confusion matrices.
        hits: B of them.
        seconds: of the refiner, IRNet's pass not counted.
    """

    matrices: npt.NDArray[np.int64]
    hits: list[PictureHits]
    seconds: float

    def write(self, path: Path) -> None:
        """As plain arrays."""
        arrays: dict[str, Any] = {"matrices": self.matrices, "seconds": np.float64(self.seconds)}
        for number, one in enumerate(self.hits):
            arrays |= {f"{number}.{entry.name}": getattr(one, entry.name) for entry in fields(PictureHits)}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @staticmethod
    def read(path: Path) -> Judged:
        """What `write` has written."""
        with np.load(path, allow_pickle=False) as arrays:
            matrices = arrays["matrices"]
            hits = [
                PictureHits(**{entry.name: arrays[f"{number}.{entry.name}"] for entry in fields(PictureHits)})
                for number in range(len(matrices))
            ]
            return Judged(matrices, hits, float(arrays["seconds"]))


@dataclass
class Comparison:
    """Makes maps and labels, and keeps the figures of every picture."""

    options: Options
    data: DataSet
    execution: Execution
    run: RunFolder
    out: Path
    prepared: dict[str, Any] = field(default_factory=dict)

    def map_folder(self, seed: str) -> RunFolder:
        """Maps of all pictures, made where they are missing."""
        run = RunFolder(self.out / seed)
        source, target = self.run.stage_dir(CAM_NETWORK.stage), run.stage_dir(CAM_NETWORK.stage)
        if not target.is_dir():
            shutil.copytree(source, target)
        params = make_cam.Params(seeds=seed, scales=self.options.scales)  # type: ignore[arg-type]
        run_stage(make_cam.STAGE, Job(run, params, self.data, self.execution))
        return run

    def path(self, seed: str, refiner: str, image_id: str) -> Path:
        """Where one picture's figures lie."""
        return self.out / seed / refiner / f"{image_id}.npz"

    def judge(self, truths: dict[str, GroundTruth]) -> None:
        """Figures of all pictures, where they are missing."""
        maps = {seed: self.map_folder(seed) for seed in self.options.seeds}
        network, side_of = load_irn(self.run, self.execution), padding(self.run, None)
        device = self.execution.torch_device()
        records = [record for record in self.data.items if record.image_id in truths]
        for record in progress(records, "labels", quiet=self.execution.quiet):
            missing = [
                (seed, refiner)
                for seed in self.options.seeds
                for refiner in self.options.refiners
                if not self.path(seed, refiner, record.image_id).is_file()
            ]
            if not missing:
                continue
            image = read_image(record.path, record.orientation)
            with torch.inference_mode(), self.execution.autocast():
                boundary, displacement, features = network.predict_with_features(
                    normalise(to_tensor(image).to(device)), pad_to=side_of((image.shape[0], image.shape[1]))
                )
            fields_of = boundary.cpu().numpy(), displacement.cpu().numpy(), features, device
            for seed, refiner in missing:
                picture = Picture(image, maps[seed].read(CAM, record.image_id), *fields_of)
                found = self.judged(picture, refiner, truths[record.image_id])
                path = self.path(seed, refiner, record.image_id)
                path.parent.mkdir(parents=True, exist_ok=True)
                found.write(path)

    def judged(self, picture: Picture, name: str, truth: GroundTruth) -> Judged:
        """One picture's figures with one refiner."""
        classes = self.data.images.num_classes
        evaluator = InstanceEvaluator(classes, THRESHOLDS)
        began = time.perf_counter()
        labels = list(self.labels(picture, name))
        seconds = (time.perf_counter() - began) / (1 if REFINERS[name].label is None else len(labels))
        matrices = [confusion_matrix(label, truth.label, classes + 1) for label, _ in labels]
        return Judged(np.stack(matrices), [evaluator.hits(found, truth) for _, found in labels], seconds)

    def labels(self, picture: Picture, name: str) -> Iterator[tuple[LabelArray, Instances]]:
        """Labels for each score of the background."""
        refiner, backgrounds = REFINERS[name], self.options.backgrounds
        params = synthesize_labels.Params(refiner=name, sam_checkpoint=self.options.sam_checkpoint)  # type: ignore[arg-type]
        if refiner.prepare is not None and name not in self.prepared:
            self.prepared[name] = _once_a_picture(refiner.prepare(params, picture.device))
        prepared = self.prepared.get(name)
        if refiner.scores is not None:
            walked, class_ids = refiner.scores(picture, params, prepared)
            yield from labels_over_thresholds(walked, class_ids, picture.size, backgrounds, params)
            return
        assert refiner.label is not None
        for background in backgrounds:
            chosen = replace(params, semantic_bg_threshold=background)
            label = refiner.label(picture, chosen, prepared)
            yield label, parted_label(label, picture.cam, picture.displacement, chosen)

    def row(self, seed: str, refiner: str, truths: Sequence[str]) -> Figures:
        """The figures of one seed with one refiner."""
        pictures = [Judged.read(self.path(seed, refiner, image_id)) for image_id in truths]
        record = RunFolder(self.out / seed).record(make_cam.STAGE.name)
        made = 0 if record is None else record.counts.get("images", 0)
        return {
            "seed": seed,
            "refiner": refiner,
            **figures(pictures, self.data.images.num_classes, self.options.backgrounds),
            "seed_seconds": record.seconds / made if record is not None and made else None,
            "refiner_seconds": float(np.mean([one.seconds for one in pictures])),
        }


def _once_a_picture(make: Callable[[LabelArray], Any]) -> Callable[[LabelArray], Any]:
    """What does not depend on the background's score is made once for all of them."""
    last: list[tuple[LabelArray, Any]] = []

    def made(image: LabelArray) -> Any:
        if not last or last[0][0] is not image:
            last[:] = [(image, make(image))]
        return last[0][1]

    return made


def figures(
    pictures: Sequence[Judged], num_classes: int, backgrounds: Sequence[float], fixed: float | None = None
) -> Figures:
    """MIoU and AP with the background's score chosen on the other half, or fixed, and their intervals, in per cent."""
    halves = [list(range(start, len(pictures), 2)) for start in (0, 1)]
    positions = range(len(backgrounds)) if fixed is None else [list(backgrounds).index(fixed)]

    def miou(indices: Sequence[int], chosen: Sequence[int]) -> float:
        matrix = sum(pictures[index].matrices[chosen[index]] for index in indices)
        return 100 * float(semantic_scores(np.asarray(matrix)).miou)

    def ap(indices: Sequence[int], chosen: Sequence[int]) -> npt.NDArray[np.float32]:
        return mean_ap([pictures[index].hits[chosen[index]] for index in indices], num_classes)

    def choose(measure: Callable[[Sequence[int], Sequence[int]], float]) -> list[int]:
        """For each picture the position that is best on the half that it is not in."""
        best = [
            max(positions, key=lambda at: _number(measure(half, [at] * len(pictures))))
            if half
            else positions[0]
            for half in halves
        ]
        return [best[1 - index % 2] for index in range(len(pictures))]

    by_miou = choose(miou)
    by_ap = choose(lambda indices, chosen: float(ap(indices, chosen)[0]))
    whole = range(len(pictures))
    draws = np.random.default_rng(0).integers(0, len(pictures), (REPEATS, len(pictures))).tolist()
    found: Figures = {"pictures": len(pictures), "miou": miou(whole, by_miou)}
    found["miou_interval"] = _interval([miou(draw, by_miou) for draw in draws])
    drawn = np.stack([ap(draw, by_ap) for draw in draws])
    for position, value in enumerate(ap(whole, by_ap)):
        name = f"ap{round(100 * THRESHOLDS[position])}"
        found[name], found[f"{name}_interval"] = float(value), _interval(drawn[:, position])
    found["backgrounds"] = sorted({backgrounds[at] for at in (*by_miou, *by_ap)})
    return found


def _number(value: float) -> float:
    return value if np.isfinite(value) else -1.0


def _interval(values: Sequence[float] | npt.NDArray[Any]) -> list[float]:
    return [float(v) for v in np.nanpercentile(values, (2.5, 97.5))]


def table(rows: Sequence[Figures]) -> str:
    """The rows as Markdown."""
    lines = [
        "| seed | refiner | mIoU | AP50 | AP70 | AP75 | s/picture: seed | refiner |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row[name]:.1f} ({row[f'{name}_interval'][0]:.1f} to {row[f'{name}_interval'][1]:.1f})"
            for name in ("miou", "ap50", "ap70", "ap75")
        ]
        times = [
            "-" if row[key] is None else f"{row[key]:.2f}" for key in ("seed_seconds", "refiner_seconds")
        ]
        lines.append("| " + " | ".join([row["seed"], row["refiner"], *cells, *times]) + " |")
    return "\n".join(lines)


def compare(options: Options, source: Source, execution: Execution) -> None:
    """Work out what is missing and print the table."""
    if options.run_dir is None or options.out is None:
        raise ConfigError("give --run-dir RUN with train_cam and train_irn, and --out DIR for the results")
    for given, known in ((options.seeds, SEEDS), (options.refiners, REFINERS)):
        for name in given:
            if name not in known:
                raise ConfigError(f"'{name}' is none of {', '.join(known)}")
    run, out, data = RunFolder(Path(options.run_dir)), Path(options.out), load_source(source)
    truths = {record.image_id: data.ground_truth(record.image_id) for record in data.items}
    known_truths = {image_id: truth for image_id, truth in truths.items() if truth is not None}
    if len(known_truths) < 2:
        raise DataError(f"{data.origin}: two or more images with ground-truth masks are needed")
    _require_same(out, run, options, data.items)
    comparison = Comparison(options, data, execution, run, out)
    comparison.judge(known_truths)
    rows = [
        comparison.row(seed, refiner, list(known_truths))
        for seed in options.seeds
        for refiner in options.refiners
    ]
    seed, refiner, background = PUBLISHED
    if seed in options.seeds and refiner in options.refiners and background in options.backgrounds:
        base = [Judged.read(comparison.path(seed, refiner, image_id)) for image_id in known_truths]
        fixed = figures(base, data.images.num_classes, options.backgrounds, fixed=background)
        (plain,) = (row for row in rows if (row["seed"], row["refiner"]) == (seed, refiner))
        rows.insert(0, {**plain, **fixed, "refiner": "published"})
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.write(table(rows) + "\n")


def _require_same(out: Path, run: RunFolder, options: Options, records: Sequence[ImageRecord]) -> None:
    """Refuse a folder with figures of other networks, pictures or scores."""
    paths = [run.path(one) for one in (CAM_NETWORK, IRN_NETWORK) if run.has(one)]
    networks = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    if len(networks) < 2:
        raise DataError(f"{run.root}: lacks a finished train_cam or train_irn; run stages 1 to 4 first")
    settings = {
        "networks": networks,
        "pictures": [record.image_id for record in records],
        "backgrounds": list(options.backgrounds),
        "scales": list(options.scales),
    }
    path = out / "settings.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise DataError(
            f"{out}: holds figures of other networks, images, backgrounds or scales; name another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings), encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """Read the flags."""
    parser = new_parser("python -m benchmarks.seeds_and_refiners", str(__doc__))
    for kind in (Options, Source, Execution):
        add_options(parser, kind)

    def work() -> None:
        given = parse(parser, sys.argv[1:] if words is None else words, {})
        compare(
            from_namespace(Options, given), from_namespace(Source, given), from_namespace(Execution, given)
        )

    return run_command(work)


if __name__ == "__main__":
    raise SystemExit(main())
