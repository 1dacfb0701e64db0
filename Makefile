# Every target makes `.venv` when it is missing and needs nothing beforehand but python3 (>= 3.11) and make.
# PYTHON=python3.12 chooses another interpreter; VENV=path another place for the environment.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
# --no-compile: Python compiles the modules that are used when they are first used, not thousands that never are. It has
# to be allowed to keep them: else each of the hundred processes that the tests start compiles torch and all else again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Tests run in $(JOBS) processes, so each gets one thread.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
DEMO_SCENES := src/nerve_kernels/segmentation/embedded/demo

.DEFAULT_GOAL := help
.PHONY: help demo web test web-test lint docs bench bench-quick verify gpu-check quality fuzz mutants bulk-check audit package-check clean

help: ## say what can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

# ---- the environment, in layers so that `make demo` installs no more than it needs -------------------------------

# torch comes first and by itself: the package compiles against it (--no-build-isolation below).
$(VENV)/.stamp-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; choose another with: make PYTHON=python3.x"; exit 1; }
	@echo "== making $(VENV): torch, numpy and the build tools"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }
	@$(PIP) torch numpy setuptools
	@touch $@

$(VENV)/.stamp-package: $(VENV)/.stamp-torch pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
	@echo "== installing nerve-kernels (editable, native ops compiled when there is a C++ compiler) and [segmentation]"
	@$(PIP) --no-build-isolation --editable '.[segmentation]'
	@touch $@

# What is installed already satisfies nerve-kernels[…]: only the extra's libraries come, and nothing is compiled again.
$(VENV)/.stamp-dev: $(VENV)/.stamp-package
	@echo "== installing the tools for tests, lint and benchmarks: [dev]"
	@$(PIP) 'nerve-kernels[dev]'
	@touch $@

$(VENV)/.stamp-release: $(VENV)/.stamp-dev
	@echo "== installing the tools for releases: [release]"
	@$(PIP) 'nerve-kernels[release]'
	@touch $@

$(VENV)/.stamp-web: $(VENV)/.stamp-package
	@echo "== installing the page's libraries: [web]"
	@$(PIP) 'nerve-kernels[web]'
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-package
	@echo "== installing what builds the documentation: [docs]"
	@$(PIP) 'nerve-kernels[docs]'
	@touch $@

# ---- what users run -----------------------------------------------------------------------------------------------

demo: $(VENV)/.stamp-package ## segment the pictures shipped with the package; overlays go to demo/
	@echo "== segmenting the pictures in $(DEMO_SCENES) with the embedded models"
	@$(BIN)/nerve-segment $(DEMO_SCENES) --out demo
	@echo "== look at the overlays in demo/"

web: $(VENV)/.stamp-web ## a page to play with, on this machine only
	@$(BIN)/nerve-web

# ---- what developers run ------------------------------------------------------------------------------------------

test: $(VENV)/.stamp-dev ## all tests that need no GPU, and the examples in the docstrings
	@echo "== tests and docstring examples, $(JOBS) processes of one thread each"
	@$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not gpu and not browser' \
	  --doctest-modules src/nerve_kernels tests

web-test: $(VENV)/.stamp-dev ## the page in a real Chromium (skips, and says so, where there is none)
	@echo "== the page in a headless Chromium"
	@$(PIP) 'nerve-kernels[web-test]'
	@$(ONE_THREAD) $(BIN)/python -m pytest -q -rs -m browser tests/web/test_browser.py

lint: $(VENV)/.stamp-dev ## ruff (rules and formatting) and mypy
	@echo "== ruff check, ruff format, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/.stamp-docs ## the documentation, into site/; warnings are errors
	@echo "== building site/"
	@$(BIN)/mkdocs build --strict --quiet
	@echo "== open site/index.html"

bench: $(VENV)/.stamp-dev ## every operation against its peers, under 15 minutes: table, benchmarks/results/cpu.csv, plots
	@echo "== benchmarks, $(JOBS) threads"
	@$(BIN)/python -m benchmarks run --threads $(JOBS)

bench-quick: $(VENV)/.stamp-dev ## one size of each operation, under 2 minutes; OLD=file.csv also compares with it
	@echo "== quick benchmarks, $(JOBS) threads"
	@$(BIN)/python -m benchmarks run --quick --threads $(JOBS)
	@$(if $(OLD),$(BIN)/python -m benchmarks compare $(OLD) build/benchmarks/quick.csv)

quality: $(VENV)/.stamp-dev ## mIoU of the embedded models; writes benchmarks/results/embedded_quality.csv
	@echo "== evaluating the embedded models on the scenes shipped with the package"
	@$(BIN)/python -m training.quality.search

verify: $(VENV)/.stamp-dev ## native and GPU code, all that can be proved without a GPU (needs g++ and nvcc); ends in a table
	@JOBS=$(JOBS) $(BIN)/python -m verification

# An environment that is there is used; else $(PYTHON) if it has torch and pytest (a GPU machine without network has
# them from its image); else an environment is made. PREBUILT=1 takes the _C_cuda that lies beside the sources.
gpu-check: ## build, tests, sanitizers, CUDA graphs and benchmarks on a GPU in 8 minutes (OUT=folder); without one, a dry run
	@if test -e $(VENV)/.stamp-dev; then python=$(BIN)/python; \
	elif $(PYTHON) -c 'import torch, pytest' 2> /dev/null; then python=$(PYTHON); \
	else $(MAKE) --no-print-directory $(VENV)/.stamp-dev && python=$(BIN)/python; fi && \
	$$python -m verification.gpu_check $(if $(OUT),--out '$(OUT)') $(if $(PREBUILT),--prebuilt)

FUZZ_EXAMPLES ?= 2000
fuzz: $(VENV)/.stamp-dev ## thousands of random pictures, command lines and calls of every operator, right and wrong
	@echo "== $(FUZZ_EXAMPLES) examples of each test in tests/fuzz, $(JOBS) processes"
	@FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(ONE_THREAD) $(BIN)/python -m pytest -q -n $(JOBS) tests/fuzz

MUTANTS ?= 60
SEED ?= 0
mutants: $(VENV)/.stamp-dev ## small mistakes made on purpose, one at a time: do the tests notice? (an hour)
	@$(PIP) 'nerve-kernels[mutants]'
	@$(BIN)/python -m tests.mutation --seed $(SEED) --mutants $(MUTANTS) --jobs $(JOBS)

bulk-check: $(VENV)/.stamp-dev ## nerve-bulk is killed 20 times over 500 images: nothing lost, nothing doubled (KILLS, IMAGES, SEED)
	@$(ONE_THREAD) $(BIN)/python -m tests.bulk.kills --kills $(or $(KILLS),20) --images $(or $(IMAGES),500) --seed $(SEED)

audit: $(VENV)/.stamp-release ## known vulnerabilities of the versions in constraints.txt (needs the network)
	@echo "== looking up constraints.txt"
	@$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# The wheel is made from the source distribution, so both are proved; the tests run where neither sources nor compiler are.
PACKAGE_TESTS ?= tests/ops tests/cli tests/segmentation tests/packaging/test_extension_symbols.py
OUTSIDE := build/package/outside
package-check: $(VENV)/.stamp-release ## build wheel and sdist, install the wheel without a compiler, run the tests on it
	@rm -rf build/package
	@echo "== building the source distribution, and the wheel from it"
	@$(BIN)/python -m build --no-isolation --outdir build/package/dist . > build/package.log || { cat build/package.log; exit 1; }
	@$(BIN)/twine check --strict build/package/dist/*
	@echo "== installing the wheel into a clean environment, without a compiler"
	@$(PYTHON) -m venv build/package/venv
	@env -i HOME="$$HOME" PATH="$(CURDIR)/build/package/venv/bin" $$(env | grep -E '^(PIP_|SSL_|https?_proxy)') \
	  python -m pip install --quiet --disable-pip-version-check -c constraints.txt --only-binary :all: \
	  "$$(ls build/package/dist/*.whl)[segmentation]" hypothesis pytest pytest-xdist torchmetrics scikit-image networkx scipy ninja
	@echo "== running $(PACKAGE_TESTS) against it"
	@mkdir -p $(OUTSIDE) && cp -r tests pyproject.toml $(OUTSIDE)
	@cd $(OUTSIDE) && env -i HOME="$$HOME" PATH="$(CURDIR)/build/package/venv/bin" CXX=/nowhere $(ONE_THREAD) \
	  ../venv/bin/python -m pytest -q -n $(JOBS) -m 'not gpu' -p no:cacheprovider $(PACKAGE_TESTS)

clean: ## remove builds, caches, site/ and demo/, but not .venv
	@echo "== removing builds, caches, site/ and demo/"
	@rm -rf build dist demo site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -f src/nerve_kernels/*.so src/nerve_kernels/_build_failure.txt $(VENV)/.stamp-package $(VENV)/.stamp-dev \
	  $(VENV)/.stamp-web $(VENV)/.stamp-docs $(VENV)/.stamp-release
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
