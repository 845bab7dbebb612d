"""The command `python -m stages.plan`, which shows the plan of a run and how long its stages will take."""

import sys

from irn_pipeline.stages.catalogue import run_main

if __name__ == "__main__":
    raise SystemExit(run_main(["plan", *sys.argv[1:]]))
