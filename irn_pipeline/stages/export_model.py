"""Hand a trained model to the code of its authors: SpatialEmbeddings as their checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.stage import Job, ReduceStage
from irn_pipeline.errors import ConfigError
from irn_pipeline.files.atomic import atomic_path
from irn_pipeline.trained_networks import load_segmenter

logger = logging.getLogger(__name__)
_MODEL, _BACKBONE = "spatial_embeddings", "erfnet"


@dataclass(frozen=True)
class Params:
    """Parameters of the export."""

    model: str = _MODEL
    """Trained model to export, by folder name below train_segmenter; spatial_embeddings with --backbone erfnet."""
    out: str | None = None
    """Output file. Default: export_model/MODEL.pth in the run folder."""


def run(job: Job[Params, DataSet]) -> int:
    """Write the checkpoint."""
    import torch

    from irn_pipeline.nn.original_names import to_original_spatial

    name, out = job.params.model, job.params.out
    network, checkpoint = load_segmenter(job.run, name, Execution(device="cpu"))
    if checkpoint.kind != _MODEL or checkpoint.backbone != _BACKBONE:
        raise ConfigError(
            f"--model {name}: is a {checkpoint.kind} on {checkpoint.backbone}; the authors' code has "
            f"{_MODEL} on {_BACKBONE} only"
        )
    path = Path(out) if out else job.run.stage_dir(STAGE.name) / f"{name}.pth"
    with atomic_path(path) as temporary:
        torch.save({"model_state_dict": to_original_spatial(network.state_dict())}, temporary)
    logger.info("%s: for the classes %s", path, ", ".join(checkpoint.class_names))
    return 1


STAGE: ReduceStage[Params] = ReduceStage(
    name="export_model",
    summary="Export a trained spatial_embeddings as a checkpoint of its authors' code.",
    params=Params,
    needs_data=False,
    run=run,
)
