"""The command `python -m stages [RANGE]`, which `run_all.sh` and `irn-pipeline` start too."""

from irn_pipeline.stages.catalogue import main

if __name__ == "__main__":
    raise SystemExit(main())
