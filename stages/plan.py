"""The command `python -m stages.plan`, which shows the plan of a run and how long its stages will take."""

from irn_pipeline.stages.catalogue import plan_main

if __name__ == "__main__":
    raise SystemExit(plan_main())
