"""The original's checkpoints load by name, and its networks' outputs are reproduced."""

import numpy as np
import pytest
import torch

from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.nn.original_names import from_original, load_original


def original_state(names, shapes) -> dict[str, torch.Tensor]:
    """The weight fill that the golden README defines."""
    state = {}
    for k, (name, shape_text) in enumerate(zip(names, shapes, strict=True)):
        text = str(shape_text).strip("()[] ")
        shape = tuple(int(part) for part in text.replace(" ", "").split(",") if part)
        count = int(np.prod(shape))
        i = np.arange(count, dtype=np.float64)
        if len(shape) == 4:
            values = np.sin(0.37 * i**1.5 + k) * np.sqrt(2 / (count / shape[0]))
        else:
            values = 0.02 * np.sin(0.37 * i + k)
        if (len(shape) == 1 and str(name).endswith(".weight")) or str(name).endswith(".running_var"):
            values = values + 1
        state[str(name)] = torch.from_numpy(values.astype(np.float32)).reshape(shape)
    return state


@pytest.fixture(scope="module")
def case(golden):
    return golden("networks")


def load_strictly(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    result = network.load_state_dict(from_original(state), strict=False)
    assert [n for n in result.missing_keys if not n.endswith("num_batches_tracked")] == []
    assert result.unexpected_keys == []
    network.eval()


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())


def test_irn_network(case):
    network = IrnNetwork()
    load_strictly(network, original_state(case["irn_names"], case["irn_shapes"]))
    boundary, displacement = network.predict(torch.from_numpy(case["image"]), pad_to=128)
    assert relative_error(boundary, case["boundary"][0]) < 1e-3
    assert relative_error(displacement, case["displacement"]) < 1e-3


@torch.no_grad()
def test_cam_network(case):
    network = CamNetwork(num_classes=20)
    load_strictly(network, original_state(case["cam_names"], case["cam_shapes"]))
    maps = network.paired_activation_maps(torch.from_numpy(case["image"]))
    assert relative_error(maps, case["cam"]) < 1e-3


def test_load_original_refuses_the_other_network(case, tmp_path):
    state = original_state(case["cam_names"], case["cam_shapes"])
    torch.save(state, tmp_path / "res50_cam.pth")
    network = CamNetwork(num_classes=20)
    load_original(network, tmp_path / "res50_cam.pth")
    assert torch.equal(network.classifier.weight, state["newly_added.0.weight"])
    for other in (IrnNetwork(), CamNetwork(num_classes=3)):
        with pytest.raises(CheckpointError, match=r"res50_cam\.pth"):
            load_original(other, tmp_path / "res50_cam.pth")
