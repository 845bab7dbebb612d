"""The command `python -m stages.export_model`."""

from irn_pipeline.stages.command import run_stage_command
from irn_pipeline.stages.export_model import STAGE

if __name__ == "__main__":
    raise SystemExit(run_stage_command(STAGE))
