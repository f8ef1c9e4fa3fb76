# `make` prints the targets.  Everything runs in a virtual environment of its own, .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/ready: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[test,lint]'
	touch $@

demo: $(VENV)/installed  ## record a teacher and train students on built-in shapes, in demo/ (up to three minutes)
	mkdir -p demo
	cd demo && $(BIN)/minipc record
	cd demo && $(BIN)/minipc train

IN_TWO := -n 2 --dist worksteal

test: $(VENV)/ready  ## the tests, in two processes; no GPU, no PyTorch and no data set needed
	$(BIN)/python -m pytest $(IN_TWO)

OLDEST := .venv-oldest

$(OLDEST)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	sed -n 's/^    \([^[]*\)>=\(.*\)/\1==\2/p' setup.cfg > $(OLDEST)/lowest.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/lowest.txt --editable '.[test,dask]'
	touch $@

# Left out: half of the suite's time, and nothing of NumPy, SciPy, h5py or click that the other files do not meet.
NOT_OLDEST := mathematics/test_audit commands/test_docs tools/test_figures tools/test_teacher_study \
	faults/test_power faults/test_resume faults/test_signals

test-oldest: $(OLDEST)/ready  ## the tests on the lowest versions that setup.cfg admits, Dask too; without the slowest files
	MINIPC_OLDEST=1 MINIPC_REQUIRE_DASK=1 $(OLDEST)/bin/python -m pytest $(IN_TWO) $(NOT_OLDEST:%=--ignore reference_tests/%.py)

test-modelnet: $(VENV)/ready  ## the whole way on ModelNet40, at MINIPC_MODELNET; skipped where it is absent
	$(BIN)/python -m pytest -m modelnet

KERNELS :=

test-kernels: $(VENV)/ready  ## the tests that touch BLAS under every kernel that runs here, or KERNELS="Haswell Nehalem"
	$(BIN)/python -m reference_tests.tools.kernels $(KERNELS)

TORCH_TESTS := $(addprefix reference_tests/,mathematics/test_torch_parity.py mathematics/test_torch_loss.py \
	formats/test_torch_dataset.py formats/test_torch_models.py commands/test_torch_record.py commands/test_docs.py \
	formats/test_shared_reader.py commands/test_contract.py)

test-torch: $(VENV)/ready  ## minipc.torch, parity with PyTorch, its examples, its DataLoader; installed if absent, a missing PyTorch is a failure
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet torch==2.13.0
	MINIPC_REQUIRE_TORCH=1 $(BIN)/python -m pytest $(TORCH_TESTS) -k "torch or your_loss"

test-dask: $(VENV)/ready  ## recording on a Dask cluster of this machine; installed if absent, a missing Dask is a failure
	$(BIN)/pip install --quiet --editable '.[dask]'
	MINIPC_REQUIRE_DASK=1 $(BIN)/python -m pytest reference_tests/faults/test_scheduler.py

GPU := gpu13
CUPY := cupy-cuda$(GPU:gpu%=%)x

# one CuPy: two of them lie over each other
gpu: $(VENV)/ready  ## CuPy with its CUDA, by the extra gpu13, or GPU=gpu12; then what minipc sees of the device
	$(BIN)/pip show --quiet $(CUPY) 2>/dev/null || { $(BIN)/pip uninstall --quiet --yes cupy-cuda12x cupy-cuda13x \
	&& $(BIN)/pip install --quiet --editable '.[$(GPU)]'; }
	$(BIN)/minipc doctor

test-gpu: gpu  ## the same tests on CuPy, installed if absent (GPU=gpu12 chooses); no device is a failure
	MINIPC_REQUIRE_GPU=1 $(BIN)/python -m pytest

bench: $(VENV)/ready  ## benchmark against PyTorch and JAX, installed if absent; writes docs/performance.md (15 minutes, alone)
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m reference_tests.tools.speed

bench-gpu: gpu  ## the same on a CUDA device, CuPy and PyTorch installed if absent, of SIZES=tiny,teacher alone if given; what cannot run is left out
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/python -m reference_tests.tools.speed --gpu --json $(SIZES:%=--sizes %)

audit: $(VENV)/installed  ## hold the mathematics against itself, and break it on purpose
	$(BIN)/minipc audit
	$(BIN)/minipc audit --inject all

frozen: $(VENV)/ready  ## what a redesign must not change, as digests: arrays, files, help, messages
	$(BIN)/python -m reference_tests.tools.frozen

torture: $(VENV)/ready  ## kill recorder and training a hundred times each, fill the disk, fail every system call, and compare byte for byte (ten minutes)
	$(BIN)/python -m reference_tests.faults.torture
	MINIPC_ALL_FAULTS=1 $(BIN)/python -m pytest $(IN_TWO) reference_tests/faults/test_faults.py

figures: $(VENV)/ready  ## the figures of the pages, with matplotlib
	$(BIN)/pip install --quiet --editable '.[figures]'
	$(BIN)/python -m reference_tests.tools.figures docs/figures
	$(BIN)/python -m reference_tests.tools.tutorial_figures docs/tutorial/figures

tutorial: $(VENV)/ready  ## what the blocks of the lessons print, and the notebooks, from the pages
	$(BIN)/python -m reference_tests.tools.tutorial

docs: $(VENV)/ready  ## the site of the documentation, in build/docs/html; a warning is an error
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/python docs/site/build.py build/docs
	MINIPC_SITE=build/docs/html $(BIN)/python -m pytest -q reference_tests/tools/test_site.py

dist: $(VENV)/ready  ## wheel and source distribution in dist/, checked
	$(BIN)/pip install --quiet --editable '.[dist]'
	rm -rf dist minipc.egg-info
	$(BIN)/python -m build --quiet --outdir dist
	$(BIN)/twine check --strict dist/*
	MINIPC_DIST=dist $(BIN)/python -m pytest -q reference_tests/tools/test_packaging.py

lint: $(VENV)/ready  ## ruff: the format and the rules of pyproject.toml
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/ready  ## mypy: every function of the package is annotated, and the annotations agree
	$(BIN)/mypy minipc

check: lint types test  ## what to run before a commit

.PHONY: help demo test test-kernels test-oldest test-modelnet test-torch test-dask gpu test-gpu bench bench-gpu audit frozen torture figures tutorial docs dist lint types check
.DEFAULT_GOAL := help
