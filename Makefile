# Two commands on a bare machine: `make demo` and `make test`. Each makes its own virtual environment in .venv and fetches what it needs.
# `make help` lists the rest. Nothing here needs more than a POSIX shell, make and Python 3.11 or newer.

PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# On machines without a GPU the plain CPU build is wanted; where no such build is offered, pip's default one does as well.
TORCH := 2.13.0
FETCH := import sys; from earwise.models.embedded.base_weights import base_folder; base_folder(lambda line: print(line, file=sys.stderr))
COLLECTION ?=
OUT ?= runs/embedded
# What the shipped weights were trained on: transcripts are left out (the model does not transcribe), and a source of unclear licence.
LABELS := --split train --seed 1 --fields sound,instrument,language,emotion,gender,digit,kind --skip-bad
WITHOUT ?= --without source=EmoDB

.PHONY: help demo data-demo recipes test setup setup-demo lint embedded clean

help:
	@echo 'make demo        hear, learn by reinforcement, measure: runs/demo/report.html (minutes)'
	@echo 'make data-demo   one small data set of each kind from the bundled clips, with checks: runs/data-demo (minutes)'
	@echo 'make recipes     every recipe on the embedded model, first stage to last, measured before and after: runs/recipes (half an hour)'
	@echo 'make test        everything that is checked: style, types, layers, tests'
	@echo 'make setup       the virtual environment with all that tests and training need'
	@echo 'make lint        style, types and layers only'
	@echo 'make embedded COLLECTION=DIR   train the embedded model from a labelled collection'
	@echo 'make clean       delete the virtual environment, runs and caches of tools'

demo: .venv/ready-demo
	$(BIN)/python -m earwise.apps.demo --out runs/demo --recipe recipes/r1-aqa.yaml

data-demo: .venv/ready-dev
	$(BIN)/python -m earwise.apps.data_demo --out runs/data-demo

# A set that cannot be built here (no espeak-ng: no speech) costs its own recipe only, and the summary says so.
recipes: .venv/ready-dev
	@test -f runs/data-demo/data-demo.json || $(BIN)/python -m earwise.apps.data_demo --out runs/data-demo \
		|| echo 'going on with the data sets that were built' >&2
	$(BIN)/python benchmarks/recipes.py --out runs/recipes

test: lint
	@echo 'base weights of the embedded model'
	@$(BIN)/python -c '$(FETCH)'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

setup: .venv/ready-dev

setup-demo: .venv/ready-demo

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The trained part that ships in the package. An hour or two on two cores.
embedded: .venv/ready-demo
	@test -n '$(COLLECTION)' || { echo 'say which: make embedded COLLECTION=DIR (a folder with manifest.jsonl, or one folder of clips per class)'; exit 2; }
	$(BIN)/earwise build labels '$(COLLECTION)' --out '$(OUT)/data/align.jsonl' --tasks open,caption $(LABELS) $(WITHOUT)
	$(BIN)/earwise build labels '$(COLLECTION)' --out '$(OUT)/data/questions.jsonl' --tasks recognition,yes_no $(LABELS) $(WITHOUT)
	$(BIN)/earwise train recipes/embedded.yaml --data '$(OUT)/data' --out '$(OUT)'
	@echo 'to put it into the package: $(BIN)/python -m earwise.models.embedded.package_weights $(OUT)'

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Stamps: a file in .venv says that what pyproject.toml asks for is installed, so that a second run starts at once.
.venv/ready-demo: pyproject.toml | .venv/ready-torch
	@echo 'installing earwise'
	$(PIP) -e '.[train]'
	@touch $@

.venv/ready-dev: pyproject.toml | .venv/ready-torch
	@echo 'installing earwise with all that tests need'
	$(PIP) -e '.[train,eval,dev]'
	@touch $@ .venv/ready-demo

.venv/ready-torch: | .venv/ready-python
	@echo 'looking for PyTorch, installing it if it is not there (about 200 MB)'
	@$(BIN)/python -c 'import torch, sys; sys.exit(not (2, 8) <= tuple(map(int, torch.__version__.split(".")[:2])) < (3, 0))' 2>/dev/null \
		|| if command -v nvidia-smi >/dev/null 2>&1; then $(PIP) 'torch>=2.8,<3'; else $(PIP) 'torch==$(TORCH)+cpu' 2>/dev/null || $(PIP) 'torch==$(TORCH)'; fi
	@touch $@

.venv/ready-python:
	@test -n '$(PYTHON)' || { echo 'no Python 3.11 or newer found; install it, then run make again'; exit 2; }
	@echo 'making .venv with $(PYTHON)'
	@$(PYTHON) -m venv .venv 2>/dev/null || { $(PYTHON) -m venv --without-pip --clear .venv && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@touch $@
