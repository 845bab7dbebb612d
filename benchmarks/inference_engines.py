"""Frozen passes of the backbones in other engines than ours: CPU seconds of one thread, and how far the maps differ.

    pip install onnx onnxruntime onnxscript openvino      # into an environment for this alone
    python -m benchmarks.inference_engines [--networks tf_efficientnet_lite0 resnet50] [--weights resnet50=FILE]
        [--engines ours ...] [--size 384 512] [--rounds 10]

Every engine passes the same generated picture through the network, in turn. It prints one JSON object a network and
engine: the median of the CPU seconds, how many times as fast as `ours` it is (of the rounds, the median of the ratios),
and the largest difference of a map from our float32 one as a share of its largest value. An engine that is not
installed, or that cannot take the network, is named with the reason. The int8 ones are calibrated on other generated
pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from irn_pipeline.datasets.synthetic import make_picture
from irn_pipeline.datasets.transforms import normalise, to_tensor
from irn_pipeline.nn.backbone import Backbone, build_backbone, fold_batch_norms, load_backbone_weights
from irn_pipeline.structures import FloatArray

Pass = Callable[[Tensor], list[FloatArray]]
"""(1, 3, H, W) normalised picture -> the backbone's five maps, (1, C_i, h_i, w_i)."""
_CALIBRATED_ON = 16


class Maps(nn.Module):
    """The maps of a backbone, as a tuple."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (B, C_i, h_i, w_i)."""
        return tuple(self.backbone(images))


def picture(size: tuple[int, int], seed: int) -> Tensor:
    """A generated picture, (1, 3, H, W), normalised."""
    return normalise(to_tensor(make_picture(np.random.default_rng(seed), size).image))[None]


def network_of(name: str, weights: str) -> Maps:
    """A backbone ready for inference, as the stages make it ready."""
    backbone = build_backbone(name)
    load_backbone_weights(backbone, weights)
    fold_batch_norms(backbone.eval().requires_grad_(False))
    return Maps(backbone).eval()


def _ours(network: Maps, _: Path, dtype: torch.dtype | None = None) -> Pass:
    ready = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: Tensor) -> list[FloatArray]:
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype) if dtype else nullcontext():
            return [maps.float().numpy() for maps in ready(images)]

    return run


def _compiled(network: Maps, _: Path) -> Pass:
    settings: Any = import_module("torch._inductor.config")
    settings.freezing = True  # weights are constants
    compiled = torch.compile(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]

    def run(images: Tensor) -> list[FloatArray]:
        with torch.no_grad():
            return [maps.float().numpy() for maps in compiled(images)]

    return run


def exported(network: Maps, folder: Path, example: Tensor) -> Path:
    """The network as an ONNX file."""
    path = folder / "network.onnx"
    if not path.is_file():
        torch.onnx.export(
            network.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
            (example,), path, input_names=["images"], dynamo=True, verbose=False,
        )  # fmt: skip
    return path


def quantised(path: Path, size: tuple[int, int]) -> Path:
    """The network of an ONNX file with weights and activations of 8 bits; every channel has its own scale."""
    quantization = import_module("onnxruntime.quantization")
    place = path.with_name("quantised.onnx")
    if not place.is_file():
        pictures = iter([{"images": picture(size, 100 + n).numpy()} for n in range(_CALIBRATED_ON)])

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
            def get_next(self) -> dict[str, FloatArray] | None:
                return next(pictures, None)

        prepared = path.with_name("prepared.onnx")
        quantization.quant_pre_process(str(path), str(prepared))
        quantization.quantize_static(
            str(prepared), str(place), Reader(), per_channel=True, quant_format=quantization.QuantFormat.QDQ
        )
    return place


def _onnxruntime(path: Path) -> Pass:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[FloatArray]:
        found: list[FloatArray] = session.run(None, {"images": images.numpy()})
        return found

    return run


def _openvino(path: Path, precision: str) -> Pass:
    openvino = import_module("openvino")
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    model = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(images: Tensor) -> list[FloatArray]:
        found = model([images.numpy()])
        return [np.asarray(found[output], np.float32) for output in model.outputs]

    return run


def engines(size: tuple[int, int]) -> dict[str, Callable[[Maps, Path], Pass]]:
    """How each engine is made ready: network, scratch folder -> a pass."""
    example = picture(size, 0)

    def onnx(network: Maps, folder: Path) -> Path:
        return exported(network, folder, example)

    return {
        "ours": _ours,
        "ours, bf16": lambda network, folder: _ours(network, folder, torch.bfloat16),
        "torch.compile": _compiled,
        "ONNX Runtime": lambda network, folder: _onnxruntime(onnx(network, folder)),
        "ONNX Runtime, int8": lambda network, folder: _onnxruntime(quantised(onnx(network, folder), size)),
        "OpenVINO": lambda network, folder: _openvino(onnx(network, folder), "f32"),
        "OpenVINO, bf16": lambda network, folder: _openvino(onnx(network, folder), "bf16"),
        "OpenVINO, int8": lambda network, folder: _openvino(quantised(onnx(network, folder), size), "f32"),
    }


def compare(
    name: str, weights: str, chosen: list[str], size: tuple[int, int], rounds: int
) -> Iterator[dict[str, Any]]:
    """Figures of every engine with one network; `ours` is always among them."""
    image, ready, passes = picture(size, 1), engines(size), {}
    with tempfile.TemporaryDirectory() as folder:
        for engine in dict.fromkeys(["ours", *chosen]):
            try:
                # Each has a network of its own: some change it.
                passes[engine] = ready[engine](network_of(name, weights), Path(folder))
                passes[engine](image)
            except Exception as error:  # engines raise many types
                if engine == "ours":
                    raise
                passes.pop(engine, None)
                yield {"network": name, "engine": engine, "problem": f"{type(error).__name__}: {error}"[:300]}
        expected = passes["ours"](image)
        seconds: dict[str, list[float]] = {engine: [] for engine in passes}
        for turn in range(rounds):
            order = list(passes)
            for engine in order[turn % len(order) :] + order[: turn % len(order)]:
                start = time.process_time()
                passes[engine](image)
                seconds[engine].append(time.process_time() - start)
        for engine, run in passes.items():
            ratios = [ours / theirs for ours, theirs in zip(seconds["ours"], seconds[engine], strict=True)]
            pairs = zip(run(image), expected, strict=True)
            difference = max(float(np.abs(found - maps).max() / np.abs(maps).max()) for found, maps in pairs)
            yield {
                "network": name, "engine": engine, "cpu_seconds": round(median(seconds[engine]), 4),
                "times_as_fast": round(median(ratios), 2), "difference": float(f"{difference:.1g}"),
            }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["tf_efficientnet_lite0", "resnet50"])
    parser.add_argument("--weights", nargs="*", default=[], metavar="NETWORK=FILE", help="default: installed")
    parser.add_argument(
        "--engines", nargs="+", default=list(engines((32, 32))), choices=list(engines((32, 32)))
    )
    parser.add_argument("--size", type=int, nargs=2, default=(384, 512), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    weights = dict(entry.split("=", 1) for entry in options.weights)
    for name in options.networks:
        given = weights.get(name, "installed")
        for line in compare(name, given, options.engines, tuple(options.size), options.rounds):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
