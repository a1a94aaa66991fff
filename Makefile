# `make help` lists the targets. Each installs what it needs, at the versions pinned in requirements/ (renew: `make pins`).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# The second run is faster if it finds the compiled tests of the first, whatever the environment says.
export PYTHONDONTWRITEBYTECODE =

# Installs at pinned versions: pip itself and the build backend by build.txt, everything else by the given file.
PIP = -m pip --disable-pip-version-check install --quiet
EDITABLE = --build-constraint requirements/build.txt --editable

# $(call venv,DIRECTORY): an empty virtual environment with the pinned pip.
define venv
	@echo "creating $(1)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hubsync needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv --clear $(1)
	@$(1)/bin/python $(PIP) --constraint requirements/build.txt pip
endef

.DEFAULT_GOAL := help
.PHONY: help check test test-newest lint types unit format docs demo bench build audit pins hooks clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 13

check: lint types unit ## run lint, types and unit tests: what to run while you work

# Three workers on two cores: a third of the time, the tests wait.
test: $(VENV)/.dev $(VENV)/.chromium $(VENV)-distilabel/.ready $(VENV)-lowest/.ready ## run all tests (make test ARGS="-k spool")
	$(BIN)/python -m pytest -n 3 $(ARGS)

test-newest: $(VENV)/.dev $(VENV)/.chromium $(VENV)-distilabel/.ready $(VENV)-lowest/.ready ## run all tests with the newest versions of everything, new random examples and more rounds
	$(call venv,$(VENV)-newest)
	@$(VENV)-newest/bin/python $(PIP) --upgrade pip
	@$(VENV)-newest/bin/python $(PIP) --editable '.[demo]' --group test
	$(VENV)-newest/bin/python -m pytest -n 3 --hypothesis-profile=random $(ARGS)

lint: $(VENV)/.dev ## check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## check types with mypy
	$(BIN)/mypy

# Three workers on two cores: many tests wait.
unit: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 -m "not slow" $(ARGS)

format: $(VENV)/.dev ## fix style and format with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)-docs/.ready ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

demo: $(VENV)/.demo ## install and run the demo (make demo ARGS=--crash)
	$(BIN)/hubsync demo $(ARGS)

bench: $(VENV)/.dev ## run the benchmarks (make bench ARGS="stall --quick")
	$(BIN)/python -m benchmarks $(ARGS)

build: $(VENV)-tools/.ready ## build and check the sdist and the wheel in dist/
	rm -rf dist
	PIP_CONSTRAINT=requirements/build.txt $(VENV)-tools/bin/python -m build
	$(VENV)-tools/bin/twine check --strict dist/*
	$(VENV)-tools/bin/python .ci/check_dist.py

audit: $(VENV)-tools/.ready ## look up the pinned versions in a list of known vulnerabilities, if it can be reached
	@$(VENV)-tools/bin/python .ci/audit.py

pins: $(VENV)-tools/.ready ## renew the pinned versions in requirements/
	$(VENV)-tools/bin/python .ci/pins.py

hooks: $(VENV)-tools/.ready ## install the git hooks: lint before a commit, `make check` before a push
	$(VENV)-tools/bin/pre-commit install --hook-type pre-commit --hook-type pre-push

clean: ## delete the environments, caches and built files
	rm -rf $(VENV) $(VENV)-distilabel $(VENV)-lowest $(VENV)-newest $(VENV)-docs $(VENV)-tools
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# An environment is recreated when its pins change, and updated when only pyproject.toml changes.
$(VENV)/.made: requirements/dev.txt requirements/build.txt
	$(call venv,$(@D))
	@touch $@

$(VENV)-%/.made: requirements/%.txt requirements/build.txt
	$(call venv,$(@D))
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@$(BIN)/python $(PIP) $(EDITABLE) '.[demo]' --constraint requirements/dev.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@$(BIN)/python $(PIP) $(EDITABLE) '.[demo]' --group lint --group test --constraint requirements/dev.txt
	@touch $@ $(VENV)/.demo

$(VENV)/.chromium: $(VENV)/.made
	-@$(BIN)/python .ci/chromium.py
	@touch $@

# distilabel's requirements conflict with those of the tests.
$(VENV)-distilabel/.ready: $(VENV)-distilabel/.made pyproject.toml
	@$(@D)/bin/python $(PIP) $(EDITABLE) '.[distilabel]' --constraint requirements/distilabel.txt
	@touch $@

# The lowest versions that pyproject.toml allows.
$(VENV)-lowest/.ready: $(VENV)-lowest/.made pyproject.toml
	@$(@D)/bin/python $(PIP) $(EDITABLE) '.[demo,parquet,zstd]' --constraint requirements/lowest.txt
	@touch $@

$(VENV)-docs/.ready: $(VENV)-docs/.made pyproject.toml
	@$(@D)/bin/python $(PIP) $(EDITABLE) . --group docs --constraint requirements/docs.txt
	@touch $@

$(VENV)-tools/.ready: $(VENV)-tools/.made pyproject.toml
	@$(@D)/bin/python $(PIP) --group tools --constraint requirements/tools.txt
	@touch $@
