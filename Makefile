# Targets for people and for CI. Needs Python 3.11 and a C compiler; everything else goes into .venv.

PYTHON ?= python3
HOST   ?= 127.0.0.1
PORT   ?= 8000
ARGS   ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test drills lint format typecheck clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with everything that serving, training and testing need

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server,models,train,bench,dev]'
	touch $@

run: setup ## serve on HOST:PORT (127.0.0.1:8000)
	$(BIN)/worldcache serve --host $(HOST) --port $(PORT) $(ARGS)

test: setup ## run the tests; ARGS goes to pytest
	$(BIN)/python -m pytest $(ARGS)

drills: setup ## measure load and sessions, send generated requests, open slow connections; takes an hour
	$(BIN)/worldcache loadtest --output benchmarks/load.md $(ARGS)
	$(BIN)/worldcache drive --output benchmarks/sessions.md
	$(BIN)/python -m tests.drills.schema --requests 20000 --output benchmarks/schema.md
	DRILL_CONNECTIONS=10000 $(BIN)/python -m pytest tests/app/test_connections.py

lint: setup ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## bring every file into the format that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup ## run mypy
	$(BIN)/mypy

clean: ## remove what can be made again: .venv, builds and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find app tests worldcache -name __pycache__ -type d -prune -exec rm -rf {} +
