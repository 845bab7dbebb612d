"""Refiners equal those of the original implementations (PAMR, PAR, CAA, SEPL, SAMRefiner)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from irn_pipeline.refiners.caa import box_mask, caa, cell_attention, min_max, region_boxes
from irn_pipeline.refiners.pamr_maths import pamr, unambiguous_masks
from irn_pipeline.refiners.par import par, par_label
from irn_pipeline.refiners.sam_merge import merge_masks
from irn_pipeline.refiners.sam_prompts import (
    box_prompts,
    mask_confidence,
    mask_prompts,
    point_prompts,
    split_mask,
)


def tensors(data, *names: str) -> list[Tensor]:
    return [torch.from_numpy(data[name]) for name in names]


def assert_close(actual, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("name", "refine"), [("pamr", pamr), ("par", par)])
def test_pixel_adaptive_refinement(golden, name, refine):
    data = golden(name)
    (image,) = tensors(data, "image")
    outputs = [key for key in data if key.startswith("out_")]
    assert len(outputs) == 7
    for key in outputs:
        _, dilations, iterations, size = key.split("_")
        found = refine(
            image,
            torch.from_numpy(data[f"maps_{size}"]),
            dilations=data[f"dilations_{dilations}"].tolist(),
            iterations=int(iterations.removeprefix("it")),
        )
        assert_close(found, data[key], 1e-5)


def test_pamr_label(golden):
    data = golden("pamr_label")
    refined = pamr(*tensors(data, "image", "probs"))
    assert_close(refined, data["refined"], 1e-5)
    assert unambiguous_masks(refined).numpy().tolist() == (data["pseudo_gt"] > 0).tolist()


@pytest.mark.parametrize(("name", "backgrounds"), [("toco", (0.7, 0.25)), ("afa", (0.55, 0.35))])
def test_par_label(golden, name, backgrounds):
    data = golden("par_label")
    image, cams = tensors(data, "image", "cams")
    class_ids = np.flatnonzero(data["tags"])
    found = par_label(
        image, cams[class_ids], class_ids, backgrounds=backgrounds, box=tuple(data["img_box"].tolist())
    )
    np.testing.assert_array_equal(found, data[f"label_{name}"])


def test_caa(golden):
    data = golden("caa")
    attention, maps = tensors(data, "attention", "maps")
    refined = caa(cell_attention(attention), maps)
    assert_close(refined, data["refined"], 1e-6)
    size = data["picture_size"].tolist()
    high_res = interpolate(min_max(refined)[None], size, mode="bilinear", align_corners=False)[0]
    assert_close(high_res, data["attn_highres"], 2e-3)
    for number in range(2):
        boxes = region_boxes(data["maps"][number], 0.4)
        assert sorted(boxes.tolist()) == sorted(data[f"boxes_{number}"].tolist())


@pytest.mark.parametrize("name", ["corner", "two", "flat0", "flat1", "single", "ring"])
def test_caa_boxes(golden, name):
    data = golden("caa_boxes")
    activation = data[f"map_{name}"]
    mask = box_mask(region_boxes(activation, 0.4), activation.shape)
    np.testing.assert_array_equal(mask, data[f"mask_{name}"] > 0)


@pytest.mark.parametrize("rule", ["max_iou", "max_iou_imp", "max_iou_imp2"])
def test_sepl(golden, rule):
    data = golden("sepl")
    masks = data["masks"] > 0
    np.testing.assert_array_equal(merge_masks(data["label"], masks, rule=rule), data[f"merged_{rule}"])


def test_sepl_without_the_mask_of_the_whole_picture(golden):
    data = golden("sepl")
    masks = data["masks"] > 0
    expected = data["merged_max_iou_imp2_without_mask2"]
    np.testing.assert_array_equal(merge_masks(data["label"], np.delete(masks, 2, 0)), expected)
    np.testing.assert_array_equal(merge_masks(data["label"], masks, max_area=0.5), expected)
    np.testing.assert_array_equal(merge_masks(data["label"], masks[:0]), data["merged_max_iou_imp2_no_masks"])


def test_samrefiner_prompts(golden):
    data = golden("samrefiner_prompts")
    masks = data["masks"] > 0
    points, labels = point_prompts(masks)
    np.testing.assert_array_equal(points, data["points"])
    np.testing.assert_array_equal(labels, data["point_labels"])
    np.testing.assert_array_equal(box_prompts(masks), data["boxes"])
    for gamma in (4, 1):
        assert_close(mask_confidence(masks, gamma), data[f"gauss_gamma{gamma}"], 1e-6)
    assert_close(mask_prompts(masks)[:, ::4, ::4], data["mask_input_every4"], 1e-4)


def test_samrefiner_parts(golden):
    data = golden("samrefiner_split")
    np.testing.assert_array_equal(split_mask(data["mask"] > 0), data["parts"] > 0)


def test_samrefiner_components(golden):
    data = golden("samrefiner_split")
    apart = split_mask(data["mask"] > 0, min_pixels=1, density=np.inf, slack=-np.inf)
    expected = [data["components"] == number for number in range(1, 7)]
    assert sorted(part.tobytes() for part in apart) == sorted(part.tobytes() for part in expected)
