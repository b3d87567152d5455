# Two commands for a fresh machine: `make demo` and `make test`. Both share one virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
export JAX_PLATFORMS ?= cpu

GOLDEN ?= ../shared/golden

.PHONY: demo test check fidelity aot bench format base clean help

help:  ## What can be made.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/core  ## Set up, then: make videos, train both stages, score them, write runs/demo/report.html.
	$(BIN)/python launch/demo.py --out=$(RUNS)/demo

test: $(VENV)/dev  ## Set up, then run every test.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/dev  ## Lint, format, types and the tests: before each commit.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

fidelity: $(VENV)/dev  ## Compare with the recordings of the original in GOLDEN, and rewrite the table of docs/fidelity.md.
	$(BIN)/python -m tests.fidelity --golden=$(GOLDEN) --page=docs/fidelity.md

aot: $(VENV)/aot  ## Compile the full-size programs for GPUs and TPUs that are not here; write RUNS/aot.json.
	$(BIN)/python launch/aot.py --out=$(RUNS)/aot.json

bench: $(VENV)/dev  ## Compare speed with torch, peft and codecs, on this machine; BENCH gives options (docs/benchmarks.md).
	$(BIN)/python -m benchmarks --out=$(RUNS)/bench $(BENCH)

format: $(VENV)/dev  ## Let ruff format and mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

base: $(VENV)/core  ## Make the tiny base checkpoint anew (data/shapes/base.safetensors); took 25 minutes on 2 busy cores.
	$(BIN)/python launch/make_base.py --out=data/shapes/base.safetensors

$(VENV)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,oracle]'
	touch $@

$(VENV)/aot: $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[aot]'
	touch $@

clean:  ## Remove runs and caches; the environment stays.
	rm -rf $(RUNS) .pytest_cache .ruff_cache build *.egg-info
