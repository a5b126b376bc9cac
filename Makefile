# Each target makes what it needs in $(VENV) and runs. Nothing has to be installed before, except
# Python (3.11 or newer) and make. To use another Python, name another folder as well:
#
#     make test PYTHON=python3.12 VENV=.venv-3.12

PYTHON ?= python3
VENV ?= .venv
# More groups of pyproject.toml for the tests, such as WITH=examples. Without them, the tests that
# need them are skipped.
WITH ?=
# More arguments for what is run, such as ARGS="-k cycle".
ARGS ?=
# What runs the tests.
RUNNER ?= pytest
# With AGAIN=1, only the tests that have failed the last time.
AGAIN ?=

py := $(VENV)/bin/python
# uv takes seconds where pip takes a minute; without it, pip does the same.
uv := $(shell command -v uv)
ifdef uv
make_venv := $(uv) venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV)
install := $(uv) pip install --quiet --python $(py)
else
make_venv := $(PYTHON) -m venv $(VENV) && $(py) -m pip --quiet install --upgrade 'pip>=25.1'
install := $(py) -m pip --quiet --disable-pip-version-check --no-input install
endif
last_failed := $(if $(AGAIN),--last-failed --last-failed-no-failures=none)
groups := $(strip test $(filter-out test,$(WITH)))
empty :=
tested := $(VENV)/.has-$(subst $(empty) ,-,$(groups))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help etl test check bench coverage

help:
	@echo "make etl        run the example pipeline"
	@echo "make test       run the tests"
	@echo "make check      lint, check the format, the types and who imports whom"
	@echo "make coverage   run the tests and require that they reach every line and branch"
	@echo "make bench      measure the cost of a step"

etl: $(VENV)/.has-core
	@$(py) -m asyncflow.examples.etl $(ARGS)

test: $(tested)
	@$(py) -m $(RUNNER) -o cache_dir=$(abspath $(VENV))/.pytest_cache $(last_failed) $(ARGS)

check: $(VENV)/.has-dev
	@$(py) -m ruff check .
	@$(py) -m ruff format --check .
	@$(py) -m mypy --strict
	@$(py) -m pyright --pythonpath $(py)
	@$(VENV)/bin/lint-imports --no-logo

bench: $(tested)
	@$(py) -m tests.benchmarks $(ARGS)

coverage:
	@$(if $(AGAIN),true,rm -f .coverage .coverage.*)
	@$(MAKE) --no-print-directory test RUNNER="coverage run -m pytest"
	@$(py) -m coverage combine --quiet
	@$(py) -m coverage report

# The stamp files tell what is installed, so that the second time is fast.

$(VENV)/.is-made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "asyncflow needs Python 3.11 \
	or newer, and this is %d.%d; name another one: make test PYTHON=python3.12" \
	% sys.version_info[:2])'
	@echo "making $(VENV) ..." >&2
	@$(make_venv)
	@echo '*' >$(VENV)/.gitignore
	@touch $@

$(VENV)/.has-core: pyproject.toml | $(VENV)/.is-made
	@echo "installing asyncflow ..." >&2
	@$(install) --editable .
	@touch $@

$(tested): pyproject.toml | $(VENV)/.is-made
	@echo "installing asyncflow, and for tests: $(groups) ..." >&2
	@$(install) --editable . $(addprefix --group ,$(groups))
	@touch $@

$(VENV)/.has-dev: pyproject.toml | $(VENV)/.is-made
	@echo "installing asyncflow, and for development: dev ..." >&2
	@$(install) --editable . --group dev
	@touch $@
