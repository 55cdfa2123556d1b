# Two commands on a bare machine: `make demo` and `make test`. Each makes its own virtual environment in .venv and fetches what it needs.
# `make help` lists the rest. Nothing here needs more than a POSIX shell, make and Python 3.11 or newer.

PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# Exactly the versions of locks/, each file checked against its hashes; nothing is resolved and nothing is built.
LOCKED := --require-hashes --only-binary :all: --no-deps
EDITABLE := --no-deps --no-build-isolation -e .
# The locked version of torch. On machines without a GPU the plain CPU build is wanted, where pip has a place to take it from; those
# builds have other hashes than the published ones, which nobody can know here, so they are pinned by version only.
TORCH := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' locks/torch-cuda.txt)
# vLLM's build for CPUs is compiled for one version of torch.
SERVERS_TORCH := 2.13.0
UV := 0.13.9
PACKAGING := build==1.6.1 twine==7.0.0 check-wheel-contents==0.6.3 reuse==6.2.0
# Where pip is offered no CPU build of the newest or oldest torch, it takes several GB: WANTED_TORCH=2.13.0 asks for another version.
export WANTED_TORCH ?=
TESTS ?=
FETCH := import sys; from earwise.models.embedded.base_weights import base_folder; base_folder(lambda line: print(line, file=sys.stderr))
COLLECTION ?=
RECIPES ?=
OUT ?= runs/embedded
# Folder of WordNet's data files (Debian: wordnet-base), for questions about words; without it they are left out.
WORDNET ?= /usr/share/wordnet
# What the shipped weights were trained on: a source of unclear licence is left out.
LABELS := --split train --seed 1 --skip-bad
NAMED := sound,instrument,language,emotion,gender,digit,kind
VARIED := varied,words,refusal,same,compare,order,count,louder,odd_one_out,overlap
# Settings of both recipes, such as the numbers of steps of a trial: STEPS='stages.0.max_steps=2 stages.0.optimizer.warmup_steps=0'
STEPS ?=
WITHOUT ?= --where-not source=EmoDB

# Begin a run in OUT/$(1) with recipe $(2) and settings $(3), or continue the one that is there.
define TRAIN
@if test -f '$(OUT)/$(1)/recipe.json'; then $(BIN)/earwise train --resume '$(OUT)/$(1)'; \
	else $(BIN)/earwise train $(2) --data '$(OUT)/data' --out '$(OUT)/$(1)' 'encoder_cache=$(OUT)/states' $(3) $(STEPS); fi
endef

.PHONY: help demo data-demo recipes goals test test-newest test-oldest servers rehearse gpu-day package docs lock setup setup-demo lint embedded clean

help:
	@echo 'make demo        hear, learn by reinforcement, measure: runs/demo/report.html (minutes)'
	@echo 'make data-demo   one small data set of each kind from the bundled clips, with checks: runs/data-demo (minutes)'
	@echo 'make recipes     every recipe on the embedded model, first stage to last, measured before and after: runs/recipes (about 2 hours)'
	@echo 'make goals       the goals of speed and the distance to the limit of this machine, and the page that shows them (12 minutes, idle)'
	@echo 'make test        everything that is checked: style, types, layers, tests'
	@echo 'make test-newest the tests with the newest of everything that pyproject.toml allows (make test-oldest: with the oldest)'
	@echo 'make servers     the tests against vLLM (on the CPU) and the server of transformers, in an environment of their own (3 GB, minutes)'
	@echo 'make rehearse    every command of the papers'"'"' pages at the published settings, on small random models and files (minutes)'
	@echo 'make gpu-day     on a machine with a GPU: doctor, kernels, a step of every recipe at full size, as JSON'
	@echo 'make package     build wheel and sdist, check them, and try the wheel in an environment outside the repository'
	@echo 'make docs        build the documentation into build/site, warnings are errors'
	@echo 'make lock        renew locks/: all versions that the other commands install, with hashes'
	@echo 'make setup       the virtual environment with all that tests and training need'
	@echo 'make lint        style, types and layers only'
	@echo 'make embedded COLLECTION=DIR   train the embedded model from a labelled collection'
	@echo 'make clean       delete the virtual environment, runs and caches of tools'

demo: .venv/ready-demo
	$(BIN)/earwise demo --out runs/demo

data-demo: .venv/ready-dev
	$(BIN)/python -m earwise.apps.data_demo --out runs/data-demo

# A set that cannot be built here (no espeak-ng: no speech) costs its own recipe only, and the summary says so.
recipes: .venv/ready-dev
	@test -f runs/data-demo/data-demo.json || $(BIN)/python -m earwise.apps.data_demo --out runs/data-demo \
		|| echo 'going on with the data sets that were built' >&2
	$(BIN)/python benchmarks/recipes.py --out runs/recipes

# On an otherwise idle machine; the page of figures is written from the files.
goals: .venv/ready-dev
	$(BIN)/python benchmarks/limit.py --compute auto --out benchmarks/results/limit.json
	$(BIN)/python benchmarks/goals.py --quick --out benchmarks/results/goals.json
	$(BIN)/python benchmarks/performance_page.py

test: lint
	@echo 'base weights of the embedded model'
	@$(BIN)/python -c '$(FETCH)'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Versions that nobody has tested yet: an environment of its own each time, and on failure what differs from the lock.
define TEST_WITH
@echo 'making .venv-$(1)'
@$(PYTHON) -m venv --clear .venv-$(1)
@.venv-$(1)/bin/python scripts/locks.py resolve $(1) --uv .venv-lock/bin/uv > .venv-$(1)/resolved.txt
@sed -E '/^(torch|triton|nvidia-.*|cuda-.*)==/d' .venv-$(1)/resolved.txt > .venv-$(1)/others.txt
@torch=$$(sed -n 's/^torch==//p' .venv-$(1)/resolved.txt); torch=$${WANTED_TORCH:-$$torch}; \
	pip='.venv-$(1)/bin/python -m pip install --quiet --disable-pip-version-check'; \
	echo "installing torch $$torch and $$(wc -l < .venv-$(1)/others.txt) other packages"; \
	{ $$pip "torch==$$torch+cpu" 2>/dev/null || $$pip "torch==$$torch"; } \
	&& $$pip --no-deps -r .venv-$(1)/others.txt && $$pip --upgrade 'setuptools>=77' 'packaging>=24.2' && $$pip $(EDITABLE)
@.venv-$(1)/bin/python -c '$(FETCH)'
@OMP_NUM_THREADS=1 .venv-$(1)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS) || { \
	echo; echo 'not the versions that the lock holds (tests in tests/upstream that fail say which package broke what):'; \
	.venv-$(1)/bin/python scripts/locks.py differences; exit 1; }
endef

test-newest: .venv-lock/ready
	@echo 'newest versions that pyproject.toml allows'
	$(call TEST_WITH,newest)

test-oldest: .venv-lock/ready
	@echo 'oldest versions that pyproject.toml allows'
	$(call TEST_WITH,oldest)

# Servers of other makers never share an environment with earwise: the tests talk to them over HTTP.
servers: .venv/ready-dev .venv-servers/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n0 -m servers tests/servers

.venv-servers/ready: tests/servers/requirements.txt scripts/servers_environment.py
	@echo 'making .venv-servers: vLLM for CPUs and transformers'
	@$(PYTHON) -m venv --clear .venv-servers
	@pip='.venv-servers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps'; \
	{ $$pip 'torch==$(SERVERS_TORCH)+cpu' 2>/dev/null || $$pip 'torch==$(SERVERS_TORCH)'; } && $$pip -r tests/servers/requirements.txt
	@.venv-servers/bin/python scripts/servers_environment.py
	@touch $@

# RECIPES="r1-aqa sari" for single ones. Always anew; the script without --again goes on where a stopped run was.
rehearse: .venv/ready-dev
	$(BIN)/python benchmarks/rehearse.py --out runs/rehearsal --again $(foreach name,$(RECIPES),--recipe $(name))

gpu-day: .venv/ready-dev
	$(BIN)/python benchmarks/gpu_day.py --out runs/gpu-day

# What is published. The tools have an environment of their own; their versions are pinned here, nothing else depends on them.
package: .venv-package/ready
	rm -rf build/lib dist
	.venv-package/bin/python -m build --outdir dist .
	.venv-package/bin/twine check --strict dist/*
	.venv-package/bin/check-wheel-contents dist/*.whl
	.venv-package/bin/reuse lint --lines
	scripts/try_wheel.sh dist/*.whl $(PYTHON)

docs: .venv-docs/ready
	.venv-docs/bin/python scripts/recipe_reference.py
	.venv-docs/bin/python -m mkdocs build --strict

lock: .venv-lock/ready
	.venv-lock/bin/python scripts/locks.py renew --uv .venv-lock/bin/uv $(if $(WANTED_TORCH),--torch $(WANTED_TORCH))

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
	$(BIN)/earwise build labels '$(COLLECTION)' --out '$(OUT)/data/align.jsonl' --tasks open,caption --fields $(NAMED) $(LABELS) $(WITHOUT)
	$(BIN)/earwise build labels '$(COLLECTION)' --out '$(OUT)/data/questions.jsonl' --tasks $(VARIED) --limit 1500 $(LABELS) $(WITHOUT)
	@if test -d '$(WORDNET)'; then $(BIN)/earwise build reading '$(WORDNET)' --out '$(OUT)/data/reading.jsonl'; \
		else echo 'no folder $(WORDNET): questions about words are left out (Debian: wordnet-base, or WORDNET=DIR)' >&2; fi
	$(call TRAIN,aligned,embedded-aligned)
	@test -d '$(OUT)/heard' || $(BIN)/earwise build connector '$(COLLECTION)' --model '$(OUT)/aligned/final' \
		--scenes '$(OUT)/data/questions.jsonl' --encoder-cache '$(OUT)/states' --out '$(OUT)/heard' $(WITHOUT)
	@test -d '$(OUT)/start' || $(BIN)/earwise build words --model '$(OUT)/heard' --out '$(OUT)/start' --per-second 4 --extra 6 --most 64
	$(call TRAIN,tuned,embedded,'model.name=$(OUT)/start')
	@echo 'to put it into the package: $(BIN)/python -m earwise.models.embedded.package_weights $(OUT)/tuned/final --aligned $(OUT)/aligned/final'

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-lock .venv-servers .venv-package .venv-docs runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Stamps: a file in .venv says that what the lock holds is installed, so that a second run starts at once.
.venv/ready-demo: pyproject.toml locks/base.txt | .venv/ready-torch
	@echo 'installing earwise'
	$(PIP) $(LOCKED) -r locks/base.txt
	$(PIP) $(EDITABLE)
	@touch $@

.venv/ready-dev: pyproject.toml locks/dev.txt | .venv/ready-torch
	@echo 'installing earwise with all that tests need'
	$(PIP) $(LOCKED) -r locks/dev.txt
	$(PIP) $(EDITABLE)
	@touch $@ .venv/ready-demo

.venv/ready-torch: locks/torch-cuda.txt | .venv/ready-python
	@echo 'looking for PyTorch, installing it if it is not there (about 200 MB)'
	@$(BIN)/python -c 'from importlib.metadata import version; import sys; sys.exit(version("torch").partition("+")[0] != "$(TORCH)")' 2>/dev/null \
		|| { ! command -v nvidia-smi >/dev/null 2>&1 && $(PIP) --no-deps 'torch==$(TORCH)+cpu' 2>/dev/null; } \
		|| $(PIP) $(LOCKED) -r locks/torch-cuda.txt
	@touch $@

# The reference pages are read from the source, so torch is not needed.
.venv-docs/ready: pyproject.toml locks/docs.txt
	@echo 'installing what the documentation is built with'
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check $(LOCKED) -r locks/docs.txt
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check $(EDITABLE)
	@touch $@

.venv-package/ready: Makefile
	@$(PYTHON) -m venv --clear .venv-package
	@.venv-package/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGING)
	@touch $@

.venv-lock/ready:
	@$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv==$(UV)'
	@touch $@

.venv/ready-python:
	@test -n '$(PYTHON)' || { echo 'no Python 3.11 or newer found; install it, then run make again'; exit 2; }
	@echo 'making .venv with $(PYTHON)'
	@$(PYTHON) -m venv .venv 2>/dev/null || { $(PYTHON) -m venv --without-pip --clear .venv && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@touch $@
