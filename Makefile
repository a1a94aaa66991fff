# Everything there is to learn: make demo, make test, make lint, make bench.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint audit format bench clean

help: ## these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.demo ## install and run the demo (make demo ARGS=--crash)
	$(BIN)/hubsync demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.chromium $(VENV)-distilabel/.ready $(VENV)-lowest/.ready ## install what the tests need and run all of them
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.dev ## ruff and mypy, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(VENV)/.dev ## look for known vulnerabilities in what is installed, where a network allows it
	@$(BIN)/python .ci/audit.py

format: $(VENV)/.dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## the benchmarks (make bench ARGS="stall --quick")
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## forget the environment and every cache
	rm -rf $(VENV) $(VENV)-distilabel $(VENV)-lowest .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hubsync needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]' --group lint --group test
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]' --group bench
	@touch $@ $(VENV)/.demo

$(VENV)/.chromium: | $(BIN)/python
	-$(BIN)/python .ci/chromium.py
	@touch $@

# What distilabel needs does not go with what the tests need, so it has an environment of its own.
$(VENV)-distilabel/.ready: pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-distilabel
	$(VENV)-distilabel/bin/python -m pip install --quiet --editable '.[distilabel]'
	@touch $@

# The lowest versions that pyproject.toml admits; the newest ones are in the other environment.
$(VENV)-lowest/.ready: pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) .ci/lowest.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --editable '.[demo,parquet,zstd]' --constraint $(VENV)-lowest/constraints.txt
	@touch $@
