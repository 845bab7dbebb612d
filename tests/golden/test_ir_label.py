"""Confident labels equal those of the original implementation on 99.9 % of the pixels."""

from irn_pipeline.ops.crf import confident_label


def test_confident_label(golden):
    data = golden("ir_label")
    label = confident_label(
        data["image"],
        data["high_res_cam"],
        data["keys"],
        fg_threshold=float(data["fg_threshold"]),
        bg_threshold=float(data["bg_threshold"]),
    )
    assert label.shape == data["ir_label"].shape
    assert (label == data["ir_label"]).mean() >= 0.999
