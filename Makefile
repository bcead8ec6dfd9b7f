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
	@echo "make examples  run every example, small"
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

examples: $(INSTALLED)
	$(BIN)/python examples/digits.py --small --out-dir demo/small
	$(BIN)/python examples/compare_integrators.py --small --out-dir demo/small
	$(BIN)/python examples/cifar_flow.py --small --out-dir demo/small
	$(BIN)/python examples/edge_of_stability.py --small --lrs 0.6 --t-max 12 --out-dir demo/small/edge
	$(BIN)/python examples/progressive_sharpening.py --small --out-dir demo/small/sharpening
	$(BIN)/python examples/optimizers_on_a_surface.py --small --out-dir demo/small/surfaces
	$(BIN)/python examples/adaptive_edge_of_stability.py --small --out-dir demo/small/adaptive
	$(BIN)/python examples/elra_rosenbrock.py --small --out-dir demo/small/elra
	$(BIN)/python examples/momentum_thresholds.py --small --out-dir demo/small/momentum
	$(BIN)/python examples/edge_flows.py --small --out-dir demo/small/edge_flows
	$(BIN)/python examples/berthier_toy.py --steps 800 --every 25 --out-dir demo/small/berthier

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
