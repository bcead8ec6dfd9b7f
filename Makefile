# Two commands: `make demo` and `make test`. Both make .venv and install into it first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint examples clean

help:
	@echo "make demo      integrate a real network on the shipped digits: two files and a picture in demo/"
	@echo "make test      run the whole suite, two tests at a time"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make examples  run every example, small; -j 2 runs two at a time"
	@echo "make clean     remove .venv, caches and demo/"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "==> making $(VENV) and installing gradflow with the versions of constraints.txt"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	@echo "==> integrating gradient flow and gradient descent on the digits"
	$(BIN)/python examples/digits.py --out-dir demo

test: $(INSTALLED)
	@echo "==> running the whole suite"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

EXAMPLES := $(filter-out $(SKIP),digits compare_integrators cifar_flow edge_of_stability progressive_sharpening \
	optimizers_on_a_surface adaptive_edge_of_stability elra_rosenbrock momentum_thresholds edge_flows berthier_toy \
	transformer)
SMALL := --small
SMALL_edge_of_stability := --small --lrs 0.6 --t-max 12
SMALL_berthier_toy := --steps 800 --every 25

examples: $(EXAMPLES:%=example-%)

example-%: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python examples/$*.py $(or $(SMALL_$*),$(SMALL)) --out-dir demo/small/$*

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
