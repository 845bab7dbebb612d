SHELL := /bin/bash
export PYTHONPATH := $(CURDIR)
.PHONY: help test lint types check demo

help: ## list the targets
	@grep -hE "^[a-z]+: .*## " Makefile | sed "s/: [^#]*## /\t/"

test: ## set up what the tests need and run them
	@python=$$(./setup_env.sh dev) && OMP_NUM_THREADS=1 "$$python" -m pytest -n auto --dist loadfile

lint: ## check format and style
	@python=$$(./setup_env.sh dev) && "$$python" -m ruff format --check . && "$$python" -m ruff check .

types: ## check type annotations
	@python=$$(./setup_env.sh dev) && "$$python" -m mypy irn_pipeline stages

check: lint types test ## everything that must pass

demo: ## make the demo set and run all stages on it
	@./run_all.sh
