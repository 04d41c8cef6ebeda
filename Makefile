# Every target makes .venv first if need be. PYTHON: any 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export DO_NOT_TRACK ?= 1

.PHONY: audit docs demo test test-all test-long check bench faults setup

setup: .venv/installed

# Constraints pin everything: an unpinned torch, for one, is several gigabytes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## train, judge and register a summarizer, then refuse a weaker one
	$(BIN)/precis run deployments/recipes/demo.yaml
	@echo; echo "== now a weaker challenger: 64 training rows =="
	$(BIN)/precis run deployments/recipes/demo.yaml --set data.train_rows=64
	@echo; $(BIN)/precis history demo

test: setup  ## what a contributor runs; the aim is 5 minutes on 2 quiet cores; 8.3 measured on 3e0a068
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# Three workers on two cores: many of these wait, for leases, schedules and servers that start.
# The order of files is tests/conftest.py's.
test-all: setup  ## what needs S3, crashes, clean environments; the aim is 25 minutes; 42.3 here on f7b0863, part of it beside another
	$(BIN)/python -m pytest -q -m "full and not long" -n 3 --dist loadfile --no-loadscope-reorder

test-long: setup  ## faults and recipes that take minutes each; by hand, on a quiet machine
	$(BIN)/python -m pytest -q -m long

check: setup  ## lint, types, the import rule, plain words; under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py tests/test_language.py

bench: setup  ## side by side, ratios, growth; nothing is asserted
	$(BIN)/python tests/bench/rouge_speed.py
	$(BIN)/python tests/bench/growth.py --rows 500
	$(BIN)/python tests/bench/merge_speed.py
	$(BIN)/python tests/bench/register_speed.py

TRIALS ?= 100
SEED ?= 1
JOBS ?= 2
faults: setup  ## seeded trials of whole runs under kills, full disks, outages and races; about a minute of CPU each
	$(BIN)/python -m tests.faults.trials --stack embedded --trials $(TRIALS) --seed $(SEED) --jobs $(JOBS)
	$(BIN)/python -m tests.faults.trials --stack servers --trials $(TRIALS) --seed $(SEED) --jobs $(JOBS)
	$(BIN)/python -m tests.faults.trials --stack postgres-s3 --trials $(TRIALS) --seed $(SEED) --jobs $(JOBS)

docs: setup  ## the pages that are made from the code
	$(BIN)/python -m flows.cli.reference > docs/cli.md
	$(BIN)/python -m tasks.contracts.recipe_reference > docs/recipe.md
	$(BIN)/python -m flows.cli.licences > docs/licences.md

audit: setup  ## compares the pins with a list of known vulnerabilities; needs the network
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip
