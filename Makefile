# make demo   the whole pipeline on a simulated cohort -> results/report/index.html
# make test   the whole test suite          make check   linters, types, import rules, and the tests
# make env    the environment of the demo   make dev     and what tests and linters need
# make docs   the documentation site -> build/site/index.html
# Everything happens inside this folder: environment, caches, temporary files, results.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 2)
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache

export PATH := $(BIN):$(PATH)
export XDG_CACHE_HOME := $(CACHE)
export XDG_CONFIG_HOME := $(CACHE)/config
export XDG_DATA_HOME := $(CACHE)/data
export MPLCONFIGDIR := $(CACHE)/matplotlib
export TMPDIR := $(CACHE)/tmp
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONNOUSERSITE := 1

.PHONY: demo test check lint docs env dev clean

env: $(VENV)/.ready-user
dev: $(VENV)/.ready-dev

# an installation of the first kind is editable too: what is edited here is what runs
$(VENV)/.ready-%: requirements.lock requirements-dev.lock envs/brainmarks.lock pyproject.toml setup.py envs/install.sh
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {v.major}.{v.minor}; set PYTHON=/path/to/python3.11")'
	@mkdir -p $(TMPDIR)
	@echo "making the environment in .venv (a few minutes, once)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian or Ubuntu install python3-venv"; exit 1; }
	@envs/install.sh $(BIN)/python $* --editable
	@touch $@

demo: env
	@mkdir -p $(TMPDIR)
	@bash workflow/demo.sh $(CORES)

test: dev
	@mkdir -p $(TMPDIR)
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

docs: dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "$(CURDIR)/build/site/index.html"

lint: dev
	@mkdir -p $(TMPDIR)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check workflow/Snakefile rules
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: lint test

clean:
	rm -rf .venv .cache .snakemake results data build *.egg-info
