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
# How long `make explore` goes on, how many processes `make crash` kills, how many steps `make soak`
# runs; by default, what the help says.
SECONDS ?=
KILLS ?=
STEPS ?=
# How many tests run at the same time: as many as there are processors, or a number.
WORKERS ?= auto
# Which versions are installed: those that constraints.txt pins, or what else uv or pip is told here.
VERSIONS ?= --constraint constraints.txt
# With COVERAGE=1, the tests must reach 95 of 100 lines, and all tests 99; from Python 3.14 on, which watches
# branches at the price of lines, branches as well.
COVERAGE ?=

py := $(VENV)/bin/python
# uv takes seconds where pip takes a minute; without it, pip does the same.
uv := $(shell command -v uv)
ifdef uv
make_venv := $(uv) venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV)
install = $(uv) pip install --quiet --python $(py) $(VERSIONS)
else
make_venv := $(PYTHON) -m venv $(VENV) && $(py) -m pip --quiet install --upgrade 'pip>=25.1'
install = $(py) -m pip --quiet --disable-pip-version-check --no-input install $(VERSIONS)
endif
# All but Ray's, which has an environment of its own.
extras := cli,cloudpickle,dask,journal,otel,postgres,report,web
groups := $(strip test $(filter-out test,$(WITH)))
empty :=
tested := $(VENV)/.has-$(subst $(empty) ,-,$(groups))

# Bytecode is kept beside what is installed, where it harms nobody: each test process needs it.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/.pycache
arguments = -o cache_dir=$(abspath $(VENV))/.pytest_cache
# SQLite waits for the disk at each commit, and memory keeps nobody waiting.
memory := $(shell df --output=avail /dev/shm 2>/dev/null | awk '$$1 > 4000000 { print "TMPDIR=/dev/shm" }')
branches = $(shell $(py) -c "import sys; print('--branch' * (sys.version_info >= (3, 14)))")
pytest = $(memory) $(py) $(if $(COVERAGE),-m coverage run $(branches)) -m pytest $(arguments)
# A worker that has nothing left to do takes over tests of another one.
parallel := --numprocesses=$(WORKERS) --maxprocesses=8 --dist=worksteal
# $(call require,percentage): hold what has been reached so far against that.
require = $(if $(COVERAGE),@$(py) -m coverage combine --append --quiet && \
	$(py) -m coverage report --fail-under=$(1) $(if $(filter-out 100,$(1)),--format=total))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help etl test test-all test-realtime test-slow covered test-lowest test-ray lint check constraints bench bench-ray bench-peers bench-chains
.PHONY: explore fuzz crash soak mutants dist test-peers test-pages docs

help:
	@echo "make etl        run the example pipeline"
	@echo "make test       run the fast tests, which is enough for most changes"
	@echo "make test-all   run these and all others, which need PostgreSQL and Chromium; these are test-slow"
	@echo "                and test-realtime, which needs one processor"
	@echo "make test-ray   run the tests of the Ray engine on a cluster of this machine"
	@echo "make test-peers run the code of the docs for Airflow, Celery, LangGraph, Prefect, pydantic-ai, OpenAI and Anthropic too"
	@echo "make test-lowest  run the fast tests with the lowest versions that pyproject.toml allows"
	@echo "make lint       lint, check the format and the types"
	@echo "make check      this, pyright, and who imports whom"
	@echo "make docs       build the documentation into site/; ARGS=--serve shows it while you write"
	@echo "make bench      measure the cost of a step"
	@echo "make explore    simulate 100,000 random runs, or new ones for so many SECONDS"
	@echo "make fuzz       give the property tests new random examples"
	@echo "make crash      kill 1,000 processes of durable runs, or as many as KILLS says"
	@echo "make mutants    change each line of a module: ARGS=\"MODULE TESTS\""
	@echo "make constraints  raise the versions that constraints.txt pins"
	@echo "make dist       build the distributions, their SBOM, and check them where nothing else is"
	@echo "make soak       run 1,000,000 steps, or as many as STEPS says: nothing may grow"

etl: $(VENV)/.has-core
	@$(py) -m asyncflow.examples.etl $(ARGS)

test: $(tested)
	@$(if $(COVERAGE),rm -f .coverage .coverage.*)
	@$(pytest) $(parallel) $(ARGS)
	$(call require,95)

# In this order: `test` forgets the coverage of earlier runs.
test-all: test test-realtime test-slow covered

# One at a time: they are about real time. They need one processor, and stand others that use the rest.
test-realtime: $(tested)
	@$(pytest) -m "realtime or uvloop" --timeout=300

test-slow: $(tested)
	@$(pytest) $(parallel) -m "slow and not (ray or realtime or uvloop)" --timeout=300

covered: $(tested)
	$(call require,99)

# The lower bounds of pyproject.toml: pip can't look for the lowest versions.
test-lowest:
	@$(if $(uv),,echo "make test-lowest needs uv" >&2; exit 1)
	@$(MAKE) --no-print-directory test VENV=$(VENV)-lowest VERSIONS="--resolution lowest-direct"

# Ray replaces 127.0.0.1 by an address that others can reach, unless there is none.
isolated := unshare --user --map-root-user --net -- env

test-ray: $(VENV)/.has-ray
	@$(isolated) $(pytest) -m ray tests/engines/ray $(ARGS)

# Airflow and Prefect can't have one environment with the latest version of each, or with what is pinned.
test-peers:
	@$(MAKE) --no-print-directory test-pages VENV=$(VENV)-peers WITH=peers VERSIONS= \
		ARGS="-k '(coming-from and not airflow) or guides/llm' $(ARGS)"
	@$(MAKE) --no-print-directory test-pages VENV=$(VENV)-airflow WITH=peers-airflow VERSIONS= \
		ARGS="-k coming-from/airflow $(ARGS)"

# Everything that they store is in a temporary folder, and they report to no one.
test-pages: $(tested)
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
	export ASYNCFLOW_ALL_BLOCKS=1 DO_NOT_TRACK=1 PREFECT_HOME=$$home/prefect \
		PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=300 \
		PREFECT_LOGGING_LEVEL=CRITICAL AIRFLOW_HOME=$$home/airflow AIRFLOW__CORE__DAGS_FOLDER=dags \
		AIRFLOW__CORE__LOAD_EXAMPLES=False AIRFLOW__LOGGING__LOGGING_LEVEL=CRITICAL && \
	if [ -x $(VENV)/bin/airflow ]; then $(VENV)/bin/airflow db migrate >/dev/null 2>&1; fi && \
	$(pytest) -m "" -W default --timeout=600 tests/test_docs_pages.py $(ARGS)

lint: $(VENV)/.has-dev
	@$(py) -m ruff check .
	@$(py) -m ruff format --check .
	@$(py) -m mypy --strict
	@mkdir -p $(VENV)/typed && ln -sfn $(CURDIR)/tests $(VENV)/typed/tests && cd tests && \
		MYPYPATH=$(abspath $(VENV))/typed $(abspath $(py)) -m mypy --cache-dir ../.mypy_cache/tests .

check: lint
	@$(py) -m pyright --pythonpath $(py)
	@$(VENV)/bin/lint-imports --no-logo

# The theme's notice says what CONTRIBUTING.md says.
docs: $(VENV)/.has-docs
	@NO_MKDOCS_2_WARNING=1 $(py) -m mkdocs $(if $(filter --serve,$(ARGS)),serve,build --strict) \
		$(filter-out --serve,$(ARGS))

bench: $(tested)
	@$(py) -m tests.benchmarks $(ARGS)

bench-ray: $(VENV)/.has-ray
	@$(isolated) $(py) -m tests.benchmarks.ray_engine

# In an environment of its own, because of Prefect.
bench-peers:
	@$(MAKE) --no-print-directory bench-chains VENV=$(VENV)-chains WITH=peers-chains VERSIONS=

bench-chains: $(tested)
	@$(py) -m tests.benchmarks.chain_peers

explore: $(tested)
	@$(py) -m tests.explore $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

fuzz: $(tested)
	@$(pytest) $(parallel) -m hypothesis --hypothesis-profile=random --timeout=0 $(ARGS)

crash: $(tested)
	@$(py) -m tests.crash $(if $(KILLS),--kills $(KILLS)) $(ARGS)

soak: $(tested)
	@$(py) -m tests.soak $(if $(STEPS),--steps $(STEPS)) $(ARGS)

mutants: $(VENV)/.has-dev
	@$(py) -m tests.mutants $(ARGS)

# The SBOM lists what the extras bring: an environment of their own tells.
dist: $(VENV)/.has-release
	@rm -rf dist
	@PIP_CONSTRAINT=constraints.txt $(py) -m build --outdir dist .
	@$(py) -m tests.distribution dist $(ARGS)
	@$(PYTHON) -m venv dist/extras && dist/extras/bin/python -m pip --quiet install --no-compile \
		"asyncflow-tiers[$(extras)] @ file://$$(echo $(CURDIR)/dist/*.whl)"
	@dist/extras/bin/python -m pip --quiet uninstall --yes pip
	@$(VENV)/bin/cyclonedx-py environment dist/extras --pyproject pyproject.toml \
		--output-reproducible --output-file dist/asyncflow-tiers.cdx.json
	@rm -rf dist/extras

# Its header repeats this command, which the bot of renovate.json runs too: it refuses options without "=".
constraints:
	@$(if $(uv),,echo "make constraints needs uv" >&2; exit 1)
	@$(uv) pip compile --quiet --upgrade --universal --python-version=3.11 --all-extras --group=dev --group=docs \
		--group=release --group=bench --output-file=constraints.txt pyproject.toml >/dev/null

# The stamp files tell what is installed, so that the second time is fast.

$(VENV)/.is-made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "asyncflow needs Python 3.11 \
	or newer, and this is %d.%d; name another one: make test PYTHON=python3.12" \
	% sys.version_info[:2])'
	@echo "making $(VENV) ..." >&2
	@$(make_venv)
	@echo '*' >$(VENV)/.gitignore
	@touch $@

$(VENV)/.has-core: pyproject.toml constraints.txt | $(VENV)/.is-made
	@echo "installing asyncflow ..." >&2
	@$(install) --editable .
	@touch $@

$(tested): pyproject.toml constraints.txt | $(VENV)/.is-made
	@echo "installing asyncflow, and for tests: $(groups) ..." >&2
	@$(install) --editable ".[$(extras)]" $(addprefix --group ,$(groups))
	@touch $@

$(VENV)/.has-ray: $(tested)
	@echo "installing Ray ..." >&2
	@$(install) --group ray
	@touch $@

$(VENV)/.has-release: pyproject.toml constraints.txt | $(VENV)/.is-made
	@echo "installing what builds and checks distributions ..." >&2
	@$(install) --group release
	@touch $@

# The tables of options are made from the commands, so these must be importable.
$(VENV)/.has-docs: pyproject.toml constraints.txt | $(VENV)/.is-made
	@echo "installing what builds the documentation ..." >&2
	@$(install) --editable ".[cli]" --group docs
	@touch $@

$(VENV)/.has-dev: pyproject.toml constraints.txt | $(VENV)/.is-made
	@echo "installing asyncflow, and for development: dev ..." >&2
	@$(install) --editable ".[$(extras)]" --group dev
	@touch $@
