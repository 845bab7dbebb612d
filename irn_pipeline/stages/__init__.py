"""The pipeline's stages, one module each: parameters, the function that does the work, and the declaration `STAGE`."""

NAMES = (
    *("train_cam", "make_cam", "mine_relations", "train_irn", "synthesize_labels", "train_segmenter"),
    *("evaluate", "report", "predict", "export_labels", "export_model", "sweep", "status"),
)
"""Names of all stages: the sections that a YAML file may have."""
