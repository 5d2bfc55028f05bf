# Needs Python 3.10+ and make. Everything else goes into $(VENV).

PYTHON ?= python3
VENV ?= .venv
# Extra arguments for pip, such as an index that holds CPU builds of torch.
PIP_ARGS ?=
# Arguments for `holdfast demo` and `holdfast bench auto`, such as --quick.
ARGS ?=
# The pair that is tested: torch 2.13.0's CUDA builds require triton 3.7.1.
TORCH_VERSION ?= 2.13.0
TRITON_VERSION ?= 3.7.1
# Set TORCH to a requirement of your own to choose the build yourself.
TORCH ?=
# The other Triton of `make test-triton`.
TRITON ?= 3.6.0
# Processes of the tests: a number, or auto for one a core.
WORKERS ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
PIP_INSTALL := $(PIP) install --quiet --quiet --disable-pip-version-check $(PIP_ARGS)
# Test processes side by side; a file stays in one, for what its tests share. (By xdist_group it would be finer: pytest
# 9.2 and pytest-xdist 3.8 together pass over that mark without a word, and compiled the gate's kernels twice.)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
OTHER_TRITON := .triton-$(TRITON)
KERNEL_TESTS = $(wildcard tests/test_kernels_*.py tests/test_interpreter*.py tests/test_compile_gate*.py tests/test_ptx_*.py) \
	tests/test_launch_path.py tests/test_offline.py tests/test_resources.py

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-all test-triton test-recipes coverage lint clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(VENV)/demo.stamp ## check the kernels, train an RNN, a GRU and an LSTM (4 minutes on 2 cores)
	@$(BIN)/holdfast demo $(ARGS)

bench: $(VENV)/demo.stamp ## measure what means something on this machine: ARGS='--quick --out results'
	@$(BIN)/holdfast bench auto $(ARGS)

test: $(VENV)/dev.stamp ## run the quick tests: every path and rule once, no GPU
	@$(PYTEST) -m "not slow and not thorough and not gpu"

test-all: $(VENV)/dev.stamp ## run every test, and the kernel tests on Triton 3.6.0 and 3.9.0 (hours)
	@$(PYTEST)
	@$(MAKE) --no-print-directory test-triton TRITON=3.6.0
	@$(MAKE) --no-print-directory test-triton TRITON=3.9.0

test-triton: $(VENV)/dev.stamp $(OTHER_TRITON)/stamp ## run the kernel tests on another Triton: TRITON=3.9.0
	@PYTHONPATH=$(OTHER_TRITON) $(BIN)/python -c 'import triton; assert triton.__version__ == "$(TRITON)", triton.__file__'
	@PYTHONPATH=$(OTHER_TRITON) $(PYTEST) -m "not slow and not gpu" $(KERNEL_TESTS)

test-recipes: $(VENV)/dev.stamp ## run holdfast inside other people's packages, which are installed for it
	@$(PIP_INSTALL) --editable '.[recipes]'
	@$(PIP_INSTALL) --no-deps --target real_models \
		$$($(BIN)/python -c 'from holdfast.bench.real_models.packages import REQUIREMENTS; print(*REQUIREMENTS)')
	@$(PYTEST) tests/test_recipes.py tests/test_packages.py

coverage: $(VENV)/dev.stamp ## list the lines of kernels/, cells/ and autotune/ that no quick test reaches
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile -q -m "not slow and not thorough and not gpu"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

lint: $(VENV)/dev.stamp ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@# mypy takes the package's name from its folder, and a clone may lie in a folder of any name.
	@mkdir -p $(VENV)/mypy && ln -sfn "$(CURDIR)" $(VENV)/mypy/holdfast
	@MYPYPATH=$(VENV)/mypy $(BIN)/mypy -m holdfast -m holdfast.__main__ \
		-p holdfast.kernels -p holdfast.cells -p holdfast.autotune -p holdfast.bench

clean: ## remove everything that make created
	rm -rf $(VENV) real_models .triton-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo_out bench_out .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp and not the interpreter: an interrupted `python -m venv` leaves one without pip.
$(VENV)/venv.stamp:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "No $(PYTHON) here. Name a Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "holdfast needs Python 3.10 or newer and $(PYTHON) is $$("$(PYTHON)" --version 2>&1)." \
			"Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV) || { \
		echo "$(PYTHON) cannot create a virtual environment. Install its venv module" \
			"(on Debian and Ubuntu: the package python3-venv) and run make again." >&2; exit 1; }
	@touch $@

# torch goes first and alone, so that nothing else can pull in another build of it. "2.13.0+cpu" is a version of its own,
# newer than "2.13.0": without a driver it is asked for by name, with one it is excluded by name.
$(VENV)/torch.stamp: | $(VENV)/venv.stamp
	@set -e; pins="triton==$(TRITON_VERSION); platform_system == 'Linux'"; \
	if [ -n "$(TORCH)" ]; then \
		echo "Installing $(TORCH)"; $(PIP_INSTALL) "$(TORCH)"; \
	elif command -v nvidia-smi >/dev/null || [ -e /proc/driver/nvidia/version ] || ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then \
		echo "Found an NVIDIA driver: installing torch $(TORCH_VERSION) with CUDA"; \
		$(PIP_INSTALL) "torch==$(TORCH_VERSION),!=$(TORCH_VERSION)+cpu" "$$pins"; \
	else \
		echo "Found no NVIDIA driver: installing torch $(TORCH_VERSION) for the CPU"; \
		$(PIP_INSTALL) "torch==$(TORCH_VERSION)+cpu" "$$pins" 2>/dev/null || { \
			echo "No CPU build found where pip looks (PIP_ARGS can name another index): taking the default build"; \
			$(PIP_INSTALL) "torch==$(TORCH_VERSION)" "$$pins"; }; \
	fi
	@touch $@

$(VENV)/demo.stamp: pyproject.toml $(VENV)/torch.stamp
	@echo "Installing holdfast"
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	@echo "Installing the test tools"
	@$(PIP_INSTALL) --editable '.[bench,dev]'
	@touch $@

# Beside the environment, not in it: PYTHONPATH puts this Triton before the pinned one.
# Triton 3.6.0's interpreter fails on NumPy 2.4 and newer.
$(OTHER_TRITON)/stamp: | $(VENV)/venv.stamp
	@echo "Installing Triton $(TRITON) into $(OTHER_TRITON)"
	@$(PIP_INSTALL) --no-deps --target $(OTHER_TRITON) triton==$(TRITON) $(if $(filter 3.6.0,$(TRITON)),'numpy<2.4')
	@touch $@
