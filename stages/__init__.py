"""Commands: `python -m stages.NAME` runs one stage, `python -m stages` all of them; the code is irn_pipeline.stages."""
