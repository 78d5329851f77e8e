# make quickstart   distil a small model and compare it, in minutes and without a download
# make test         run the tests that take minutes in all
# make test-all     run all tests: those of make test, make slow and make chaos
# make slow         run the tests of clusters, of the README's commands, of kills and of other long ways through
# make chaos        kill nodes, and a run at random moments while its storage and the Hub fail; KILLS=20 SECONDS=120 for the long form
# make check        look for style and type errors
# make docs         build the documentation into site/, in seconds
# make setup        create .venv and install the package with its development tools
# make dist         put what a cluster's nodes install into dist/: the package and the exact versions it needs
#
# Each sets up what is missing first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.docs-installed

# Of the quickstart: where its runs go, and more settings for them, such as SETTINGS=run.seed=1.
RUNS ?= runs
SETTINGS ?=

# Of the chaos test: how often something is killed, and how long each outage lasts.
KILLS ?= 4
SECONDS ?= 10

.PHONY: help setup quickstart test test-all slow chaos check docs dist

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(INSTALLED)

# Repeated only when the dependencies change.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/python -m distil_ray quickstart run.storage_path=$(RUNS) $(SETTINGS)

# In two processes, one of which has all tests that share a Ray.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

test: setup
	$(PYTEST)

# In the order of the files: by their numbers of tests, the longest would come last.
slow: setup
	$(PYTEST) -m slow --no-loadscope-reorder

test-all: setup
	$(PYTEST) -m ""

chaos: setup
	CHAOS_KILLS=$(KILLS) CHAOS_OUTAGE_SECONDS=$(SECONDS) $(BIN)/python -m pytest -m chaos -s

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A warning, such as one of a link that leads nowhere, is an error.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

dist: setup
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	cp constraints.txt dist/
