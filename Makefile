# Targets for people and for CI. Needs Python 3.11 and a C compiler; everything else goes into .venv.

PYTHON ?= python3
HOST   ?= 127.0.0.1
PORT   ?= 8000
ARGS   ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# Where torch without CUDA is; an index of its own, so that nothing else comes from there unseen: hashes tell.
TORCH_CPU ?= --index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
LOCK := uv pip compile pyproject.toml --extra server --constraint constraints.txt --quiet --upgrade \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run ray test drills lint format typecheck lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with everything that serving, training and testing need

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server,models,train,bench,dev]'
	touch $@

run: setup ## serve on HOST:PORT (127.0.0.1:8000)
	$(BIN)/worldcache serve --host $(HOST) --port $(PORT) $(ARGS)

ray: setup ## serve with two replicas on this machine's Ray, at 127.0.0.1:PORT; ARGS as --help has them
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python -m deploy.ray.local --port $(PORT) $(ARGS)

test: setup ## run the tests; ARGS goes to pytest
	$(BIN)/python -m pytest $(ARGS)

drills: setup ## load, sessions, killed servers, generated requests and slow connections, into benchmarks/; over an hour
	$(BIN)/worldcache loadtest --output benchmarks/load.md $(ARGS)
	$(BIN)/worldcache drive --output benchmarks/sessions.md
	$(BIN)/worldcache killtest --output benchmarks/kill.md
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

lock: ## write docker/requirements-*.lock, the image's packages with hashes; needs uv
	$(LOCK) --output-file docker/requirements-cuda.lock
	$(LOCK) $(TORCH_CPU) --output-file docker/requirements-cpu.lock

clean: ## remove what can be made again: .venv, builds and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find app tests worldcache -name __pycache__ -type d -prune -exec rm -rf {} +
