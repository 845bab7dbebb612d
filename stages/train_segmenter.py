"""The command `python -m stages.train_segmenter`."""

from irn_pipeline.stages.command import run_stage_command
from irn_pipeline.stages.train_segmenter import STAGE

if __name__ == "__main__":
    raise SystemExit(run_stage_command(STAGE))
