# Every target makes `.venv` when it is missing and needs nothing beforehand but python3 (>= 3.11) and make.
# PYTHON=python3.12 chooses another interpreter; VENV=path another place for the environment.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
# --no-compile: Python compiles the modules that are used when they are first used, not thousands that never are.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Tests run in $(JOBS) processes, so each gets one thread.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
DEMO_SCENES := src/nerve_kernels/segmentation/embedded/demo

.DEFAULT_GOAL := help
.PHONY: help demo web test web-test lint bench docs verify gpu-check quality clean

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

$(VENV)/.stamp-package: $(VENV)/.stamp-torch pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
	@echo "== installing nerve-kernels (editable, native ops compiled when there is a C++ compiler) and [segmentation]"
	@$(PIP) --no-build-isolation --editable '.[segmentation]'
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-package
	@echo "== installing the tools for tests, lint and benchmarks: [dev]"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.stamp-web: $(VENV)/.stamp-package
	@echo "== installing the page's libraries: [web]"
	@$(PIP) --no-build-isolation --editable '.[web]'
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-package
	@echo "== installing what builds the documentation: [docs]"
	@$(PIP) --no-build-isolation --editable '.[docs]'
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
	@$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(JOBS) -m 'not gpu and not browser' \
	  --doctest-modules src/nerve_kernels tests

web-test: $(VENV)/.stamp-dev ## the page in a real Chromium (skips, and says so, where there is none)
	@echo "== the page in a headless Chromium"
	@$(PIP) --no-build-isolation --editable '.[web-test]'
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

bench: $(VENV)/.stamp-dev ## microbenchmarks against the alternatives
	@echo "== benchmarks, $(JOBS) threads"
	@OMP_NUM_THREADS=$(JOBS) $(BIN)/python -m pytest -q benchmarks -o python_files='bench_*.py' -o python_functions='bench_*' \
	  --benchmark-only --benchmark-columns=min,median,iqr,rounds --benchmark-sort=name

quality: $(VENV)/.stamp-dev ## mIoU of the embedded models; writes benchmarks/results/embedded_quality.csv
	@echo "== evaluating the embedded models on the scenes shipped with the package"
	@$(BIN)/python -m benchmarks.quality

# The slow checks of native and GPU code. Today: every Triton kernel compiles for every GPU without a fault; the C++ of csrc/cpu/ compiles without a warning, and its tests pass under
# AddressSanitizer and UndefinedBehaviorSanitizer (which Python itself is not built with, hence the preloading).
SANITIZED := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
NATIVE_TESTS := tests/ops/test_window_product_cpp.py tests/ops/test_attention_cpp.py
verify: $(VENV)/.stamp-dev ## GPU kernels compiled for every target; native code: its tests under sanitizers, warnings are errors
	@echo "== compiling every Triton kernel for every GPU; benchmarks/results/gpu_static.csv (minutes)"
	@$(ONE_THREAD) $(BIN)/python -m benchmarks.gpu_static --jobs $(JOBS)
	@command -v g++ > /dev/null || { echo "error: make verify needs g++ and its sanitizer libraries"; exit 1; }
	@echo "== compiling csrc/ with -Werror and sanitizers into build/verify"
	@rm -rf build/verify
	@CXX=g++ CXXFLAGS="-Werror $(SANITIZED)" $(BIN)/python setup.py -q build --build-base build/verify
	@ls build/verify/lib*/nerve_kernels/_C*.so > /dev/null || { echo "error: csrc/ did not compile, see above"; exit 1; }
	@echo "== tests of the native ops under the sanitizers"
	@LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$$(echo build/verify/lib*)" OMP_NUM_THREADS=$(JOBS) \
	  $(BIN)/python -m pytest -q -p no:cacheprovider $(NATIVE_TESTS)

gpu-check: $(VENV)/.stamp-dev ## tests marked gpu; without a GPU it says so and lists them
	@echo "== tests that need a GPU"
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(BIN)/python -m pytest -q -m gpu tests; \
	else \
	  echo "no GPU visible to torch: nothing can be run; these tests would be:"; \
	  $(BIN)/python -m pytest -q -m gpu --collect-only tests; \
	fi

clean: ## remove builds, caches, site/ and demo/, but not .venv
	@echo "== removing builds, caches, site/ and demo/"
	@rm -rf build dist demo site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -f src/nerve_kernels/*.so src/nerve_kernels/_build_failure.txt $(VENV)/.stamp-package $(VENV)/.stamp-dev \
	  $(VENV)/.stamp-web $(VENV)/.stamp-docs
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
