"""The engines that are installed are compared on a small picture; those that are not are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import inference_engines
from irn_pipeline.nn.backbone import build_backbone


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "weights.pt")
    return f"resnet18={tmp_path / 'weights.pt'}"


def test_engines_are_compared_with_ours(
    weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: Path) -> inference_engines.Pass:
        raise ModuleNotFoundError("No module named 'onnxruntime'")

    monkeypatch.setattr(inference_engines, "exported", lambda network, folder, example: folder)
    monkeypatch.setattr(inference_engines, "_onnxruntime", missing)
    words = ["--networks", "resnet18", "--weights", weights, "--size", "48", "64", "--rounds", "2"]
    threads = torch.get_num_threads()
    try:
        assert inference_engines.main([*words, "--engines", "ours, bf16", "ONNX Runtime"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = {line["engine"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(lines) == ["ONNX Runtime", "ours", "ours, bf16"]
    assert "No module named 'onnxruntime'" in lines["ONNX Runtime"]["problem"]
    assert (lines["ours"]["times_as_fast"], lines["ours"]["difference"]) == (1, 0)
    assert 0 < lines["ours, bf16"]["difference"] < 0.2
    assert all(lines[engine]["cpu_seconds"] > 0 for engine in ("ours", "ours, bf16"))
