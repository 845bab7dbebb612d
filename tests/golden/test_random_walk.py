from __future__ import annotations

import numpy as np
import pytest
import torch

from irn_pipeline.ops.random_walk import random_walk


@pytest.mark.parametrize(("beta", "exp_times"), [(10, 4), (10, 8), (8, 6)])
def test_walked_maps_match_the_original(golden, beta, exp_times):
    data = golden(f"random_walk_beta{beta}_times{exp_times}")
    assert (data["beta"], data["exp_times"]) == (beta, exp_times)
    cam, boundary = torch.tensor(data["cam"]), torch.tensor(data["boundary"])
    walked = random_walk(cam, boundary, radius=int(data["radius"]), beta=beta, exp_times=exp_times).numpy()
    expected = data["walked"]
    np.testing.assert_allclose(walked, expected, atol=1e-3 * expected.max(), rtol=0)
    assert (walked.argmax(0) == expected.argmax(0)).mean() >= 0.999
