from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from irn_pipeline.errors import DataError, ShapeError
from irn_pipeline.export.voc_png import MAX_OBJECTS, labelmap, object_map, save_palette_png
from irn_pipeline.ops.palette import voc_palette
from irn_pipeline.structures import Instances


def instances(masks, scores, class_ids=None):
    class_ids = np.zeros(len(scores)) if class_ids is None else class_ids
    return Instances(np.array(scores, np.float32), np.array(masks, np.bool_), np.array(class_ids, np.int64))


@pytest.mark.parametrize("shape", [(16, 16), (1, 256), (256, 1), (1, 1)])
def test_indices_come_back_exactly(tmp_path, shape):
    index = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    before = index.copy()
    save_palette_png(tmp_path / "a.png", index)
    picture = Image.open(tmp_path / "a.png")
    assert (picture.format, picture.mode, picture.size) == ("PNG", "P", shape[::-1])
    np.testing.assert_array_equal(np.asarray(picture), index)
    np.testing.assert_array_equal(index, before)
    palette = picture.getpalette() or []
    assert tuple(palette[3:6]) == (128, 0, 0)
    assert palette == voc_palette().ravel().tolist()
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), voc_palette()[index])


def test_slices_and_few_values_stay_eight_bits_wide(tmp_path):
    index = np.arange(64, dtype=np.uint8).reshape(8, 8)[::2, ::-1] % 2
    save_palette_png(tmp_path / "a.part", index)
    # Byte 24 of a PNG is its bit depth, byte 25 its colour type (3: indexed).
    assert (tmp_path / "a.part").read_bytes()[24:26] == bytes([8, 3])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.part")), index)


@pytest.mark.parametrize(
    "index", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int64), np.zeros((0, 4), np.uint8)]
)
def test_arrays_that_are_no_index(tmp_path, index):
    with pytest.raises(ShapeError, match=r"a\.png"):
        save_palette_png(tmp_path / "a.png", index)
    assert not (tmp_path / "a.png").exists()


def test_the_best_is_on_top():
    left, middle, right = [[1, 1, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 1, 1]]
    painted = object_map(instances([left, middle, right], [0.5, 0.9, 0.7]), (1, 4))
    assert painted.ids.tolist() == [[1, 2, 2, 3]]
    assert painted.positions.tolist() == [0, 1, 2]
    assert painted.left_out == 0
    painted = object_map(instances([left, middle, right], [0.9, 0.1, 0.7]), (1, 4))
    assert painted.ids.tolist() == [[1, 1, 3, 3]]


def test_no_instance():
    for nothing in (Instances.empty((3, 2)), Instances.empty((0, 0))):
        painted = object_map(nothing, (3, 2))
        assert painted.ids.tolist() == [[0, 0]] * 3
        assert painted.ids.dtype == np.uint8
        assert (len(painted.positions), painted.left_out) == (0, 0)


@pytest.mark.parametrize("count", [253, 254, 255, 256, 300])
def test_more_instances_than_ids(count):
    pixels = np.eye(400, dtype=np.bool_).reshape(400, 20, 20)[:count]
    scores = np.random.default_rng(count).permutation(count) + 1
    painted = object_map(instances(pixels, scores), (20, 20))
    assert painted.left_out == max(0, count - MAX_OBJECTS)
    kept = [n for n in range(count) if scores[n] > count - MAX_OBJECTS]
    assert painted.positions.tolist() == kept
    flat = painted.ids.ravel()
    assert flat[kept].tolist() == list(range(1, len(kept) + 1))
    assert np.count_nonzero(flat) == len(kept)
    assert flat.max() < 255


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 8))
def test_every_pixel_has_the_best_of_its_instances(seed, count):
    rng = np.random.default_rng(seed)
    found = instances(rng.random((count, 5, 6)) < 0.4, rng.permutation(count))
    ids = object_map(found, (5, 6)).ids
    for y, x in np.ndindex(5, 6):
        covering = [n for n in range(count) if found.masks[n, y, x]]
        best = max(covering, key=lambda n: found.scores[n], default=None)
        assert ids[y, x] == (0 if best is None else best + 1)


def test_masks_of_another_size():
    with pytest.raises(ShapeError, match="4x6"):
        object_map(instances(np.ones((1, 6, 4)), [1]), (4, 6))


def test_the_label_map_has_the_colours_of_the_pngs(tmp_path):
    names = [f"class {number}" for number in range(1, 255)]
    heading, *lines = labelmap(names)
    assert heading == "# label:color_rgb:parts:actions"
    assert lines[:3] == ["background:0,0,0::", "class 1:128,0,0::", "class 2:0,128,0::"] and len(lines) == 255
    save_palette_png(tmp_path / "a.png", np.arange(255, dtype=np.uint8)[None])
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))[0].tolist()
    assert [line.split(":")[1] for line in lines] == [",".join(map(str, colour)) for colour in shown]


def test_names_in_the_label_map():
    assert [line.split(":")[0] for line in labelmap(["background", "naïve 犬"])[1:]] == [
        "_background_",
        "background",
        "naïve 犬",
    ]
    for name in ("traffic:light", "#1"):
        with pytest.raises(DataError, match=name):
            labelmap(["cat", name])
