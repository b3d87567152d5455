# Two commands for a fresh machine: `make demo` and `make test`. Both share one virtual environment.
PYTHON ?= python3
# Another Python has an environment of its own: make test PYTHON=python3.12.
VENV ?= .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
RUNS ?= runs
export JAX_PLATFORMS ?= cpu

GOLDEN ?= ../shared/golden

.PHONY: demo test test-all check fidelity aot beam bench bench-shapes full-size mutants load format docs base clean help

help:  ## What can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/core  ## Set up, then: make videos, train both stages, score them, write runs/demo/report.html.
	$(BIN)/python launch/demo.py --out=$(RUNS)/demo

# Files are dealt to two workers, in order; a file's tests stay together, as they share what they compile.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore-glob='*/test_web*.py'
# In a process of their own: sockets that a server left open warn in whichever test of the process comes next.
PYTEST_WEB := $(BIN)/python -m pytest $(wildcard tests/search/test_web*.py)

test: $(VENV)/dev  ## Set up, then run the tests: every room, both stages end to end, resume, meshes, conversion.
	@mkdir -p .pytest_cache
	$(PYTEST_WEB) -m "not release" >.pytest_cache/web.log 2>&1 & web=$$!; trap 'kill $$web' INT TERM; \
		$(PYTEST) -m "not release"; rest=$$?; \
		wait $$web; web=$$?; cat .pytest_cache/web.log; exit $$((rest ? rest : web))

check: $(VENV)/dev  ## Lint, format, types and the fast tests: before each commit.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright & types=$$!; $(PYTEST) -m "not slow and not release"; rest=$$?; wait $$types && exit $$rest

test-all: $(VENV)/dev $(VENV)/aot  ## Every test, live comparisons and the longest ones too: before a release.
	CALCE_ORACLE=live PYTHONPATH=$(abspath $(VENV)/compilers) $(PYTEST)
	$(PYTEST_WEB)

fidelity: $(VENV)/dev  ## Compare with the recordings of the original in GOLDEN, and rewrite the table of docs/fidelity.md.
	$(BIN)/python -m tests.fidelity --golden=$(GOLDEN) --page=docs/fidelity.md

aot: $(VENV)/aot  ## Compile the full-size programs for GPUs and TPUs that are not here; write RUNS/aot.json. AOT gives options.
	PYTHONPATH=$(abspath $(VENV)/compilers) $(BIN)/python -m benchmarks.aot --out=$(RUNS)/aot.json $(AOT)

beam: $(VENV)-beam/done  ## Set up an environment with Apache Beam, and run the tests of its pipelines there.
	$(VENV)-beam/bin/python -m pytest tests/datasets/test_beam.py

bench: $(VENV)/dev  ## Compare speed with torch, peft and codecs, on this machine; BENCH gives options (docs/benchmarks.md).
	$(BIN)/python -m benchmarks --out=$(RUNS)/bench $(BENCH)

bench-shapes: $(VENV)/core  ## Train and score each method on 300 held-out videos of the shapes world, three seeds: about three hours. SHAPES gives options.
	$(BIN)/python -m benchmarks.shapes --out=$(RUNS)/bench_shapes $(SHAPES)

full-size: $(VENV)/dev  ## Run everything at full size on this CPU, from random weights: hours, 24 GB of memory, 60 GB of disk. FULL gives options.
	$(BIN)/python -m benchmarks.full_size --out=$(RUNS)/full_size $(FULL)

mutants: $(VENV)/dev  ## Break the code on purpose, one place at a time, and list the changes that no test detects; MUTANTS gives options.
	$(BIN)/python -m tests.mutants --out=$(RUNS)/mutants.json $(or $(MUTANTS),--named)

load: $(VENV)/dev  ## Prepare and index 10,000 videos, killed twice; and let 30 visitors use the web app for ten minutes. Takes half an hour.
	$(BIN)/python -m tests.load.prepare_videos --out=$(RUNS)/load
	$(BIN)/python -m tests.load.index_videos --out=$(RUNS)/load
	$(BIN)/python -m tests.load.web_visitors --out=$(RUNS)/load

format: $(VENV)/dev  ## Format with ruff, and apply its automatic fixes.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/docs  ## Build the pages of docs/ as a site, build/site/index.html.
	$(BIN)/mkdocs build --strict

base: $(VENV)/core  ## Make the tiny base checkpoint of the demo anew: an hour on 2 cores.
	$(BIN)/python -m data.shapes.pretrain

# Python compiles what it imports: --no-compile spares the rest, half a minute.
$(VENV)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable .
	touch $@

# Compiles for GPUs that are not here; on Linux alone. It stands apart: jax would look for a GPU at every start, and complain.
$(VENV)/compilers: $(VENV)/core
	mkdir -p $@
	version=$$($(BIN)/python -c 'import jax; print(jax.__version__)'); $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --no-deps --upgrade --target $@ jax-cuda12-plugin==$$version jax-cuda12-pjrt==$$version \
		|| echo "no compiler for GPUs; its tests skip"
	touch $@

$(VENV)/dev: $(VENV)/core $(VENV)/compilers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
		--editable '.[dev,export,oracle,watch,web]'
	@# Tests make errors of warnings, those of compiling other people's modules too; some of which are made to fail.
	-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib
	touch $@

$(VENV)/docs: $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/aot: $(VENV)/core $(VENV)/compilers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[tpu]'
	touch $@

$(VENV)-beam/done: pyproject.toml constraints-beam.txt
	test -x $(VENV)-beam/bin/python || $(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-beam.txt \
		--editable '.[beam]' pytest
	touch $@

clean:  ## Remove runs and caches; the environment stays.
	rm -rf $(RUNS) .pytest_cache .ruff_cache build *.egg-info
