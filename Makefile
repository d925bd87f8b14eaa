# make demo   train on real digits, sample from captions, evaluate, write runs/demo/report.html
# make test   lint, format, types, import floors, tests
# make slow   the tests that take several seconds to minutes each
# make slurm  the tests on a real SLURM, which they bring up: root, and apt-get where it is missing
# make browser  the tests that drive a Chromium
# make trackers  the tests against MLflow, TensorBoard and wandb, in .venv-trackers
# make notebooks  the lessons as build/notebooks/*.ipynb, and one of them in a Jupyter kernel, in .venv-notebooks
# make space  the page of `export --space`, installed and started in an environment of its own
# Each creates the environment in .venv first; a second call reuses it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Tests start hundreds of processes; without bytecode each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow slurm browser trackers notebooks space lint types floors unit environment clean

demo: environment
	$(BIN)/sfumato demo $(DEMO)

test: environment lint types floors unit

environment: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "sfumato needs Python 3.11, 3.12 or 3.13; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# Tests compare with torch-fidelity. It is installed outside the path: it needs torchvision,
	# which torchmetrics would import.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target $(VENV)/references torch-fidelity
	@touch $@

lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types:
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

floors:
	$(BIN)/lint-imports

unit:
	$(PYTEST) -m "not slow and not soak and not gpu and not slurm and not browser and not space"

slow: environment
	$(PYTEST) -m slow

slurm: environment
	$(BIN)/python -m pytest -rs -n 0 -m slurm tests/test_slurm.py

browser: environment
	$(BIN)/python -m pytest -m browser -rs

# What these packages need would change versions in .venv: an environment of their own lies over it.
SITE := -c "import site; print(site.getsitepackages()[0])"
over = $(BIN)/python -m venv $(1) && echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > $$($(1)/bin/python $(SITE))/sfumato.pth

trackers: environment
	$(call over,.venv-trackers)
	.venv-trackers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-trackers.txt mlflow tensorboard wandb
	.venv-trackers/bin/python -m pytest -n 0 -m trackers tests/test_trackers_real.py

notebooks: environment
	$(call over,.venv-notebooks)
	.venv-notebooks/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-notebooks.txt jupytext nbclient ipykernel
	mkdir -p build/notebooks
	for lesson in docs/notebooks/*.py; do .venv-notebooks/bin/jupytext --quiet --to ipynb --output build/notebooks/$$(basename $$lesson .py).ipynb $$lesson || exit 1; done
	.venv-notebooks/bin/python -m pytest -n 0 -m notebooks tests/test_notebooks_real.py

# The test makes the environment itself, of what an exported folder requires, and removes it.
space: environment
	$(BIN)/python -m pytest -rs -n 0 -m space tests/test_space_started.py

clean:
	rm -rf $(VENV) .venv-trackers .venv-notebooks build dist .pytest_cache .ruff_cache .import_linter_cache
