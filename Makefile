# Set-up is part of every target: the virtual environment is built once, and again when the pins change.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
CHEMPROP ?= chemprop[hpopt]==2.3.1
OUT ?= demo
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check bench accuracy peers gpu clean
.DEFAULT_GOAL := demo

demo: $(STAMP) ## the whole pipeline on the embedded sample
	$(BIN)/moldistill demo --out $(OUT) $(ARGS)

test: $(STAMP) ## the test suite
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## style, types and layers
	$(BIN)/ruff check platform tests
	$(BIN)/ruff format --check platform tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(STAMP) ## ratios against peers, measured side by side; JSON in .bench/
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

# Days of CPU time in all, one training at a time; it may be stopped at any time, and goes on where it was.
accuracy: $(STAMP) ## what distillation gains on the data sets of MOLDISTILL_DATA; lines of tests/benchmarks/accuracy.jsonl
	$(BIN)/python tests/benchmarks/accuracy.py $(ARGS)

peers: ## chemprop, for `make accuracy`, in an environment of its own
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "$(CHEMPROP)"

# Needs torch, numpy and numba only: on a machine without the virtual environment it takes the Python at hand.
gpu: ## training on a GPU: molecules per second, and the share of the step that waits for data
	PYTHONPATH=platform $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/gpu.py $(ARGS)

clean: ## everything that the targets above made
	rm -rf $(VENV) .venv-peers demo .bench .pytest_cache .mypy_cache .ruff_cache .import_linter_cache platform/*.egg-info build

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "moldistill needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "setting up $(VENV) (about a minute, and 3 GB of disk) ..."
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) --editable '.[label,test,dev]'
	@touch $@
