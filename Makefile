# The chores, one word each. `make serve` and `make test` need Python, a C++ compiler and the
# package index; nothing else. Works with GNU make 3.81 (macOS).
#
#   make setup [GPU=cuda|vulkan|metal|none]   environment, engine compiled for this machine, starter
#   make serve [ARGS="--port 8080"]           all of setup, then serve the starter model
#   make unit [ARGS=tests/test_docs.py]       the quick tests; at most ten seconds, see CONTRIBUTING
#   make test                                 all of setup, then every check
#   make docs                                 these pages as a web site, in site/
#   make conformance                          suites of others; needs Node.js, see tests/conformance
#   make test-clients [ARGS=openai_client]    clients of others; needs Node.js for those in JavaScript
#   make lint | bench | clean

PYTHON ?= python3
GPU ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: help setup serve unit test conformance test-clients lint docs bench clean engine starter tuned dev models axe schemas

help:
	@sed -n 's/^#  *make/make/p' Makefile

setup: tuned
	@echo "Ready: $(BIN)/naiad serve"

serve: tuned
	@exec $(BIN)/naiad serve $(ARGS)

# Asked many times a day, so the whole has ten seconds: the last line tells how many it took, and
# those before which tests took longest. Bytecode is kept, or every run compiles all tests again.
QUICK := not engine and not model and not soak and not browser

unit: $(STAMP)-dev
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -m "$(QUICK)" --durations=5 $(ARGS)

test: dev models axe schemas
	@$(MAKE) --no-print-directory check

# Programs of others live in environments of their own, in .envs. `make test` needs none of them, and
# uses axe-core where npm is.
conformance: dev
	@$(BIN)/python tests/conformance/run.py $(ARGS)

test-clients: dev models
	@$(BIN)/python tests/clients/run.py $(ARGS)

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: dev
	$(BIN)/zensical build --strict

bench: tuned
	@exec $(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) .envs build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

.PHONY: check
check: lint
	$(BIN)/python -m pytest $(ARGS)

# --- the steps of setup; each does nothing when it has been done ---

$(STAMP)-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "naiad needs Python 3.11 or later as $(PYTHON); name another one: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@echo "Creating $(VENV) with `$(PYTHON) --version`."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Python cannot create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }
	@touch $@

engine: $(STAMP)-venv
	@$(BIN)/python -c 'import pip' 2>/dev/null || { \
	  echo "$(VENV) has no working Python with pip any more; start afresh: make clean setup" >&2; \
	  echo "(if that does not help, on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@PYTHONPATH=src $(BIN)/python -m naiad.setup.engine --gpu "$(GPU)"

$(STAMP)-installed: $(STAMP)-venv pyproject.toml | engine
	@echo "Installing naiad and the packages it needs."
	@PYTHONPATH=src $(BIN)/python -m naiad.setup.packages .
	@PYTHONPATH=src $(BIN)/python -m naiad.setup.engine --check
	@touch $@

$(STAMP)-dev: $(STAMP)-installed
	@echo "Installing the packages that tests need."
	@PYTHONPATH=src $(BIN)/python -m naiad.setup.packages '.[dev]'
	@touch $@

starter: engine $(STAMP)-installed
	@$(BIN)/naiad pull starter

# Half a minute, once for each build; a help, so set-up goes on without it.
tuned: starter
	@$(BIN)/naiad tune --quick --if-needed --quiet || \
	  echo "The settings could not be measured, so rules of thumb decide; later: $(BIN)/naiad tune" >&2

dev: starter $(STAMP)-dev

# Sliding-window attention is where naive cache reuse breaks, so tests want a model that has it.
models: starter
	@$(BIN)/naiad pull gemma3 || \
	  echo "gemma3 could not be fetched: the tests that need it will be skipped" >&2

# The checker of the page's accessibility; without npm its tests are skipped, and say so.
axe: dev
	@$(BIN)/python tests/ui/axe.py

# The schemas of the JSON Schema Test Suite; without the package index fewer are tried.
schemas: dev
	@$(BIN)/python tests/schema_suite.py
