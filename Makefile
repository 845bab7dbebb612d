SHELL := /bin/bash
export PYTHONPATH := $(CURDIR)
.PHONY: help test test-lowest test-newest lint types licenses check demo

help: ## list the targets
	@grep -hE "^[a-z-]+: .*## " Makefile | sed "s/: [^#]*## /\t/"

test: ## set up what the tests need and run them
	@python=$$(./setup_env.sh dev) && OMP_NUM_THREADS=1 "$$python" -m pytest -n auto --dist loadfile

test-lowest: ## the same with the lowest versions that setup.cfg allows, in .venv-lowest (needs uv)
test-newest: ## the same with the newest versions there are, in .venv-newest (needs uv)
test-lowest: BOUND := lowest-direct
test-lowest: PYTHON := 3.10
test-newest: BOUND := highest
test-newest: PYTHON := 3.13
test-lowest test-newest: test-%:
	uv venv --quiet --clear --python $(PYTHON) .venv-$*
	uv pip install --quiet --python .venv-$*/bin/python --resolution $(BOUND) --editable ".[dev]"
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n auto --dist loadfile $(TESTS)

lint: ## check format and style
	@python=$$(./setup_env.sh dev) && "$$python" -m ruff format --check . && "$$python" -m ruff check .

types: ## check type annotations
	@python=$$(./setup_env.sh dev) && "$$python" -m mypy irn_pipeline stages benchmarks

licenses: ## the table of docs/LICENSES.md, from what the installed packages say of themselves (needs uv)
	@python=$$(./setup_env.sh dev) && uv tool run pip-licenses --python "$$python" --from=mixed --format=markdown \
		--packages $$(uv pip compile -q --no-header --no-annotate --python "$$python" setup.cfg | sed "s/[=@ ].*//") \
		| sed -E "s/ +[|]/ |/g; s/[|]-+/|--/g"

check: lint types test ## everything that must pass

demo: ## make the demo set and run all stages on it
	@./run_all.sh
