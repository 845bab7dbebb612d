"""Merged activation maps equal those of the original implementation."""

import numpy as np
import torch

from irn_pipeline.ops.cam import merge_scales


def test_merged_maps(golden):
    data = golden("cam_merge")
    height, width = (int(side) for side in data["image_size"])
    maps = [torch.from_numpy(data[f"scale{number}"]) for number in range(4)]
    cam, high_res_cam = merge_scales(maps, (height, width))
    step = int(data["subsample"])
    np.testing.assert_allclose(cam.numpy(), data["cam"], atol=1e-5, rtol=0)
    assert high_res_cam.shape[1:] == (height, width)
    np.testing.assert_allclose(
        high_res_cam[:, ::step, ::step].numpy(), data["high_res_subsampled"], atol=1e-5, rtol=0
    )
