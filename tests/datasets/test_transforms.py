import numpy as np
import pytest
import torch
from PIL import Image

from irn_pipeline.datasets.transforms import (
    Crop,
    normalise,
    random_crop,
    resize_image,
    resize_label,
    scaled_size,
    stride4_label,
    to_tensor,
    to_unit_tensor,
)


def test_bicubic_resize_is_pillows():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for size in ((20, 30), (57, 83), (40, 60)):
        ours = resize_image(to_tensor(image), size).permute(1, 2, 0).numpy().astype(int)
        theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(ours - theirs).max() <= 1


def test_normalise_undoes_to_the_picture():
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    back = (normalise(image) * std.view(3, 1, 1) + mean.view(3, 1, 1)) * 255
    assert torch.allclose(back, image.float(), atol=1e-3)


def test_unit_tensor_has_channels_first_and_white_is_one():
    image = np.array([[[0, 51, 255], [255, 0, 102]]], np.uint8)
    found = to_unit_tensor(image)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor([[[0, 1]], [[0.2, 0]], [[1, 0.4]]]))


def test_labels_keep_their_values():
    label = torch.tensor([[[0, 255], [7, 3]]], dtype=torch.uint8)
    grown = resize_label(label, (4, 6))
    assert grown[0].tolist() == [[0, 0, 0, 255, 255, 255]] * 2 + [[7, 7, 7, 3, 3, 3]] * 2


@pytest.mark.parametrize("size", [(10, 30), (30, 10), (16, 16), (5, 5), (40, 50)])
def test_crop_shows_a_window_of_the_picture_and_pads_the_rest(size):
    picture = torch.arange(1, size[0] * size[1] + 1, dtype=torch.float32).reshape(1, *size)
    for seed in range(20):
        window = random_crop(size, 16, np.random.default_rng(seed))
        cut = window.apply(picture, -1.0)
        assert cut.shape == (1, 16, 16)
        shown = cut[cut >= 0]
        assert len(shown) == min(size[0], 16) * min(size[1], 16)
        (sy, sx), (h, w) = window.source, window.size
        assert torch.equal(shown.sort().values, picture[0, sy : sy + h, sx : sx + w].flatten())


def test_crop_reaches_every_place():
    tops = {random_crop((20, 16), 16, np.random.default_rng(seed)).source[0] for seed in range(200)}
    assert tops == {0, 1, 2, 3, 4}
    places = {random_crop((13, 16), 16, np.random.default_rng(seed)).target[0] for seed in range(200)}
    assert places == {0, 1, 2, 3}


def test_crop_moves_picture_and_label_alike():
    window = Crop(side=8, source=(1, 0), target=(0, 2), size=(8, 6))
    image = torch.rand(3, 10, 6)
    label = (image[:1] * 200).to(torch.uint8)
    cut_image, cut_label = window.apply(image, 0.0), window.apply(label, 255)
    inside = cut_label[0] != 255
    assert torch.equal((cut_image[0][inside] * 200).to(torch.uint8), cut_label[0][inside])
    assert int(inside.sum()) == 48


def test_stride4_label_takes_the_pixel_at_the_middle():
    label = torch.arange(64).reshape(8, 8)
    assert stride4_label(label).tolist() == [[18, 22], [50, 54]]


def test_scaled_size_never_vanishes():
    assert scaled_size((3, 100), 0.1) == (1, 10)
    assert scaled_size((5, 7), 2.0) == (10, 14)
