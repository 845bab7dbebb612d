"""The command `python -m stages.train_cam`."""

from irn_pipeline.stages.command import run_stage_command
from irn_pipeline.stages.train_cam import STAGE

if __name__ == "__main__":
    raise SystemExit(run_stage_command(STAGE))
