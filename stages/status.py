"""The command `python -m stages.status`, which knows all stages."""

from irn_pipeline.stages.catalogue import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("status"))
