"""The command `python -m stages.export_labels`."""

from irn_pipeline.stages.command import run_stage_command
from irn_pipeline.stages.export_labels import STAGE

if __name__ == "__main__":
    raise SystemExit(run_stage_command(STAGE))
