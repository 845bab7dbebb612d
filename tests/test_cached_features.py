"""Crops cut out of feature maps that were computed once: the maps and labels of the views they come from."""

from __future__ import annotations

import pickle
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from irn_pipeline.cached_features import STRIDES, FeatureSamples, feature_samples
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.transforms import normalise, resize_image, resize_label, scaled_size, to_tensor
from irn_pipeline.engine.execution import Execution
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.structures import ImageRecord, LabelArray

FLOAT16 = {"rtol": 2e-3, "atol": 2e-3}


class Setting(NamedTuple):
    """A network, a picture, and its label, in which nearly every cell has another value."""

    network: IrnNetwork
    record: ImageRecord
    label: LabelArray
    folder: Path

    def samples(
        self, *, scales: tuple[float, ...] = (1.0,), crop: int = 64, seed: int = 0
    ) -> AbstractContextManager[FeatureSamples]:
        """The samples of the one picture."""
        return feature_samples(
            self.network.backbone, (self.record,), read_label=lambda _: self.label, scales=scales, crop=crop,
            folder=self.folder, execution=Execution(device="cpu", precision="float32", seed=seed, quiet=True),
        )  # fmt: skip

    def view(self, scale: float, *, mirrored: bool, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The normalised picture (3, H, W) and its label at stride 4, padded to `sides`."""
        image = to_tensor(read_image(self.record.path))
        size = scaled_size((image.shape[-2], image.shape[-1]), scale)
        image = normalise(resize_image(image, size))
        label = resize_label(torch.from_numpy(self.label)[None], size)[0]
        if mirrored:
            image, label = image.flip(-1), label.flip(-1)
        margins = (0, sides[1] - size[1], 0, sides[0] - size[0])
        return F.pad(image, margins), F.pad(label, margins, value=255)[2::4, 2::4]


def made(folder: Path, height: int, width: int) -> Setting:
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / "a.png")
    label = np.kron(rng.integers(0, 255, (height, width)), np.ones((4, 4)))[:height, :width].astype(np.uint8)
    network = IrnNetwork(backbone="resnet18", displacement_context=True).train()
    return Setting(network, ImageRecord("a", folder / "a.png", (0,)), label, folder / "run")


def batched(maps: list[Tensor]) -> list[Tensor]:
    return [one[None].float().permute(0, 3, 1, 2) for one in maps]


@torch.no_grad()
def test_where_the_crop_is_the_picture_the_branches_see_what_they_see_without_the_cache(
    tmp_path: Path,
) -> None:
    setting = made(tmp_path, 64, 64)
    seen = set()
    with setting.samples() as samples:
        for epoch in range(8):
            maps, label = samples[epoch, 0]
            views = [setting.view(1.0, mirrored=mirrored, sides=(64, 64)) for mirrored in (False, True)]
            mirrored = [torch.equal(label, its_label) for _, its_label in views].index(True)
            seen.add(mirrored)
            image = views[mirrored][0]
            for ours, theirs in zip(batched(maps), setting.network.backbone(image[None]), strict=True):
                torch.testing.assert_close(ours, theirs, **FLOAT16)
            logits, displacement = setting.network(image[None])
            torch.testing.assert_close(setting.network.from_features(batched(maps))[0], logits, **FLOAT16)
            torch.testing.assert_close(
                setting.network.from_features(batched(maps))[1], displacement, **FLOAT16
            )
    assert seen == {0, 1}


@torch.no_grad()
@pytest.mark.parametrize("size", [(50, 135), (100, 30)])
def test_a_crop_is_a_window_of_the_maps_of_one_view(tmp_path: Path, size: tuple[int, int]) -> None:
    setting = made(tmp_path, *size)
    views, whole = [], []
    for scale in (0.5, 1.0):
        sides = tuple(-(-max(side, 48) // 16) * 16 for side in scaled_size(size, scale))
        for mirrored in (False, True):
            views.append(setting.view(scale, mirrored=mirrored, sides=sides))
            whole.append(setting.network.backbone(views[-1][0][None]))
    found = set()
    with setting.samples(scales=(0.5, 1.0), crop=48) as samples:
        for epoch in range(60):
            maps, label = samples[epoch, 0]
            assert label.shape == (12, 12)
            places = [
                (number, top, left)
                for number, (_, its_label) in enumerate(views)
                for top in range(0, its_label.shape[0] - 11, 4)
                for left in range(0, its_label.shape[1] - 11, 4)
                if torch.equal(its_label[top : top + 12, left : left + 12], label)
            ]
            assert len(places) == 1
            number, top, left = places[0]
            found.add(places[0])
            for one, of_view, stride in zip(batched(maps), whole[number], STRIDES, strict=True):
                y, x, n = top * 4 // stride, left * 4 // stride, 48 // stride
                torch.testing.assert_close(one, of_view[..., y : y + n, x : x + n], **FLOAT16)
    assert {number for number, _, _ in found} == {0, 1, 2, 3}
    assert len(found) > 8, "windows move"


def test_samples_follow_from_seed_epoch_and_index_in_every_process(tmp_path: Path) -> None:
    setting = made(tmp_path, 80, 112)

    def values(samples: FeatureSamples) -> list[Tensor]:
        return [torch.cat([one.flatten() for one in samples[epoch, 0][0]]) for epoch in range(12)]

    with setting.samples(crop=48) as samples:
        first = values(samples)
        copy = pickle.dumps(samples)
        assert len(copy) < 20_000, "the features do not travel"
        assert all(map(torch.equal, first, values(pickle.loads(copy))))
    with setting.samples(crop=48) as samples:
        assert all(map(torch.equal, first, values(samples)))
    with setting.samples(crop=48, seed=1) as samples:
        assert not all(map(torch.equal, first, values(samples)))


def test_a_picture_without_a_class_is_all_background(tmp_path: Path) -> None:
    setting = made(tmp_path, 64, 64)
    setting = setting._replace(record=ImageRecord("a", setting.record.path, ()))
    with setting.samples() as samples:
        assert not samples[0, 0][1].any()


def test_the_features_are_gone_at_the_end_however_it_comes(tmp_path: Path) -> None:
    setting = made(tmp_path, 64, 64)
    with setting.samples():
        assert len(list(setting.folder.iterdir())) == 1
    assert not list(setting.folder.iterdir())
    with pytest.raises(KeyboardInterrupt), setting.samples():
        raise KeyboardInterrupt
    assert not list(setting.folder.iterdir())


def test_features_that_do_not_fit_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = made(tmp_path, 64, 64)
    with setting.samples(scales=(1.0, 2.0)) as samples:
        samples[0, 0]
        written = samples.path.stat().st_size

    def disk(free: float) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: (0, 0, free))
        monkeypatch.setattr("irn_pipeline.cached_features.shutil.disk_usage", lambda _: Usage(free))

    class Usage(NamedTuple):
        free: float

    disk(1.12 * written)
    with setting.samples(scales=(1.0, 2.0)):
        pass
    disk(1.1 * written)
    with (
        pytest.raises(ConfigError, match=r"1 images take 0\.0 GiB.*fewer or smaller scales"),
        setting.samples(scales=(1.0, 2.0)),
    ):
        pass


def test_a_feature_beyond_float16_is_refused(tmp_path: Path) -> None:
    setting = made(tmp_path, 64, 64)
    with torch.no_grad():
        for parameter in setting.network.backbone.parameters():
            parameter.mul_(100)
    with pytest.raises(ConfigError, match=r"a\.png is too large for float16"), setting.samples():
        pass


def test_a_label_of_another_size_is_refused(tmp_path: Path) -> None:
    setting = made(tmp_path, 64, 64)._replace(label=np.zeros((64, 60), np.uint8))
    with (
        pytest.raises(DataError, match=r"a\.png: is 64x64 pixels, its confident label is for 64x60"),
        setting.samples(),
    ):
        pass
