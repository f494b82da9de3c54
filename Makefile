# make demo | test | bench | lint | cuda-compile. Nothing that is up to date is installed or built again.
# Variables: PYTHON (interpreter of the environment), TORCH (requirement and options for pip), VENV.

PYTHON ?= python3
VENV ?= .venv
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
TORCH ?= $(if $(HAS_GPU),torch,torch==2.13.0)
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test bench lint cuda-compile gpu-check build sanitize clean
.DELETE_ON_ERROR:

build: $(VENV)/.built

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH) "numpy" "setuptools>=77" wheel ninja
	touch $@

$(VENV)/.packages: pyproject.toml $(VENV)/.torch
	D2LFAST_NO_EXTENSION=1 $(BIN)/pip install --quiet --no-build-isolation --editable '.[cli,plot,data,test,lint]'
	touch $@

$(VENV)/.built: setup.py $(SOURCES) $(VENV)/.packages
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

demo: build
	$(BIN)/d2lfast train lenet --compare --out .

# Threads that wait for each other do not take the core from the other worker's.
test: build
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder
	tests/kernels/run_sanitized.sh
	tests/memory/run_sanitized.sh

bench: build
	$(BIN)/d2lfast bench kernels

lint: $(VENV)/.packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.inc' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp')
	$(BIN)/mypy

cuda-compile: $(VENV)/.packages
	$(BIN)/python build_tools/cuda_compile.py

# On a machine with a GPU, with the torch, nvcc and pytest of $(PYTHON); nothing is installed.
gpu-check:
	$(PYTHON) build_tools/gpu_check.py

clean:
	rm -rf build d2lfast/_C*.so d2lfast/_build_info.json $(VENV)/.built
