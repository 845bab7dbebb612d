from __future__ import annotations

import pytest

from irn_pipeline.ops.affinity import pair_paths


@pytest.mark.parametrize("radius", [5, 10])
def test_offsets_and_path_lengths_match_the_original(golden, radius):
    expected = golden(f"paths_radius{radius}")
    paths = pair_paths(radius)
    lengths = {tuple(o): len(cells) for o, cells in zip(paths.offsets.tolist(), paths.paths, strict=True)}
    destinations = map(tuple, expected["destinations"].tolist())
    assert lengths == dict(zip(destinations, expected["path_lengths"].tolist(), strict=True))
    assert len(paths) == expected["n_paths"]
