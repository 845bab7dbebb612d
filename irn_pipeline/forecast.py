"""How long the stages of a run will take here, from a few timed steps of the real networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.pixels import read_pixels, read_rgb
from irn_pipeline.engine.execution import Execution
from irn_pipeline.facts import median_picture
from irn_pipeline.ops.crf import confident_label
from irn_pipeline.ops.crf_params import CrfParams
from irn_pipeline.seeds import SEEDS
from irn_pipeline.structures import strided_size
from irn_pipeline.weight_files import is_trained

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_TIMED = 2
"""Steps that are timed, after one that is not."""
_SHORTER = {
    "train_cam": "fewer --train_cam.epochs, a smaller --train_cam.crop",
    "make_cam": "smaller images (--make_cam.scales, or the side of the seeds, such as --make_cam.pixel_side)",
    "mine_relations": "more cores, smaller images",
    "train_irn": "fewer --train_irn.epochs, a smaller --train_irn.crop",
    "synthesize_labels": "a smaller --synthesize_labels.exp_times, smaller images",
}


@dataclass(frozen=True)
class Work:
    """What a stage has to do.

    Attributes:
        stage: its name.
        amount: in words.
        count: pictures that go through it.
        seconds: for each of them.
    """

    stage: str
    amount: str
    count: int
    seconds: float

    @property
    def total(self) -> float:
        """Seconds for all."""
        return self.count * self.seconds


def forecast(data: DataSet, execution: Execution, params: Mapping[str, Any], stages: Sequence[str]) -> str:
    """A table of how long stages will take on this machine, as busy as it is now.

    Args:
        data: the data set.
        execution: device, precision, workers.
        params: parameters of the command's stages, by name.
        stages: those that will be run.

    Raises:
        DataError: the picture of median size cannot be read.
        ConfigError: there is no such network.
    """
    bench = _Bench(data, execution, params)
    kinds: dict[str, Callable[[], Work | None]] = {
        "train_cam": bench.train_cam, "make_cam": bench.make_cam, "mine_relations": bench.mine_relations,
        "train_irn": bench.train_irn, "synthesize_labels": bench.synthesize_labels,
    }  # fmt: skip
    found = [kinds[name]() for name in stages if name in params and name in kinds]
    return table([work for work in found if work is not None], on_gpu=bench.device.type == "cuda")


def table(works: list[Work], *, on_gpu: bool) -> str:
    """One line a stage, their sum, and what would make it shorter."""
    if not works:
        return "nothing to time: no stage of these runs a network"
    width = max(len(work.amount) for work in works)
    lines = [f"{work.stage:<18} {work.amount:<{width}}  {in_words(work.total)}" for work in works]
    longest = max(works, key=lambda work: work.total)
    shorter = _SHORTER[longest.stage] + ("" if on_gpu else ", a GPU")
    together = in_words(sum(work.total for work in works))
    return "\n".join(
        [
            "how long it will take here, from a few timed steps:",
            *lines,
            f"{'together':<18} {'':<{width}}  {together}",
            f"to save time: {longest.stage} takes longest; give {shorter}",
        ]
    )


def in_words(seconds: float) -> str:
    """A duration as a person says it.

    Example:
        >>> in_words(0.2), in_words(42), in_words(600), in_words(9000)
        ('1 s', '42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Bench:
    """Times one picture's share of each stage's work."""

    def __init__(self, data: DataSet, execution: Execution, params: Mapping[str, Any]) -> None:
        self.data, self.execution, self.params = data, execution, params
        self.device = execution.torch_device()
        record = median_picture(data)
        start = time.perf_counter()
        self.image = read_pixels(record)
        self.reading = (time.perf_counter() - start) / execution.worker_count
        self.size = (self.image.shape[0], self.image.shape[1])
        self.shown = read_rgb(record)
        counts = [len(record.class_ids) for record in data.items]
        self.classes = np.arange(max(round(sum(counts) / max(len(counts), 1)), 1))

    def train_cam(self) -> Work | None:
        from irn_pipeline.datasets.transforms import scaled_size
        from irn_pipeline.nn.cam_network import CamNetwork

        params = self.params["train_cam"]
        if not is_trained(params):
            return None
        network = CamNetwork(
            num_classes=max(self.data.images.num_classes, 1),
            backbone=_network_name(params),
            frozen_stages=params.frozen_stages,
            frozen_batch_norm=params.frozen_batch_norm,
        )
        self._adapt(network)
        pictures = round((len(self.data.items) + len(self.data.negatives)) * (1 - params.held_out))
        if params.head == "probe":
            network.eval().to(self.device)
            scale = min(1.0, params.long_side[-1] / max(self.size))
            image = self._picture(scaled_size(self.size, scale))
            seconds = self._timed(lambda: network.paired_activation_maps(image), times=1)
            return Work("train_cam", f"{pictures} images", pictures, self.reading + seconds)
        seconds = self._step(network, params, lambda output: output.float().square().mean())
        return _training("train_cam", params, pictures, seconds)

    def train_irn(self) -> Work | None:
        import torch

        from irn_pipeline.nn.irn_losses import irn_losses
        from irn_pipeline.nn.irn_network import IrnNetwork
        from irn_pipeline.ops.affinity import pair_paths

        params = self.params["train_irn"]
        if not is_trained(params):
            return None
        paths, side = pair_paths(params.radius), params.crop // 4
        labels = torch.randint(0, 2, (self._batch(params), side, side), dtype=torch.uint8, device=self.device)

        def loss(output: tuple[Tensor, Tensor]) -> Tensor:
            logits, displacement = output
            return irn_losses(torch.sigmoid(logits.float()), displacement.float(), labels, paths).total

        network = IrnNetwork(backbone=_network_name(params))
        self._adapt(network)
        seconds = self._step(network, params, loss)
        return _training("train_irn", params, len(self.data.items), seconds)

    def make_cam(self) -> Work | None:
        from irn_pipeline.datasets.transforms import scaled_size
        from irn_pipeline.nn.backbone import fold_batch_norms
        from irn_pipeline.nn.cam_network import CamNetwork

        params = self.params["make_cam"]
        if params.from_cams or params.from_model is not None or "train_cam" not in self.params:
            return None
        network = CamNetwork(
            num_classes=max(self.data.images.num_classes, 1), backbone=_network_name(self.params["train_cam"])
        )
        self._adapt(network)
        fold_batch_norms(network.eval().backbone)
        network.to(self.device)
        if (size_of := SEEDS[params.seeds].size) is None:
            sizes = [scaled_size(self.size, scale) for scale in params.scales]
        else:  # every picture is looked at twice: to fit a classifier of cells, and to make maps by it
            sizes = [size_of(params, self.size)] * 2
        pictures = [self._picture(size) for size in sizes]
        seconds = self._timed(lambda: [network.paired_activation_maps(one) for one in pictures], times=1)
        return self._each("make_cam", seconds)

    def mine_relations(self) -> Work:
        params, maps = self.params["mine_relations"], self._maps(self.size)

        def label() -> None:
            confident_label(
                self.shown, maps, self.classes, fg_threshold=params.fg_threshold, bg_threshold=params.bg_threshold,
                crf=CrfParams(iterations=params.crf_iterations), backend=params.crf_backend,
            )  # fmt: skip

        seconds = self._timed(label) / self.execution.worker_count
        return self._each("mine_relations", seconds)

    def synthesize_labels(self) -> Work:
        from irn_pipeline.nn.irn_network import IrnNetwork
        from irn_pipeline.ops.labels import labels_from_scores, walk_scores

        params, (h, w) = self.params["synthesize_labels"], strided_size(self.size)
        name = _network_name(self.params["train_irn"]) if "train_irn" in self.params else "resnet50"
        network = IrnNetwork(backbone=name).eval().to(self.device)
        self._adapt(network)
        picture, cam = self._picture(self.size), self._maps((h, w))
        # An untrained network's displacement would part the picture into hundreds of instances.
        displacement = np.zeros((2, h, w), np.float32)

        def labels() -> None:
            boundary, _ = network.predict(picture)
            walked, owners = walk_scores(
                cam, self.classes, boundary.cpu().numpy(), displacement, self.size, params, device=self.device
            )
            labels_from_scores(walked, owners, self.size, replace(params, bg_search=()))

        return self._each("synthesize_labels", self._timed(labels, times=1))

    def _each(self, stage: str, seconds: float) -> Work:
        count = len(self.data.items)
        return Work(stage, f"{count} images", count, self.reading + seconds)

    def _adapt(self, network: torch.nn.Module) -> None:
        from irn_pipeline.nn.input_channels import take_channels

        take_channels(network, self.data.channels)

    def _step(self, network: torch.nn.Module, params: Any, loss: Callable[[Any], Tensor]) -> float:
        """Seconds a picture of a training step on random crops."""
        import torch

        count = self._batch(params)
        network.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        crops = torch.rand(count, self.data.channels, params.crop, params.crop, device=self.device)
        crops = crops.to(memory_format=torch.channels_last)

        def step() -> None:
            with self.execution.autocast():
                output = network(crops)
            loss(output).backward()  # type: ignore[no-untyped-call]

        with torch.enable_grad():
            return self._timed(step, inference=False) / count

    def _batch(self, params: Any) -> int:
        """Pictures of a timed step: on a CPU they take time in proportion, and two tell enough."""
        return int(params.batch_size if self.device.type == "cuda" else min(params.batch_size, 2))

    def _timed(self, work: Callable[[], object], *, times: int = _TIMED, inference: bool = True) -> float:
        """Seconds of a piece of work, which is done once before, to warm up."""
        import torch

        with torch.inference_mode(inference), self.execution.autocast():
            work()
            self._wait()
            start = time.perf_counter()
            for _ in range(times):
                work()
            self._wait()
        return (time.perf_counter() - start) / times

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _picture(self, size: tuple[int, int]) -> Tensor:
        from irn_pipeline.datasets.transforms import normalise, resize_image, to_tensor

        return normalise(resize_image(to_tensor(self.image), size).to(self.device))

    def _maps(self, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(K, H, W) maps that fall from 1 in the middle to 0 at the edge."""
        y, x = (np.abs(np.linspace(-1, 1, side, dtype=np.float32)) for side in size)
        return np.repeat((1 - np.maximum(y[:, None], x[None]))[None], len(self.classes), axis=0)


def _training(stage: str, params: Any, pictures: int, seconds: float) -> Work:
    steps = params.epochs * max(pictures // params.batch_size, 1)
    return Work(stage, f"{steps} steps of {params.batch_size} images", steps * params.batch_size, seconds)


def _network_name(params: Any) -> str:
    from irn_pipeline.nn.imagenet import network_for

    return network_for(params.backbone, params.backbone_weights)
