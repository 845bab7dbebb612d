import numpy as np

from irn_pipeline.ops.palette import voc_palette


def test_palette_as_the_devkit_publishes_it():
    published = {
        0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128),
        6: (0, 128, 128), 7: (128, 128, 128), 8: (64, 0, 0), 9: (192, 0, 0), 10: (64, 128, 0),
        15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192),
    }  # fmt: skip
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    assert {index: tuple(palette[index].tolist()) for index in published} == published
    assert len(np.unique(palette, axis=0)) == 256
